"""The strategy-selection problem, its solution and its file."""
