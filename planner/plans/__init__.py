"""The plan file: writing and reading it, making its program again, and a plan in words."""
