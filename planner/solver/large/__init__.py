"""Good choices for large problems: annealing by trees, dives, what could still be better."""
