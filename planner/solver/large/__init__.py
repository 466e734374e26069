"""Good choices for large problems: annealing by trees, dives, narrowing."""
