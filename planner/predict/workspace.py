"""What an op takes and gives back while it runs: bytes beside its operands and results.

Of ops of our own, read off their code (`planner.kernels`); of torch's CPU kernels, off the
allocator (torch 2.13, oneDNN 3.12, an x86-64 CPU with AVX-512, 2026-11-28), where another CPU may
take somewhat less. Ops that are not here take next to nothing. `tests/runtime/test_workspace.py`
runs each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cost_models.memory import dtype_bytes
from planner.graph.graph import Group
from planner.program.program import Compute, Ref

__all__ = ["Call", "Kind", "workspace"]

#: The shape of a local tensor, and the name of its dtype.
Kind = tuple[tuple[int, ...], str]

#: Sources: planner.kernels.cross_entropy, planner.kernels.dropout.
_LOSS_CHUNK = {True: 1 << 18, False: 1 << 27}
_DROPOUT_CHUNK = {True: 1 << 15, False: 1 << 22}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One op on one rank: the kinds of its arguments, by position, None of what is no tensor;
    that of its first result; `ranks`, over which a kernel itself communicates (1: it does not);
    `host`, whether a CPU runs it; `last`, its last argument."""

    arguments: tuple[Kind | None, ...]
    result: Kind
    ranks: int = 1
    host: bool = True
    last: object = None

    def kind(self, place: int) -> Kind:
        """The kind of an argument that is a tensor."""
        found = self.arguments[place]
        assert found is not None
        return found

    def nbytes(self, place: int) -> int:
        """Bytes of an argument."""
        return _nbytes(self.kind(place))

    def shape(self, place: int) -> tuple[int, ...]:
        """The shape of an argument."""
        return self.kind(place)[0]


def workspace(op: Compute, kinds: dict[int, Kind], sizes: tuple[int, ...], *, host: bool) -> int:
    """Bytes that an op holds at most beside its operands and results; `kinds` are those of all
    values, `sizes` the mesh's."""
    rule = _RULES.get(op.op)
    if rule is None:
        return _casts(op, kinds) if host and op.kind == "elementwise" else 0
    groups = [
        argument
        for argument in (*op.args, *(value for _, value in op.kwargs))
        if isinstance(argument, Group)
    ]
    return rule(
        Call(
            arguments=tuple([kinds[a.id] if isinstance(a, Ref) else None for a in op.args]),
            result=(op.shapes[0], op.dtypes[0]),
            ranks=math.prod(sizes[axis] for axis in groups[0].axes) if groups else 1,
            host=host,
            last=op.args[-1] if op.args else None,
        )
    )


def _nbytes(kind: Kind) -> int:
    return math.prod(kind[0]) * dtype_bytes(kind[1])


def _casts(op: Compute, kinds: dict[int, Kind]) -> int:
    """On a CPU operands of several formats are cast whole, one after the other held until the op
    has ended."""
    wide = dtype_bytes(op.dtypes[0])
    operands = [kinds[a.id] for a in op.args if isinstance(a, Ref)]
    if len(operands) < 2 or "float" not in op.dtypes[0]:
        return 0
    return sum(
        math.prod(shape) * wide for shape, dtype in operands if dtype != op.dtypes[0] and shape
    )


# ----------------------------------------------------------------------------------------- the loss


def _loss(call: Call) -> int:
    """A chunk's log-softmax, and the chunk in wider format; then what picks the targets' logits."""
    chunk, _, cast = _chunk(call, 0)
    return max(chunk + cast, 30 * call.shape(0)[0])


def _loss_backward(call: Call) -> int:
    """Of two chunks, since one is let go of when the next is there."""
    chunk, several, cast = _chunk(call, 1)
    rows, width = call.shape(1)[0], 8 if call.kind(1)[1] == "float64" else 4
    return (2 if several else 1) * (chunk + cast) + max(
        rows * width, 22 * rows if not several else 0
    )


def _chunk(call: Call, logits: int) -> tuple[int, bool, int]:
    """Bytes of a chunk of rows in the format of sums, whether there are several, and bytes of
    its cast."""
    (rows, classes), dtype = call.kind(logits)
    step = min(rows, max(1, _LOSS_CHUNK[call.host] // max(1, classes)))
    wide = 8 if dtype == "float64" else 4
    return (
        step * classes * wide,
        step < rows,
        step * classes * wide if dtype_bytes(dtype) < wide else 0,
    )


def _count(call: Call) -> int:
    return 9 * math.prod(call.shape(0))


# ---------------------------------------------------------------------------------------- attention


def _attention(call: Call) -> int:
    """Keys and values repeated for grouped queries, and the flash kernel's block of scores."""
    return 2 * _grouped(call, 0, 1) + _block(call, 0, 1)


def _attention_backward(call: Call) -> int:
    """The same, and the gradients of what was repeated, which are then summed and copied."""
    wide = _grouped(call, 1, 2)
    return 4 * wide + max(_block_backward(call, 1, 2), 2 * call.nbytes(2) if wide else 0)


def _masked(call: Call) -> int:
    """The same beside a bias in the format of scores; before there is a result, a boolean bias
    too, as its opposite."""
    bias, shape = _bias(call, 3, 0), call.kind(3)
    opposite = math.prod(shape[0]) if shape[1] == "bool" else 0
    return (
        2 * _grouped(call, 0, 1) + bias + max(_block(call, 0, 1), opposite - _nbytes(call.result))
    )


def _masked_backward(call: Call) -> int:
    """Without a gradient of the bias by the flash kernel; with one by three tables of scores."""
    if call.last is not True:
        wide, beside = _grouped(call, 1, 2), _block_backward(call, 1, 2) + _bias(call, 4, 1)
        return 4 * wide + max(0, beside - 2 * call.nbytes(2)) if wide else beside
    (batch, heads, length, _), dtype = call.kind(1)
    scores = batch * heads * length * call.shape(2)[2] * (8 if dtype == "float64" else 4)
    return 3 * scores + 2 * _grouped(call, 1, 2) + call.nbytes(1)


def _grouped(call: Call, q: int, k: int) -> int:
    """Bytes of keys that are repeated for each query head; 0 if none is."""
    heads, kept = call.shape(q)[1], call.shape(k)[1]
    return call.nbytes(k) // kept * heads if kept != heads else 0


def _block(call: Call, q: int, k: int) -> int:
    """The scores of a block of queries and keys, of a CPU thread. Source:
    ATen/native/cpu/FlashAttentionKernel.cpp, `cpu_flash_attention` (rows of 256, 64 or 32
    queries by their number, columns of 512 keys)."""
    if not call.host:
        return 0
    (_, _, queries, width), dtype = call.kind(q)
    rows, columns = _rows_and_columns(queries, call.shape(k)[2])
    return (rows * columns + 2 * rows + rows * width) * max(4, dtype_bytes(dtype))


def _block_backward(call: Call, q: int, k: int) -> int:
    """The weights of a block and their gradients, and a sum of each row;
    `cpu_flash_attention_backward` of the same file."""
    if not call.host:
        return 0
    rows, columns = _rows_and_columns(call.shape(q)[2], call.shape(k)[2])
    return (2 * rows * columns + rows) * max(4, dtype_bytes(call.kind(q)[1]))


def _rows_and_columns(queries: int, keys: int) -> tuple[int, int]:
    return 256 if queries >= 768 else 64 if queries >= 192 else 32, min(512, keys)


def _bias(call: Call, bias: int, q: int) -> int:
    """A bias in another format, as numbers of the scores'."""
    shape, dtype = call.kind(bias)
    wide = dtype_bytes(call.kind(q)[1])
    return math.prod(shape) * wide if dtype != call.kind(q)[1] else 0


# --------------------------------------------------------------------------------- recurrent layers


def _lstm(call: Call) -> int:
    """oneDNN: gates of all steps, the weights in its own order. The loop: the recurrent weights,
    transposed."""
    layer = _layer(call, 0)
    if not _by_onednn(call, 0):
        return call.nbytes(4)
    gates = layer.steps * layer.batch + layer.width + layer.hidden
    return (
        layer.size * (gates * 4 * layer.hidden + 3 * layer.batch * layer.hidden) * 65 // 64 + 8192
    )


def _lstm_backward(call: Call) -> int:
    """oneDNN: gates of all steps, the weights and their gradients in its own order (of layers as
    wide as their input, more), and the gradient of y as it wants it. The loop: the gradient of
    the gates, and the states before each step, of all ranks if split."""
    layer = _layer(call, 3)
    if not _by_onednn(call, 3):
        return layer.one * (4 + layer.before)
    weights = (layer.width + layer.hidden) * (21 if layer.width == layer.hidden else 18) // 10
    return (
        layer.size * (layer.steps * layer.batch + weights) * 4 * layer.hidden * 65 // 64 + layer.one
    )


def _recurrent(call: Call) -> int:
    """A whole GRU: what comes from the input, of all steps. Else lists of every step's results
    beside, and the weights transposed."""
    layer = _layer(call, 0)
    gated = call.shape(3)[0] == 3 * layer.hidden
    if gated and call.ranks == 1:
        return 3 * layer.one
    return (8 if gated else 2) * layer.one + call.nbytes(3)


def _recurrent_backward(call: Call) -> int:
    """A whole GRU: gradients of the gates, of all steps, and those of the weights in another
    order. Else lists of them, stacked."""
    layer = _layer(call, 2)
    gated = call.shape(5)[0] == 3 * layer.hidden
    if gated and call.ranks == 1:
        return (
            4 * layer.one
            + max(0, call.nbytes(4) - call.nbytes(5))
            + 4 * layer.batch * layer.hidden * layer.size
        )
    return ((12 if gated else 4) + layer.before) * layer.one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A recurrent layer: steps, samples, units that come in, hidden units of this rank, bytes of
    an element; `one`, bytes of the hidden units of all steps; `before`, how many times that the
    states before each step take."""

    steps: int
    batch: int
    width: int
    hidden: int
    size: int
    before: int

    @property
    def one(self) -> int:
        return self.steps * self.batch * self.hidden * self.size


def _layer(call: Call, x: int) -> _Layer:
    (steps, batch, width), dtype = call.kind(x)
    before = 1 + 2 * call.ranks if call.ranks > 1 else 1
    return _Layer(
        steps=steps,
        batch=batch,
        width=width,
        hidden=call.shape(x + 1)[1],
        size=dtype_bytes(dtype),
        before=before,
    )


def _by_onednn(call: Call, x: int) -> bool:
    """Source: planner.kernels.lstm: float32 on a CPU, whole layers with biases."""
    return (
        call.host
        and call.ranks == 1
        and call.kind(x)[1] == "float32"
        and call.arguments[x + 5] is not None
    )


# ------------------------------------------------------------------------------------------- others


def _convolution(call: Call) -> int:
    """oneDNN's own order of channels: of the image and the weights, then of the result. Products
    of one pixel need none."""
    if not call.host or math.prod(call.shape(1)[2:]) == 1:
        return 0
    image, weights, result = _image(call.kind(0)), call.nbytes(1), _padded(call.result)
    if image and call.shape(1)[0] < _BLOCK:
        return image + _nbytes(call.result) + 2 * weights
    return max(image + weights if image else 0, result)


def _convolution_backward(call: Call) -> int:
    if not call.host or math.prod(call.shape(2)[2:]) == 1:
        return 0
    return max(_padded(call.kind(0)) + _image(call.kind(1)), call.nbytes(2))


#: Channels that oneDNN keeps together.
_BLOCK = 16


def _image(image: Kind) -> int:
    """Bytes of the image in oneDNN's order, which a few channels are not brought to."""
    channels = image[0][1]
    return 0 if channels < 4 else _nbytes(image) if channels < _BLOCK else _padded(image)


def _padded(image: Kind) -> int:
    channels = image[0][1]
    return _nbytes(image) // channels * (-(-channels // _BLOCK) * _BLOCK)


def _norm_backward(call: Call) -> int:
    """With a group by ops that hold images: centred, products, what is subtracted."""
    return (4 if call.ranks > 1 else 1) * call.nbytes(1)


def _embedding(call: Call) -> int:
    return 14 * math.prod(call.shape(1))


def _embedding_backward(call: Call) -> int:
    return call.nbytes(0) + 9 * math.prod(call.shape(1))


def _dropout(call: Call) -> int:
    """A chunk of draws in 32 bits, twice, before the result is there; a hash for each row and
    column."""
    shape = call.shape(0)
    numel, columns = math.prod(shape), shape[-1] if shape else 1
    hashes = 4 * (numel // max(1, columns) + columns)
    return hashes + max(0, 8 * min(numel, _DROPOUT_CHUNK[call.host]) - _nbytes(call.result))


_RULES: dict[str, Callable[[Call], int]] = {
    "aten.convolution.default": _convolution,
    "aten.convolution_backward.default": _convolution_backward,
    "shardwright.attention": _attention,
    "shardwright.attention_backward": _attention_backward,
    "shardwright.batch_norm_backward": _norm_backward,
    "shardwright.count_targets": _count,
    "shardwright.cross_entropy": _loss,
    "shardwright.cross_entropy_backward": _loss_backward,
    "shardwright.dropout": _dropout,
    "shardwright.embedding_backward_shard": _embedding_backward,
    "shardwright.embedding_shard": _embedding,
    "shardwright.lstm": _lstm,
    "shardwright.lstm_backward": _lstm_backward,
    "shardwright.masked_attention": _masked,
    "shardwright.masked_attention_backward": _masked_backward,
    "shardwright.recurrent": _recurrent,
    "shardwright.recurrent_backward": _recurrent_backward,
}
