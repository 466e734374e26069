"""The digest of a plan's graph as traced by another process: it shows whether the model iterates
over a set, whose order differs there."""

from __future__ import annotations

import dis
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

from torch import nn

from planner.state.hash_seed import HASH_SEED, environment

__all__ = ["HASH_SEEDS", "SET_ORDER", "digest_elsewhere", "may_follow_a_set"]

#: The message for a model that does.
SET_ORDER = (
    "the model iterates over a set, whose order differs between processes: sort it (or set "
    "PYTHONHASHSEED to plan and to run)"
)

#: Processes with these hash seeds iterate over a set of a few strings in different orders.
HASH_SEEDS = (HASH_SEED, "1", "2")


def digest_elsewhere(plan: str | Path, hash_seed: str = HASH_SEED) -> str:
    """The digest of the graph of a plan in a file, traced in a new process with that hash seed;
    empty if it fails."""
    code = "import sys; sys.path[:] = sys.argv[2:]; from planner.plans.retraced import main; main(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(plan), *sys.path],
        env=environment(hash_seed),
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        done.stdout.strip().splitlines()[-1] if done.returncode == 0 and done.stdout.strip() else ""
    )


def may_follow_a_set(module: nn.Module) -> bool:
    """Whether the module, or the code of its classes, contains a set: the order of its ops may then
    be that of the set."""
    return any(
        _is_a_set(value) for part in module.modules() for value in vars(part).values()
    ) or any(_makes_a_set(code) for part in module.modules() for code in _codes_of(type(part)))


def _is_a_set(value: object, depth: int = 2) -> bool:
    if isinstance(value, list | tuple | dict) and depth:
        return any(
            _is_a_set(item, depth - 1)
            for item in (value.values() if isinstance(value, dict) else value)
        )
    return isinstance(value, set | frozenset) and len(value) > 1


def _codes_of(kind: type) -> Iterator[CodeType]:
    """The code of a class and its bases, without torch's."""
    for base in kind.__mro__:
        if not base.__module__.startswith(("torch", "builtins")):
            yield from (
                function.__code__
                for function in vars(base).values()
                if isinstance(function, FunctionType)
            )


def _makes_a_set(code: CodeType) -> bool:
    within = (const for const in code.co_consts if isinstance(const, CodeType))
    made = any(step.opname in ("BUILD_SET", "SET_ADD") for step in dis.get_instructions(code))
    constant = any(isinstance(const, frozenset) for const in code.co_consts)
    return (
        made
        or constant
        or not {"set", "frozenset"}.isdisjoint(code.co_names)
        or any(map(_makes_a_set, within))
    )
