"""A problem -> a smaller one with the same least cost, and the way back."""
