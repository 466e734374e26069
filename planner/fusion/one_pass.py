"""Whether a compiler makes one pass over memory of a body.

A value that two members read is computed in registers, or twice. If one of them reads it at another
place (a half of it, as rotary positions do), and it is not cheap to compute, the compiler writes it
and reads it again: then the body has a buffer inside, and is no better than two ops.
"""

from __future__ import annotations

from planner.fusion.fusible import NORMS
from planner.graph.fused import Body, Member

__all__ = ["is_one_pass"]

#: Ops that read their operand at another place than they write.
_PIECES = (
    "aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.slice.Tensor",
    "aten.select.int", "aten.unbind.int", "aten.cat.default", "aten.slice_backward.default",
)  # fmt: skip
#: Ops whose results a compiler does not compute twice on a CPU. Source: torch 2.13,
#: `_inductor/ir.py`, `mark_reuse`.
_DEAR = (
    "aten.exp.default", "aten.sigmoid.default", "aten.silu.default", "aten.silu_backward.default",
    "aten.softplus.default", "aten.mish.default", "aten._softmax.default",
)  # fmt: skip
#: Nor those that read more tensors than these. Source: `_inductor/config.py`,
#: `realize_reads_threshold`.
_MOST_READS = 4


def is_one_pass(body: Body) -> bool:
    """Whether no value in the body has to be written and read again."""
    writer = {slot: member for member in body.members for slot in member.results}
    return not any(
        member.op in _PIECES
        and any(slot in writer and not _is_cheap(slot, body, writer) for slot in member.operands)
        for member in body.members
    )


def _is_cheap(slot: int, body: Body, writer: dict[int | None, Member]) -> bool:
    """Whether a value may be computed again wherever it is read."""
    waiting, read = [slot], set[int]()
    while waiting:
        at = waiting.pop()
        if at < len(body.operands):
            read.add(at)
            continue
        member = writer[at]
        if member.op in _DEAR or member.op in NORMS:
            return False
        waiting.extend(member.operands)
    return len(read) <= _MOST_READS
