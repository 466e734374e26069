"""Meshes, objectives and baselines -> the plan, and a bound on every plan there is."""
