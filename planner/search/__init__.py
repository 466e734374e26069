"""Meshes, objectives and baselines -> the plan, and a lower bound on the step of any plan."""
