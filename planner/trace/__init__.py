"""A workload -> the graph of its whole step."""
