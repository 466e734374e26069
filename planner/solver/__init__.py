"""The strategy-selection problem and its solver, free of models and meshes."""

from planner.solver.ilp import Solution, solve
from planner.solver.problem import Edge, Problem, Usage

__all__ = ["Edge", "Problem", "Solution", "Usage", "solve"]
