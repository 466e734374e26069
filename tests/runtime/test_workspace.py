"""What ops take and give back while they run, against torch's allocator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from planner import kernels
from planner.kernels.formats import tensors_in
from planner.predict.kernel_call import Kind
from planner.predict.workspace import workspace
from planner.program.operators import callable_of
from planner.program.program import Compute, Ref
from planner.torch_private.allocator import allocations


def randn(*shape: int) -> Tensor:
    return torch.randn(shape)


def heads_inside(*shape: int) -> Tensor:
    """[B, H, T, D] that lies as [B, T, H, D], as a projection gives it."""
    batch, heads, length, width = shape
    return torch.randn(batch, length, heads, width).transpose(1, 2)


def hashes(*shape: int) -> tuple[Tensor, Tensor]:
    return kernels.drop_hashes(torch.tensor(3), shape, 1)


def loss(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return torch.randn(rows, classes, dtype=dtype), torch.randint(0, classes, (rows,)), -100


def loss_backward(*sizes: Any) -> tuple[Any, ...]:
    logits, target, ignored = loss(*sizes)
    return torch.ones(()), logits, target, torch.logsumexp(logits.float(), 1), ignored


def convolution(
    channels: int,
    outputs: int,
    image: int,
    kernel: int = 3,
    dtype: torch.dtype = torch.float32,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    transposed: bool = False,
) -> tuple[Any, ...]:
    shape = (channels, outputs) if transposed else (outputs, channels)
    weight = randn(shape[0], shape[1] // groups, kernel, kernel).to(dtype)
    padding = (dilation * (kernel // 2),) * 2
    settings = (stride,) * 2, padding, (dilation,) * 2, transposed, (0, 0), groups
    return (randn(4, channels, image, image).to(dtype), weight, None, *settings)


def convolution_backward(
    channels: int, outputs: int, image: int, *more: Any, **settings_: Any
) -> tuple[Any, ...]:
    arguments = convolution(channels, outputs, image, *more, **settings_)
    image_, weight, _, *settings = arguments
    gradient = torch.ops.aten.convolution.default(*arguments)
    return (
        randn(*gradient.shape).to(gradient.dtype),
        image_,
        weight,
        (0,),
        *settings,
        (
            True,
            True,
            False,
        ),
    )


def attention(kv_heads: int) -> tuple[Any, ...]:
    keys = [heads_inside(2, kv_heads, 128, 64) for _ in range(2)]
    return heads_inside(2, 8, 128, 64), *keys, True, 0.125


def attention_backward(kv_heads: int) -> tuple[Any, ...]:
    q, k, v, causal, scale = attention(kv_heads)
    return (
        heads_inside(2, 8, 128, 64),
        q,
        k,
        v,
        *kernels.attention(q, k, v, causal, scale),
        causal,
        scale,
    )


def masked(kv_heads: int) -> tuple[Any, ...]:
    q, k, v, _, scale = attention(kv_heads)
    return q, k, v, randn(2, 1, 128, 128) > 0, False, scale


def masked_backward(kv_heads: int, wanted: bool) -> tuple[Any, ...]:
    q, k, v, seen, causal, scale = masked(kv_heads)
    bias = randn(1, 8, 128, 128) if wanted else seen
    out, lse = kernels.masked_attention(q, k, v, bias, causal, scale)
    return heads_inside(2, 8, 128, 64), q, k, v, bias, out, lse, causal, scale, wanted


def layer(
    gates: int, steps: int, batch: int, width: int, hidden: int, states: int
) -> tuple[Any, ...]:
    weights = (
        randn(gates * hidden, width),
        randn(gates * hidden, hidden),
        randn(gates * hidden),
        randn(gates * hidden),
    )
    return randn(steps, batch, width), *(randn(batch, hidden) for _ in range(states)), *weights


def lstm_backward(*sizes: int) -> tuple[Any, ...]:
    arguments = layer(4, *sizes, 2)
    y, _, c, reserve = kernels.lstm_forward(*arguments)
    return torch.randn_like(y), None, None, *arguments, y, c, reserve


def recurrent(gates: int, mode: str, *sizes: int) -> tuple[Any, ...]:
    return *layer(gates, *sizes, 1), mode


def recurrent_backward(gates: int, mode: str, *sizes: int) -> tuple[Any, ...]:
    x, h0, w_ih, w_hh, b_ih, b_hh, _ = recurrent(gates, mode, *sizes)
    y, _, reserve = kernels.recurrent_forward(x, h0, w_ih, w_hh, b_ih, b_hh, mode)
    return torch.randn_like(y), None, x, h0, w_ih, w_hh, y, reserve, mode


BF16, FP16 = torch.bfloat16, torch.float16
#: Convolutions in float16.
SETTINGS: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"dilation": 2},
    {"groups": 4},
    {"groups": 32},
    {"transposed": True},
]
#: Ops of oneDNN's whose workspace is bounded, not known.
BOUNDED = (
    "aten.convolution.default",
    "aten.convolution_backward.default",
    "shardwright.lstm",
    "shardwright.lstm_backward",
)
CASES: list[tuple[str, Callable[..., tuple[Any, ...]], tuple[Any, ...]]] = [
    ("shardwright.cross_entropy", loss, (512, 4096)),
    ("shardwright.cross_entropy", loss, (512, 4096, BF16)),
    ("shardwright.cross_entropy_backward", loss_backward, (512, 4096)),
    ("shardwright.cross_entropy_backward", loss_backward, (64, 2048)),
    ("shardwright.attention", attention, (2,)),
    ("shardwright.attention_backward", attention_backward, (2,)),
    ("shardwright.masked_attention", masked, (8,)),
    ("shardwright.masked_attention", masked, (2,)),
    ("shardwright.masked_attention_backward", masked_backward, (8, False)),
    ("shardwright.masked_attention_backward", masked_backward, (2, False)),
    ("shardwright.masked_attention_backward", masked_backward, (8, True)),
    (
        "shardwright.batch_norm_backward",
        lambda: (*(randn(8, 32, 32, 32),) * 2, *(torch.ones(32),) * 3, 1e-5),
        (),
    ),
    ("shardwright.drop_by", lambda: (randn(512, 128), *hashes(512, 128), 0.1), ()),
    ("shardwright.dropout", lambda: (randn(512, 128), torch.tensor(3), 0.1, 1), ()),
    ("shardwright.lstm", layer, (4, 16, 8, 128, 128, 2)),
    ("shardwright.lstm", layer, (4, 16, 8, 64, 128, 2)),
    ("shardwright.lstm_backward", lstm_backward, (16, 8, 128, 128)),
    ("shardwright.lstm_backward", lstm_backward, (16, 8, 64, 128)),
    ("shardwright.recurrent", recurrent, (3, "gru", 16, 8, 64, 128)),
    ("shardwright.recurrent", recurrent, (1, "tanh", 16, 8, 64, 128)),
    ("shardwright.recurrent_backward", recurrent_backward, (3, "gru", 16, 8, 64, 128)),
    ("shardwright.recurrent_backward", recurrent_backward, (3, "gru", 16, 8, 256, 128)),
    ("shardwright.recurrent_backward", recurrent_backward, (1, "tanh", 16, 8, 64, 128)),
    (
        "shardwright.embedding_shard",
        lambda: (randn(100, 4), torch.randint(0, 200, (64, 64)), 50, 200),
        (),
    ),
    (
        "shardwright.embedding_backward_shard",
        lambda: (randn(64, 64, 32), torch.randint(0, 200, (64, 64)), 100, 50),
        (),
    ),
    ("aten.convolution.default", convolution, (32, 32, 32)),
    ("aten.convolution_backward.default", convolution_backward, (32, 32, 32)),
    ("aten.convolution.default", convolution, (32, 32, 32, 1, BF16)),
    ("aten.convolution_backward.default", convolution_backward, (32, 32, 32, 3, BF16)),
    ("aten.convolution_backward.default", convolution_backward, (64, 64, 8, 3, BF16)),
    *(
        (f"aten.{name}.default", partial(make, **settings), (32, 32, 32, kernel, FP16))
        for name, make in (
            ("convolution", convolution),
            ("convolution_backward", convolution_backward),
        )
        for kernel, settings in (*((3, given) for given in SETTINGS), (1, {}), (1, {"stride": 2}))
    ),
    ("aten.mul.Tensor", lambda: (randn(256, 256), torch.ones(256, 256, dtype=torch.bool)), ()),
]


@pytest.mark.parametrize(
    ("op", "make", "sizes"),
    CASES,
    ids=[f"{op.split('.')[1]}-{i}" for i, (op, _, _) in enumerate(CASES)],
)
def test_workspace_is_what_the_allocator_sees(
    op: str, make: Callable[..., tuple[Any, ...]], sizes: tuple[Any, ...]
) -> None:
    """Within 6 %, and 4 KiB; oneDNN takes less at some sizes."""
    arguments = make(*sizes)
    measured, results = transient(op, arguments)
    kinds: dict[int, Kind] = {}

    def named(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        kinds[len(kinds)] = kind_of(argument)
        return Ref(len(kinds) - 1)

    compute = Compute(
        id="one",
        op=op,
        args=tuple(map(named, arguments)),
        results=tuple(range(100, 100 + len(results))),
        kind="elementwise",
        shapes=tuple(shape for shape, _ in results),
        dtypes=tuple(dtype for _, dtype in results),
        phase="forward",
    )
    predicted = workspace(compute, kinds, (1,), host=True)
    assert predicted >= 0.94 * measured - 4096
    assert predicted <= (2.2 if op in BOUNDED else 1.06) * measured + 4096


def kind_of(tensor: Tensor) -> Kind:
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


@torch.no_grad()
def transient(op: str, arguments: tuple[Any, ...]) -> tuple[int, list[Kind]]:
    """The most that is allocated during a call beside its results, and the kinds of these."""
    call = callable_of(op)
    call(*arguments)
    with allocations(torch.device("cpu")) as found:
        out = call(*arguments)
    results = list(tensors_in(out if isinstance(out, tuple | list) else (out,)))
    held = sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in results}.values()
    )
    return max(nbytes for _, nbytes in found.samples) - found.before - held, [
        kind_of(t) for t in results
    ]
