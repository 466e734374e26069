"""The strategy-selection problem and its solver, free of models and meshes."""

from planner.solver.ilp import solve
from planner.solver.pairs import PairUsage, completed, with_pair_usages
from planner.solver.problem import Edge, Problem, Usage, spans_of
from planner.solver.solution import Solution

__all__ = ["Edge", "PairUsage", "Problem", "Solution", "Usage", "completed", "solve", "spans_of", "with_pair_usages"]
