"""The calls that calibration measures: which ops, at which shapes, and their work as the planner's
own rules count it.

Shapes span those of small training steps, from a launch to memory's bandwidth, with the skinny
products of recurrent layers and output heads. What an op needs from its forward (a convolution's
input, a pool's indices) is made by running that forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cost_models.device import OpRow
from cost_models.memory import dtype_bytes
from planner.graph.graph import Ref
from planner.kernels.formats import tensors_in
from planner.program.operators import callable_of
from planner.rules import RULES, Call, OpCost

__all__ = ["DEVICE_GEMM_SHAPES", "GEMM_SHAPES", "Case", "cases", "gemm_case", "row_of"]

#: m, n, k of products. Tall, wide, skinny (LSTM heads, classifiers), square; forward and both
#: products of a backward.
GEMM_SHAPES = (
    (16, 16, 16),
    (64, 64, 64),
    (64, 1, 64),
    (64, 64, 1),
    (1, 64, 64),
    (64, 10, 128),
    (128, 10, 64),
    (10, 128, 64),
    (256, 64, 256),
    (64, 4096, 256),
    (256, 4096, 64),
    (64, 1024, 4096),
    (256, 256, 256),
    (1024, 256, 256),
    (1024, 768, 256),
    (256, 256, 1024),
    (1024, 1024, 256),
    (1024, 256, 1024),
    (256, 1024, 1024),
    (256, 4096, 1024),
    (256, 1024, 4096),
    (4096, 1024, 128),
    (32, 2048, 2048),
    (256, 8192, 128),
    (512, 8192, 256),
    (512, 256, 8192),
    (8192, 256, 512),
    (1024, 1024, 1024),
    (4096, 256, 64),
    (128, 2048, 4096),
    (2048, 64, 64),
    (64, 64, 2048),
)

#: Products that fill a GPU, whose peak the largest of them measure: hidden layers, gates and output
#: heads of large models.
DEVICE_GEMM_SHAPES = (
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (8192, 768, 768),
    (8192, 3072, 768),
    (8192, 768, 3072),
    (768, 3072, 8192),
    (4096, 8192, 2048),
    (4096, 2048, 8192),
    (2048, 8192, 4096),
    (8192, 50_304, 768),
    (25_600, 256, 64),
)

Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one shape: `make()` gives new arguments; `shared` cases are measured again while
    other ranks compute too."""

    op: str
    make: Callable[[], Arguments]
    kwargs: tuple[tuple[str, Any], ...] = ()
    shared: bool = False

    def call(self) -> Callable[..., Any]:
        """The callable that the executor binds for the op."""
        function, kwargs = callable_of(self.op), dict(self.kwargs)
        return (lambda *arguments: function(*arguments, **kwargs)) if kwargs else function


def row_of(case: Case, arguments: Arguments, seconds: float) -> OpRow:
    """The measured row: the work is what the op's rule counts, as the planner will ask for it."""
    results = case.call()(*arguments)
    call = Call(
        op=case.op,
        args=_refs(arguments),
        kwargs=case.kwargs,
        operands=_shapes(arguments),
        results=_shapes(results),
    )
    if case.op == "shardwright.lstm_backward":
        call = _with_reserve(call)
    signature = RULES[case.op].signature(call)
    counted = signature.cost or (
        lambda sizes: OpCost(flops=0.0, elements=signature.elements(sizes))
    )
    cost = counted(signature.sizes)
    dtype = next(
        str(t.dtype).removeprefix("torch.") for t in tensors_in(results) if t.is_floating_point()
    )
    return OpRow(
        op=case.op,
        kind=signature.kind,
        dtype=dtype,
        flops=max(cost.flops, 1.0),
        nbytes=max(cost.elements, 1.0) * dtype_bytes(dtype),
        gemm=cost.gemm or (1, 1, 1, 1),
        steps=cost.steps,
        seconds=seconds,
    )


def _with_reserve(call: Call) -> Call:
    """The reserve is opaque; rules know it as [T, B, 5H]."""
    t, b, hidden = call.operands[-3]
    return replace(call, operands=(*call.operands[:-1], (t, b, 5 * hidden)))


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(t.shape) for t in tensors_in(value))


def _refs(arguments: Arguments) -> Arguments:
    counter = iter(range(1000))

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Ref(next(counter))
        return tuple(map(walk, value)) if isinstance(value, tuple | list) else value

    return tuple(map(walk, arguments))


# ---------------------------------------------------------------------------------------- the calls


def gemm_case(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, *, shared: bool = False
) -> Case:
    """A product whose operands lie as a backward's do: the first as it is, the second
    transposed."""
    m, n, k = shape

    def make() -> Arguments:
        return torch.randn(m, k, dtype=dtype, device=device), torch.randn(
            n, k, dtype=dtype, device=device
        ).t()

    return Case("aten.mm.default", make, shared=shared)


def cases(device: torch.device, *, quick: bool = False) -> list[Case]:
    """All calls but products. `quick` keeps the smallest of each family."""
    families = (
        _pointwise,
        _reductions,
        _norms,
        _losses,
        _embeddings,
        _convolutions,
        _attentions,
        _lstms,
        _copies,
    )
    out: list[Case] = []
    for family in families:
        found = list(family(device))  # smallest first
        out += found[:2] if quick else found
    return out


def _random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device)


def _several(device: torch.device, count: int, *shape: int) -> Arguments:
    return tuple(_random(device, *shape) for _ in range(count))


def _pointwise(device: torch.device) -> Iterator[Case]:
    tanh = (("approximate", "tanh"),)
    for n in (
        1 << 8,
        1 << 13,
        1 << 16,
        1 << 18,
        1 << 20,
        1 << 22,
        *_on_a_gpu(device, 1 << 24, 1 << 26),
    ):
        one, two, shared = (
            partial(_several, device, 1, n),
            partial(_several, device, 2, n),
            n in (1 << 16, 1 << 20),
        )
        yield Case("aten.add.Tensor", two, shared=shared)
        yield Case("aten.mul.Tensor", two)
        yield Case("aten.sub.Tensor", two)
        yield Case("aten.relu.default", one, shared=shared)
        yield Case("aten.threshold_backward.default", partial(_threshold, device, n))
        yield Case("aten.gelu.default", one, tanh, shared=shared)
        yield Case("aten.gelu_backward.default", two, tanh)


def _on_a_gpu(device: torch.device, *sizes: Any) -> tuple[Any, ...]:
    """Sizes that are measured on a GPU only: they leave its caches, and would take a CPU long."""
    return sizes if device.type == "cuda" else ()


def _threshold(device: torch.device, n: int) -> Arguments:
    return *_several(device, 2, n), 0


def _reductions(device: torch.device) -> Iterator[Case]:
    for shape in (
        (256, 64),
        (1024, 256),
        (256, 4096),
        (1024, 1024),
        (16384, 64),
        *_on_a_gpu(device, (8192, 4096), (16384, 8192)),
    ):
        yield Case(
            "aten.sum.dim_IntList",
            partial(_column_sum, device, shape),
            shared=shape == (1024, 1024),
        )
        yield Case("aten.sum.default", partial(_several, device, 1, *shape))
    for images in (
        (4, 32, 16, 16),
        (32, 32, 32, 32),
        (64, 64, 16, 16),
        *_on_a_gpu(device, (64, 64, 112, 112)),
    ):
        shared = images == (32, 32, 32, 32)
        yield Case(
            "aten.max_pool2d_with_indices.default", partial(_pool, device, images), shared=shared
        )
        yield Case(
            "aten.max_pool2d_with_indices_backward.default",
            partial(_pool_backward, device, images),
            shared=shared,
        )


def _column_sum(device: torch.device, shape: tuple[int, ...]) -> Arguments:
    """The gradient of a bias."""
    return _random(device, *shape), (0,), True


def _pool(device: torch.device, shape: tuple[int, ...]) -> Arguments:
    return _random(device, *shape), (2, 2)


def _pool_backward(device: torch.device, shape: tuple[int, ...]) -> Arguments:
    x = _random(device, *shape)
    out, indices = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])
    return torch.randn_like(out), x, (2, 2), (), (0, 0), (1, 1), False, indices


def _norms(device: torch.device) -> Iterator[Case]:
    for rows, width in (
        (64, 64),
        (256, 256),
        (1024, 256),
        (1024, 1024),
        *_on_a_gpu(device, (8192, 768), (16384, 4096)),
    ):
        yield Case(
            "aten.native_layer_norm.default",
            partial(_norm, device, rows, width),
            shared=rows == 1024,
        )
        yield Case(
            "aten.native_layer_norm_backward.default",
            partial(_norm_backward, device, rows, width),
            shared=rows == 1024,
        )


def _norm(device: torch.device, rows: int, width: int) -> Arguments:
    return _random(device, rows, width), (width,), *_several(device, 2, width), 1e-5


def _norm_backward(device: torch.device, rows: int, width: int) -> Arguments:
    x, shape, weight, bias, _ = _norm(device, rows, width)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, shape, weight, bias, 1e-5)
    return torch.randn_like(x), x, shape, mean, rstd, weight, bias, (True, True, True)


def _losses(device: torch.device) -> Iterator[Case]:
    for rows, classes in (
        (64, 10),
        (128, 1024),
        (256, 8192),
        (1024, 8192),
        *_on_a_gpu(device, (8192, 32_768)),
    ):
        yield Case(
            "shardwright.cross_entropy", partial(_loss, device, rows, classes), shared=rows == 256
        )
        yield Case(
            "shardwright.cross_entropy_backward",
            partial(_loss_backward, device, rows, classes),
            shared=rows == 256,
        )


def _loss(device: torch.device, rows: int, classes: int) -> Arguments:
    return _random(device, rows, classes), _ids(device, classes, rows), -100


def _loss_backward(device: torch.device, rows: int, classes: int) -> Arguments:
    logits, target, ignored = _loss(device, rows, classes)
    _, lse = callable_of("shardwright.cross_entropy")(logits, target, ignored)
    return torch.ones((), device=device), logits, target, lse, ignored


def _embeddings(device: torch.device) -> Iterator[Case]:
    """rows, width, tokens."""
    shapes = (
        (128, 64, 128),
        (10_000, 64, 6_400),
        (10_000, 64, 25_600),
        (8_192, 256, 512),
        (8_192, 256, 2_048),
    )
    for shape in (*shapes, *_on_a_gpu(device, (50_304, 768, 8_192))):
        shared = shape == (10_000, 64, 6_400)
        yield Case("aten.embedding.default", partial(_embedding, device, *shape), shared=shared)
        yield Case(
            "aten.embedding_dense_backward.default",
            partial(_embedding_backward, device, *shape),
            shared=shared,
        )


def _ids(device: torch.device, rows: int, tokens: int) -> Tensor:
    return torch.randint(0, rows, (tokens,), device=device)


def _embedding(device: torch.device, rows: int, width: int, tokens: int) -> Arguments:
    return _random(device, rows, width), _ids(device, rows, tokens)


def _embedding_backward(device: torch.device, rows: int, width: int, tokens: int) -> Arguments:
    return _random(device, tokens, width), _ids(device, rows, tokens), rows, -1, False


#: batch, input channels, height and width, output channels.
_CONVOLUTIONS = (
    (8, 8, 8, 16),
    (16, 3, 32, 32),
    (64, 3, 32, 32),
    (16, 32, 16, 64),
    (64, 32, 16, 64),
    (16, 64, 8, 128),
    (64, 64, 8, 128),
    (64, 16, 32, 32),
)
_WINDOW: Arguments = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)


def _convolutions(device: torch.device) -> Iterator[Case]:
    for shape in (
        *_CONVOLUTIONS,
        *_on_a_gpu(
            device, (64, 64, 56, 64), (64, 128, 28, 128), (64, 256, 14, 256), (64, 512, 7, 512)
        ),
    ):
        shared = shape == (64, 32, 16, 64)
        yield Case("aten.convolution.default", partial(_convolution, device, *shape), shared=shared)
        yield Case(
            "aten.convolution_backward.default",
            partial(_convolution_backward, device, *shape),
            shared=shared,
        )


def _convolution(
    device: torch.device, batch: int, channels: int, image: int, width: int
) -> Arguments:
    return (
        _random(device, batch, channels, image, image),
        _random(device, width, channels, 3, 3),
        None,
        *_WINDOW,
    )


def _convolution_backward(
    device: torch.device, batch: int, channels: int, image: int, width: int
) -> Arguments:
    """The images themselves (3 channels) have no gradient."""
    x, weight, *_ = _convolution(device, batch, channels, image, width)
    return (
        _random(device, batch, width, image, image),
        x,
        weight,
        (width,),
        *_WINDOW,
        (channels != 3, True, True),
    )


def _attentions(device: torch.device) -> Iterator[Case]:
    shapes = ((1, 32, 4, 32), (2, 128, 8, 32), (8, 128, 8, 32), (2, 256, 4, 64), (4, 128, 12, 64))
    for dtype in (
        torch.float32,
        *_on_a_gpu(device, torch.bfloat16),
    ):  # on a GPU two kernels, of unlike speed
        for shape in (*shapes, *_on_a_gpu(device, (8, 1024, 12, 64), (2, 2048, 32, 64))):
            shared = shape == (8, 128, 8, 32)
            yield Case(
                "shardwright.attention", partial(_attention, device, shape, dtype), shared=shared
            )
            yield Case(
                "shardwright.attention_backward",
                partial(_attention_backward, device, shape, dtype),
                shared=shared,
            )


def _attention(
    device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Arguments:
    """q, k, v are views of one tensor, as of a fused product."""
    batch, length, heads, depth = shape
    qkv = torch.ops.aten.split(
        _random(device, batch, length, 3 * heads * depth).to(dtype), heads * depth, 2
    )
    q, k, v = (t.reshape(shape).transpose(1, 2) for t in qkv)
    return q, k, v, True, depth**-0.5


def _attention_backward(
    device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Arguments:
    *qkv, causal, scale = _attention(device, shape, dtype)
    out, lse = callable_of("shardwright.attention")(*qkv, causal, scale)
    return torch.randn_like(out), *qkv, out, lse, causal, scale


def _lstms(device: torch.device) -> Iterator[Case]:
    """steps, batch, inputs, hidden."""
    small = ((8, 8, 16, 16), (100, 16, 64, 64), (100, 64, 64, 64), (100, 256, 64, 64))
    for shape in (*small, (50, 64, 64, 256), (20, 32, 512, 512)):
        shared = shape == (100, 64, 64, 64)
        yield Case("shardwright.lstm", partial(_lstm, device, *shape), shared=shared)
        yield Case(
            "shardwright.lstm_backward", partial(_lstm_backward, device, *shape), shared=shared
        )


def _lstm(device: torch.device, steps: int, batch: int, inputs: int, hidden: int) -> Arguments:
    x, state = (
        _random(device, batch, steps, inputs).transpose(0, 1),
        torch.zeros(batch, hidden, device=device),
    )
    weights = (_random(device, 4 * hidden, n).mul_(hidden**-0.5) for n in (inputs, hidden))
    return x, state, state, *weights, *_several(device, 2, 4 * hidden)


def _lstm_backward(
    device: torch.device, steps: int, batch: int, inputs: int, hidden: int
) -> Arguments:
    arguments = _lstm(device, steps, batch, inputs, hidden)
    y, _, c, reserve = callable_of("shardwright.lstm")(*arguments)
    return torch.randn_like(y), None, None, *arguments, y, c, reserve


def _copies(device: torch.device) -> Iterator[Case]:
    for rows, width in (
        (64, 64),
        (256, 256),
        (1024, 256),
        (4096, 256),
        *_on_a_gpu(device, (32_768, 1024)),
    ):
        yield Case("aten.cat.default", partial(_join, device, rows, width), shared=rows == 1024)
        yield Case("aten.select_backward.default", partial(_last_of, device, rows, width))


def _join(device: torch.device, rows: int, width: int) -> Arguments:
    return _several(device, 3, rows, width), 1


def _last_of(device: torch.device, rows: int, width: int) -> Arguments:
    return _random(device, rows, width), (rows, 16, width), 1, -1
