"""The other process of `retrace`: traces a plan's model again and prints the digest of its
graph."""

from __future__ import annotations

import sys

from cost_models.errors import UserError
from planner.plans.plan_file import read_plan
from planner.plans.replay import graph_of

__all__ = ["main"]


def main(plan: str) -> None:
    """Prints the digest; exits with 1 if the model cannot be traced."""
    try:
        print(graph_of(read_plan(plan)).digest())
    except UserError as error:
        sys.exit(f"error: {error}")
