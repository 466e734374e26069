"""Solves and proves problems by reductions, bounds and integer programs."""
