"""The split of a model into pipeline stages, as an optimisation of its own: knows no graphs."""
