"""The workspace of an op: the bytes that it allocates and frees while it runs, beside its operands
and results.

For our own ops, derived from their code (`planner.kernels`); for torch's CPU kernels, measured with
the allocator (torch 2.13, oneDNN 3.12, an x86-64 CPU with AVX-512, 2026-11-28); another CPU may
take somewhat less. Ops that are not here take next to nothing. `tests/runtime/test_workspace.py`
runs each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cost_models.memory import dtype_bytes
from planner.graph.graph import Group
from planner.predict.attention_workspace import (
    attention,
    attention_backward,
    masked,
    masked_backward,
)
from planner.predict.convolution_workspace import convolution, convolution_backward
from planner.predict.kernel_call import KernelCall, Kind, nbytes_of
from planner.predict.recurrent_workspace import lstm, lstm_backward, recurrent, recurrent_backward
from planner.program.program import Compute, Ref

__all__ = ["workspace"]

#: Sources: planner.kernels.cross_entropy, planner.kernels.dropout.
_LOSS_CHUNK = {True: 1 << 18, False: 1 << 27}
_DROPOUT_CHUNK = {True: 1 << 15, False: 1 << 22}


def workspace(op: Compute, kinds: dict[int, Kind], sizes: tuple[int, ...], *, host: bool) -> int:
    """The most bytes that an op holds beside its operands and results; `kinds` are those of all
    values, `sizes` those of the mesh's axes."""
    rule = _RULES.get(op.op)
    if rule is None:
        return _casts(op, kinds) if host and op.kind == "elementwise" else 0
    groups = [
        argument
        for argument in (*op.args, *(value for _, value in op.kwargs))
        if isinstance(argument, Group)
    ]
    return rule(
        KernelCall(
            arguments=tuple([kinds[a.id] if isinstance(a, Ref) else None for a in op.args]),
            result=(op.shapes[0], op.dtypes[0]),
            ranks=math.prod(sizes[axis] for axis in groups[0].axes) if groups else 1,
            host=host,
            settings=op.args,
        )
    )


def _casts(op: Compute, kinds: dict[int, Kind]) -> int:
    """Bytes of casts: on a CPU, operands of different dtypes are cast whole, and the casts are held
    until the op has ended."""
    wide = dtype_bytes(op.dtypes[0])
    operands = [kinds[a.id] for a in op.args if isinstance(a, Ref)]
    if len(operands) < 2 or "float" not in op.dtypes[0]:
        return 0
    return sum(
        math.prod(shape) * wide for shape, dtype in operands if dtype != op.dtypes[0] and shape
    )


def _loss(call: KernelCall) -> int:
    """A chunk's log-softmax, and the chunk in a wider dtype; then the picking of targets'
    logits."""
    chunk, _, cast = _chunk(call, 0)
    return max(chunk + cast, 30 * call.shape(0)[0])


def _loss_backward(call: KernelCall) -> int:
    """The temporaries of two chunks, since one is freed only when the next is there."""
    chunk, several, cast = _chunk(call, 1)
    rows, width = call.shape(1)[0], 8 if call.kind(1)[1] == "float64" else 4
    return (2 if several else 1) * (chunk + cast) + max(
        rows * width, 22 * rows if not several else 0
    )


def _chunk(call: KernelCall, logits: int) -> tuple[int, bool, int]:
    """Bytes of a chunk of rows in the dtype of sums, whether there are several chunks, and bytes of
    its cast."""
    (rows, classes), dtype = call.kind(logits)
    step = min(rows, max(1, _LOSS_CHUNK[call.host] // max(1, classes)))
    wide = 8 if dtype == "float64" else 4
    return (
        step * classes * wide,
        step < rows,
        step * classes * wide if dtype_bytes(dtype) < wide else 0,
    )


def _count(call: KernelCall) -> int:
    return 9 * math.prod(call.shape(0))


def _norm_backward(call: KernelCall) -> int:
    """With a group, by ops that hold whole images: centred, products, the part subtracted."""
    return (4 if call.ranks > 1 else 1) * call.nbytes(1)


def _embedding(call: KernelCall) -> int:
    return 14 * math.prod(call.shape(1))


def _embedding_backward(call: KernelCall) -> int:
    return call.nbytes(0) + 9 * math.prod(call.shape(1))


def _drop_by(call: KernelCall) -> int:
    """Two copies of a chunk of 32-bit draws, before the result is allocated."""
    chunk = min(math.prod(call.shape(0)), _DROPOUT_CHUNK[call.host])
    return max(0, 8 * chunk - nbytes_of(call.result))


def _dropout(call: KernelCall) -> int:
    """A hash per row and per column, beside what `drop_by` takes."""
    shape = call.shape(0)
    numel, columns = math.prod(shape), shape[-1] if shape else 1
    hashes = 4 * (numel // max(1, columns) + columns)
    return hashes + _drop_by(call)


_RULES: dict[str, Callable[[KernelCall], int]] = {
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolution_backward,
    "shardwright.attention": attention,
    "shardwright.attention_backward": attention_backward,
    "shardwright.batch_norm_backward": _norm_backward,
    "shardwright.count_targets": _count,
    "shardwright.cross_entropy": _loss,
    "shardwright.cross_entropy_backward": _loss_backward,
    "shardwright.drop_by": _drop_by,
    "shardwright.dropout": _dropout,
    "shardwright.embedding_backward_shard": _embedding_backward,
    "shardwright.embedding_shard": _embedding,
    "shardwright.lstm": lstm,
    "shardwright.lstm_backward": lstm_backward,
    "shardwright.masked_attention": masked,
    "shardwright.masked_attention_backward": masked_backward,
    "shardwright.recurrent": recurrent,
    "shardwright.recurrent_backward": recurrent_backward,
}
