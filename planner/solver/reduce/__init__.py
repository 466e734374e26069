"""A problem -> a smaller one of the same least cost, and the way back."""
