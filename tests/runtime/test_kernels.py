"""Every canonical op against plain torch: forward and all gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from cost_models.errors import NotTraceable
from planner import kernels
from planner.kernels import Canonical, embedding_backward_shard, embedding_shard

#: The module: the package has a function of its name.
attention_kernels = importlib.import_module("planner.kernels.attention")
kernel = importlib.import_module("planner.kernels.cross_entropy")

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def outputs_and_gradients(f: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    """The outputs of `f` and the gradients, of a fixed random projection of them, of its
    floating-point inputs."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    outs = f(*leaves)
    outs = list(outs) if isinstance(outs, (tuple, list)) else [outs]
    generator = torch.Generator().manual_seed(1)
    scalar = sum(
        (o * torch.randn(o.shape, dtype=o.dtype, generator=generator).to(o.device)).sum()
        for o in outs
    )
    grads = torch.autograd.grad(scalar, [leaf for leaf in leaves if leaf.requires_grad])
    return [o.detach() for o in outs] + list(grads)


def check_same(f: Callable[..., Any], *inputs: Tensor) -> None:
    """`f` gives the same with and without Canonical."""
    plain = outputs_and_gradients(f, *inputs)
    with Canonical():
        ours = outputs_and_gradients(f, *inputs)
    tolerance = TOLERANCE[plain[0].dtype]
    assert len(plain) == len(ours)
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(
            b, a, rtol=tolerance, atol=tolerance * max(1.0, a.abs().max().item())
        )


@DTYPES
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_lstm(
    dtype: torch.dtype, num_layers: int, bidirectional: bool, batch_first: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    module = torch.nn.LSTM(
        3,
        4,
        num_layers,
        bias=bias,
        batch_first=batch_first,
        bidirectional=bidirectional,
        dtype=dtype,
    )
    names, weights = zip(*module.named_parameters(), strict=True)
    states = torch.randn(2, num_layers * (1 + bidirectional), 5, 4, dtype=dtype)
    x = torch.randn((5, 6, 3) if batch_first else (6, 5, 3), dtype=dtype)

    def run(x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), (x, (h0, c0))
        )
        return y, h, c

    check_same(run, x, states[0], states[1], *weights)


def test_lstm_packed_is_refused() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2)])
    with Canonical(), pytest.raises(NotTraceable, match="packed"):
        torch.nn.LSTM(2, 2)(packed)


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(7, 11), (2, 11, 3), (2, 11, 3, 2), (300, 1000)])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_cross_entropy(
    dtype: torch.dtype, reduction: str, shape: tuple[int, ...], ignore_index: int
) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(shape, dtype=dtype)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    target.view(-1)[:2] = ignore_index

    def run(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction=reduction, ignore_index=ignore_index)

    check_same(run, logits)


@DTYPES
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("length", "keys", "dim", "value_dim"), [(6, 6, 4, 4), (5, 7, 4, 4), (5, 5, 4, 3)]
)
def test_attention(
    dtype: torch.dtype, is_causal: bool, length: int, keys: int, dim: int, value_dim: int
) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, length, dim, dtype=dtype), torch.randn(2, 3, keys, dim, dtype=dtype)
    v = torch.randn(2, 3, keys, value_dim, dtype=dtype)
    check_same(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal), q, k, v
    )
    check_same(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=0.3),
        q,
        k,
        v,
    )


def test_weights_sum_to_one_where_a_finite_bias_masks_every_key() -> None:
    """As libraries write masks: the rows of padded queries are -1e38 throughout."""
    q, k, v = (torch.randn(1, 2, 3, 4, dtype=torch.float32).requires_grad_() for _ in range(3))
    bias = torch.zeros(1, 1, 3, 3)
    bias[..., 1, :] = -2.4e38
    ours = torch.ops.shardwright.masked_attention(q, k, v, bias, False, 0.5)[0]
    with sdpa_kernel(SDPBackend.MATH):
        right = F.scaled_dot_product_attention(q, k, v, bias, scale=0.5)
    weight = torch.randn(ours.shape)
    torch.testing.assert_close(ours, right)
    for a, b in zip(
        *(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, right)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(
    "read", ["all", "last"]
)  # backward gets the gradient of y, or of the last state alone
def test_gru_layer(bias: bool, steps: int, read: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.GRU(3, 4, bias=bias, dtype=torch.float64)
    weights = [*layer.parameters(), *([None, None] if not bias else [])]
    # Strides as with `batch_first`.
    x = torch.randn(2, steps, 3, dtype=torch.float64).transpose(0, 1).requires_grad_()
    h0 = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    y, last, _ = torch.ops.shardwright.recurrent(x, h0[0], *weights, "gru")
    right_y, right_last = layer(x, h0)
    operands = [x, h0, *layer.parameters()]
    torch.testing.assert_close(y, right_y)
    torch.testing.assert_close(last, right_last[0])
    weight = torch.randn_like(y)
    outs = (
        ((y * weight).sum(), (right_y * weight).sum())
        if read == "all"
        else ((last * weight[-1]).sum(), (right_last * weight[-1]).sum())
    )
    for a, b in zip(*(torch.autograd.grad(out, operands) for out in outs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "shift", [0.0, 100.0]
)  # of scores: of large ones lse tells too little, and backward takes another way
@pytest.mark.parametrize("learned", [False, True])
def test_attention_with_rows_that_see_nothing(is_causal: bool, shift: float, learned: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    seen = torch.tensor([[True, True, False, True, True], [False] * 5])[:, None, None, :]
    bias = (
        torch.where(seen, torch.randn(2, 1, 5, 5, dtype=torch.float64) + shift, -torch.inf)
        if learned
        else seen
    )
    operands = [q, k, v, *([bias.requires_grad_()] if learned else [])]
    ours = torch.ops.shardwright.masked_attention(q, k, v, bias, is_causal, 0.5)[0]
    hidden = torch.zeros_like(seen).expand(2, 1, 5, 5).masked_fill(~seen, True) | torch.ones(
        5, 5
    ).bool().triu(1).logical_and(torch.tensor(is_causal))
    scores = (q @ k.mT * 0.5 + (bias if learned else shift)).masked_fill(hidden, -torch.inf)
    right = torch.softmax(scores[:1], -1) @ v[:1]
    torch.testing.assert_close(ours[:1], right)
    assert not ours[1].any()
    weight = torch.randn(ours.shape, dtype=torch.float64)
    mine = torch.autograd.grad((ours * weight).sum(), operands)
    theirs = torch.autograd.grad((right * weight[:1]).sum(), operands)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("heads", [3, 6])
def test_attention_backward_does_not_mind_how_its_operands_lie(heads: int) -> None:
    """What a collective delivers may lie in any order; flash kernels read rows without looking."""
    q, (k, v) = (
        torch.randn(2, heads, 8, 4, dtype=torch.float64),
        torch.randn(2, 2, 3, 8, 4, dtype=torch.float64),
    )
    out, lse = kernels.attention(q, k, v, True, 0.5)
    tensors = [torch.randn_like(q), q, k, v, out, lse]
    plain = kernels.attention_backward(*tensors, True, 0.5)
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    assert all(t.stride(-1) != 1 for t in turned)
    for a, b in zip(kernels.attention_backward(*turned, True, 0.5), plain, strict=True):
        torch.testing.assert_close(a, b)
    # The gradient alone, and the output alone: q, k and v still choose the flash kernel.
    for at in (0, 4):
        one = [turned[i] if i == at else t for i, t in enumerate(tensors)]
        for a, b in zip(kernels.attention_backward(*one, True, 0.5), plain, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [(8,), (6, 8)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("eps", [None, 1e-2])
def test_rms_norm(
    dtype: torch.dtype, norm: tuple[int, ...], affine: bool, eps: float | None
) -> None:
    """Values so small that the default of eps, which is that of the format of sums, is seen."""
    torch.manual_seed(0)
    x, weight = (
        torch.randn(4, 6, 8, dtype=dtype) / 1000,
        (torch.randn(norm, dtype=dtype),) if affine else (),
    )

    def run(x: Tensor, *weight: Tensor) -> Tensor:
        return F.rms_norm(x, norm, *(weight or (None,)), eps)

    plain = outputs_and_gradients(run, x, *weight)
    with Canonical():
        ours = outputs_and_gradients(run, x, *weight)
    tolerance = {**TOLERANCE, torch.bfloat16: 0.02}[dtype]
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * a.abs().max().item())


@pytest.mark.parametrize("length", [32, 200])
def test_attention_backward_in_bfloat16(length: int) -> None:
    """Against float64 on the same numbers, shorter and longer than where the kernel changes."""
    torch.manual_seed(0)
    q, grad = torch.randn(2, 1, 4, length, 16).bfloat16()
    k, v = torch.randn(2, 1, 2, length, 16).bfloat16()
    short = kernels.attention(q, k, v, True, 0.25)
    found = kernels.attention_backward(grad, q, k, v, *short, True, 0.25)
    wide = [t.double() for t in (q, k, v)]
    right = kernels.attention_backward(
        grad.double(), *wide, *kernels.attention(*wide, True, 0.25), True, 0.25
    )
    for a, b in zip(found, right, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).abs().max() <= 0.02 * b.abs().max()


def test_embedding_shards_add_up() -> None:
    weight, ids = torch.randn(12, 3, dtype=torch.float64), torch.randint(0, 12, (4, 5))
    parts = [embedding_shard(weight[at : at + 4], ids, at, 12) for at in (0, 4, 8)]
    torch.testing.assert_close(sum(parts), F.embedding(ids, weight), rtol=0, atol=0)
    grad = torch.randn(4, 5, 3, dtype=torch.float64)
    whole = torch.ops.aten.embedding_dense_backward(grad, ids, 12, -1, False)
    rows = [embedding_backward_shard(grad, ids, 4, at) for at in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(rows), whole)


def test_tracing_shows_one_node_forward_and_one_backward() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.lstm(x)[0].unsqueeze(1)
            return F.scaled_dot_product_attention(y, y, y, is_causal=True).squeeze(1)

    model = Model()
    parameters = dict(model.named_parameters())

    def step(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Any:
        out = torch.func.functional_call(model, parameters, (x,))
        return torch.autograd.grad(
            F.cross_entropy(out.flatten(0, 1), target), list(parameters.values())
        )

    with Canonical():
        graph = make_fx(step, tracing_mode="fake")(
            parameters, torch.zeros(2, 3, 4), torch.zeros(6, dtype=torch.int64)
        )
    ours = [node.target.name() for node in graph.graph.nodes if "shardwright" in str(node.target)]
    forward = ["lstm", "attention", "cross_entropy"]
    backward = [f"{name}_backward" for name in reversed(forward)]
    assert ours == [f"shardwright::{name}" for name in (*forward, "count_targets", *backward)]
    assert not any(
        "log_softmax" in str(node.target) or "flash" in str(node.target)
        for node in graph.graph.nodes
    )


def test_cross_entropy_in_half_precision() -> None:
    logits, target = torch.randn(9, 13).bfloat16(), torch.randint(0, 13, (9,))
    plain = outputs_and_gradients(lambda x: F.cross_entropy(x, target), logits)
    with Canonical():
        ours = outputs_and_gradients(lambda x: F.cross_entropy(x, target), logits)
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kernels_on_cuda_equal_those_on_cpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 40, 16, dtype=dtype)
    x, h0, c0 = torch.randn(6, 5, 8, dtype=dtype), *torch.randn(2, 5, 16, dtype=dtype)
    weights = [torch.randn(size, dtype=dtype) / 4 for size in ((64, 8), (64, 16), (64,), (64,))]
    logits, target = torch.randn(30, 50, dtype=dtype), torch.randint(0, 50, (30,))
    cases: list[tuple[Callable[..., Any], list[Tensor]]] = [
        (lambda *a: torch.ops.shardwright.attention(*a, True, 0.25)[0], [q, k, v]),
        (
            lambda *a: torch.ops.shardwright.attention(*a, True, 0.25)[0],
            [q, k[:, :, :24], v[:, :, :24]],
        ),
        (lambda *a: torch.ops.shardwright.attention(*a, True, 0.25)[0], [q[:, :, :24], k, v]),
        (lambda *a: torch.ops.shardwright.attention(*a, False, 0.25)[0], [q, k[:, :1], v[:, :1]]),
        (lambda *a: torch.ops.shardwright.lstm(*a)[:3], [x, h0, c0, *weights]),
        (lambda a: torch.ops.shardwright.cross_entropy(a, target.to(a.device), -100)[0], [logits]),
    ]
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-9, torch.bfloat16: 5e-2}[dtype]
    for f, inputs in cases:
        whole = zip(
            outputs_and_gradients(f, *inputs),
            outputs_and_gradients(f, *(t.cuda() for t in inputs)),
            strict=True,
        )
        for a, b in whole:
            torch.testing.assert_close(
                b.cpu(), a, rtol=tolerance, atol=tolerance * max(1.0, a.abs().max().item())
            )


@pytest.mark.parametrize(
    ("dtype", "lengths", "depth", "causal", "capability", "kernel"),
    [
        (torch.bfloat16, (8, 8), 64, True, (9, 0), "flash"),
        (
            torch.bfloat16,
            (8, 6),
            64,
            True,
            (9, 0),
            "efficient",
        ),  # flash counts causal keys from the last
        (torch.bfloat16, (24, 40), 64, True, (9, 0), "efficient"),
        (torch.bfloat16, (8, 6), 64, False, (9, 0), "flash"),
        (torch.bfloat16, (8, 8), 64, True, (7, 0), "math"),
        (torch.float16, (8, 8), 64, True, (7, 0), "efficient"),
        (torch.float32, (8, 8), 64, True, (7, 0), "efficient"),
        (torch.float32, (8, 8), 6, True, (9, 0), "math"),
        (torch.float64, (8, 8), 64, True, (9, 0), "math"),
    ],
)
def test_which_attention_kernel_runs_on_cuda(
    dtype: torch.dtype,
    lengths: tuple[int, int],
    depth: int,
    causal: bool,
    capability: tuple[int, int],
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what a card of some compute capability has; no card is needed to choose."""
    monkeypatch.setattr(attention_kernels, "_capability", lambda device: capability)
    kind = {
        "dtype": dtype,
        "is_cuda": True,
        "device": torch.device("cuda", 0),
        "stride": lambda dim: 1,
    }
    q, k = (SimpleNamespace(shape=(2, 3, length, depth), **kind) for length in lengths)
    assert attention_kernels._kernel(q, k, k, causal) == kernel


def test_cross_entropy_of_split_classes_some_of_which_are_masked() -> None:
    """Of a row whose half is masked out whole, and of targets in the other half than a masked
    score."""
    logits = torch.randn(6, 8, dtype=torch.float64)
    logits[0, 4:], logits[1, :4] = -torch.inf, -torch.inf
    logits[2, 0], logits[3, 7] = -torch.inf, -torch.inf
    target = torch.tensor([1, 6, 5, 2, -100, 3])
    leaf = logits.clone().requires_grad_()
    loss = F.cross_entropy(leaf, target, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    halves = logits.chunk(2, 1)
    lse = torch.stack([kernel._local_lse(half) for half in halves]).logsumexp(0)
    picked = sum(kernel._pick(half, target, 4 * number) for number, half in enumerate(halves))
    kept = target != -100
    assert torch.allclose((lse - picked)[kept].sum(), loss)
    one = torch.ones((), dtype=torch.float64)
    parts = [
        kernel.cross_entropy_backward(one, half, target, lse, -100, offset=4 * n)
        for n, half in enumerate(halves)
    ]
    assert torch.allclose(torch.cat(parts, 1), leaf.grad)
