"""The sums over microbatches whose terms are reduced first, in every microbatch (ZeRO-2 and 3).

Nothing reads such a sum before the update, so it is added to when the message has had time to
arrive, beside backward; not at once, which would wait for the links, nor at the end of the
microbatch, until when all reduced terms would be held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from planner.program.program import ACCUMULATE, Compute, Instruction, reads, writes

__all__ = ["summing", "term_of"]


def summing(instructions: Sequence[Instruction]) -> set[str]:
    """The ids of sums over microbatches, and of views that only these read."""
    found: set[str] = set()
    if not any(map(_is_sum, instructions)):
        return found  # at once, for a step without microbatches
    readers: dict[int, set[str]] = defaultdict(set)
    for one in reversed(instructions):
        for value in reads(one):
            readers[value].add(one.id)
        own = {name for value in writes(one) for name in readers[value]}
        view = isinstance(one, Compute) and one.kind == "view" and bool(one.operands)
        if _is_sum(one) or (view and own and own <= found):
            found.add(one.id)
    return found


def _is_sum(one: Instruction) -> bool:
    return isinstance(one, Compute) and one.op == ACCUMULATE


def term_of(one: Instruction) -> int:
    """The value that a sum adds, or that a view is of: the last that it reads."""
    return reads(one)[-1]
