"""The digest of a plan's graph as another process traces it: whether the model goes through a set, whose order is another there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cost_models.errors import UserError
from planner.hash_seed import HASH_SEED, environment

__all__ = ["HASH_SEEDS", "SET_ORDER", "digest_elsewhere", "main"]

#: What is said of a model that does.
SET_ORDER = (
    "the model goes through a set, whose order other processes do not have: sort it (or set PYTHONHASHSEED, to plan and to run)"
)

#: Processes with these go through a set of a few texts in different orders.
HASH_SEEDS = (HASH_SEED, "1", "2")


def digest_elsewhere(plan: str | Path, hash_seed: str = HASH_SEED) -> str:
    """The digest that a process of its own, with that hash seed, gives for the graph of a plan in a file; empty if it gives none."""
    code = "import sys; sys.path[:] = sys.argv[2:]; from planner.retrace import main; main(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(plan), *sys.path],
        env=environment(hash_seed),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 and done.stdout.strip() else ""


def main(plan: str) -> None:
    """Prints the digest; exits with 2 where the model cannot be traced."""
    from planner.plan_file import graph_of, read_plan

    try:
        print(graph_of(read_plan(plan)).digest())
    except UserError as error:
        sys.exit(f"error: {error}")
