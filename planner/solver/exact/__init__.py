"""Solved and proved: by reductions, bounds and integer programs."""
