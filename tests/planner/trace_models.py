"""Small models of many kinds, to see that tracing and the op rules cover what people write."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.graph.graph import Graph
from planner.trace.trace import trace
from planner.workload.load import load_workload
from planner.workload.workload import Workload

__all__ = ["BUILDERS", "built_in", "graph_named", "workload"]

Loss = Callable[[Any, Tensor], Tensor]


def workload(
    module: nn.Module, *batch: Tensor, loss: Loss = F.mse_loss, name: str = "test"
) -> Workload:
    return Workload(name=name, module=module, batch=batch, loss=loss)


def built_in(spec: str, **sizes: int) -> Callable[[], Workload]:
    batch, seq = sizes.pop("batch", 4), sizes.pop("seq", None)
    settings = {key: str(value) for key, value in sizes.items()}

    def build() -> Workload:
        dtype = str(torch.get_default_dtype()).removeprefix("torch.")
        return load_workload(
            spec, batch=batch, seq=seq, settings=settings, num_devices=1, dtype=dtype
        )

    return build


class BiLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.lstm(self.embedding(ids))
        out: Tensor = self.head(y.mean(1))
        return out


class MLP(nn.Module):
    """Every common activation, with layer norm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        acts = (
            nn.GELU(),
            nn.GELU("tanh"),
            nn.SiLU(),
            nn.Tanh(),
            nn.LeakyReLU(),
            nn.ELU(),
            nn.Softplus(),
            nn.Sigmoid(),
            nn.ReLU6(),
            nn.Hardswish(),
            nn.Hardsigmoid(),
            nn.Mish(),
            nn.LogSigmoid(),
            nn.Softsign(),
            nn.SELU(),
            nn.PReLU(),
            nn.CELU(),
            nn.GLU(),
        )
        layers: list[nn.Module] = []
        for act in acts:
            layers += [
                nn.Linear(width, 2 * width if isinstance(act, nn.GLU) else width),
                nn.LayerNorm(2 * width if isinstance(act, nn.GLU) else width),
                act,
            ]
        self.layers = nn.Sequential(
            *layers, nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.act(x + self.conv1(x))
        x = F.avg_pool2d(x, 2)
        x = x + self.grouped(F.relu(self.depthwise(x)))
        out: Tensor = self.head(self.pool(x).flatten(1))
        return out


class Norms(nn.Module):
    """Group, instance and RMS norm, batch norm in eval mode, transposed convolution, padding and
    up-sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2)
        self.group = nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.batch = nn.BatchNorm2d(8).eval()
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.rms = nn.RMSNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.instance(self.group(self.conv(F.pad(x, (1, 1, 1, 1))))))
        x = F.interpolate(self.up(x), scale_factor=2.0)
        out: Tensor = self.rms(x.amax((2, 3)))
        return out


class Encoder(nn.Module):
    """Separate q, k, v; an additive mask; softmax(bmm)."""

    def __init__(self, width: int = 8, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, mask)
        out: Tensor = self.head(x)
        return out


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def _heads(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        return (
            x.view(b, t, self.heads, self.depth)
            .transpose(1, 2)
            .reshape(b * self.heads, t, self.depth)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, width = x.shape
        y = self.norm1(x)
        q, k, v = self._heads(self.q(y)), self._heads(self.k(y)), self._heads(self.v(y))
        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(self.depth)
        scores = scores.view(b, self.heads, t, t) + mask[:, None, None, :]
        mixed = torch.bmm(torch.softmax(scores, -1).view(b * self.heads, t, t), v)
        x = x + self.o(
            mixed.view(b, self.heads, t, self.depth).transpose(1, 2).reshape(b, t, width)
        )
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Decoder(nn.Module):
    """A Llama-like block: RMS norm by hand, rotary positions, gated SiLU, a causal mask through
    masked_fill and tril, grouped key heads by repeat_interleave."""

    def __init__(self, width: int = 16, heads: int = 4, kv_heads: int = 2, vocab: int = 12) -> None:
        super().__init__()
        self.heads, self.kv, self.depth = heads, kv_heads, width // heads
        self.embed = nn.Embedding(vocab, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, self.depth * kv_heads, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def _rotate(self, x: Tensor) -> Tensor:
        t, half = x.shape[2], self.depth // 2
        angle = torch.outer(
            torch.arange(t).float(), 1.0 / 10000 ** (torch.arange(half).float() / half)
        )
        angle = torch.cat([angle, angle], -1)
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angle.cos() + turned * angle.sin()

    def forward(self, ids: Tensor) -> Tensor:
        b, t = ids.shape
        x = self.embed(ids)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        q = self._rotate(self.q(y).view(b, t, self.heads, self.depth).transpose(1, 2))
        k = self._rotate(
            self.k(y).view(b, t, self.kv, self.depth).transpose(1, 2)
        ).repeat_interleave(self.heads // self.kv, 1)
        v = self.v(y).view(b, t, self.kv, self.depth).transpose(1, 2)
        v = (
            v[:, :, None]
            .expand(b, self.kv, self.heads // self.kv, t, self.depth)
            .reshape(b, self.heads, t, self.depth)
        )
        scores = (q @ k.transpose(-2, -1)).masked_fill(
            torch.tril(torch.ones(t, t)) == 0, float("-inf")
        )
        x = x + (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, t, -1)
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        out: Tensor = F.linear(x, self.embed.weight)
        return out


class Joins(nn.Module):
    """cat, stack, chunk, split, slicing, unbind, flip, roll, repeat, mean, var, einsum, matmul
    of 3-D and 4-D."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 12)
        self.w = nn.Parameter(torch.randn(8, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        one, two = a.chunk(2, -1)
        p, q, r = b.split([2, 4, 6], -1)
        both = torch.cat([one * two, q, p.repeat(1, 1, 2), r[..., 2:]], dim=1)
        stacked = torch.stack([both, both.flip(1)], 1)
        left, right = stacked.unbind(1)
        mixed = torch.matmul(left, right.transpose(1, 2)) @ left
        four = torch.matmul(stacked, stacked.transpose(2, 3))
        whole = torch.einsum("btd,dhk->bthk", a, self.w)
        again = torch.einsum("bthk,bshk->bhts", whole, whole).softmax(-1)
        out = (
            mixed.mean((1, 2))
            + four.sum((1, 2, 3))
            + again[:, 0, 0, 0]
            + whole[:, -1, 1:, 0].sum(-1)
            + x.roll(1, 1)[:, 0, 0]
        )
        std = (
            b.var(-1).sum(-1)
            + a.std(-1).sum(-1)
            + a.max(-1).values.sum(-1)
            + a.logsumexp(-1).sum(-1)
            + a.cumsum(-1).sum((1, 2))
        )
        norm = (
            a.norm(dim=-1).sum(-1)
            + torch.clamp(b, -1, 1).abs().sqrt().sum((1, 2))
            + F.normalize(a, dim=-1).sum((1, 2))
        )
        total: Tensor = (
            out
            + std
            + norm
            + a.min()
            + torch.minimum(a, x).sum((1, 2))
            + torch.where(a > 0, a, 0.5 * a).prod(-1).sum(-1)
        )
        return total


class Lookups(nn.Module):
    """gather, index_select, indexing with tensors, one-hot, scatter, top-k, where."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 6))
        self.bag = nn.Embedding(10, 6)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.table[ids]
        picked = self.table.index_select(0, ids[0])
        hot = F.one_hot(ids, 10).to(rows.dtype) @ self.table
        best = torch.gather(rows, 2, ids.unsqueeze(-1).clamp(max=5)).squeeze(-1)
        top = rows.topk(2, -1).values.sum(-1)
        y = torch.where(ids[..., None] > 3, rows, hot) + self.bag(ids)
        spread = torch.zeros_like(rows).scatter_add(1, (ids % 4).unsqueeze(-1).expand_as(rows), y)
        total: Tensor = (y + spread).sum(-1) + best + top + picked.sum()
        return total


class Linear(nn.Module):
    def __init__(self, inputs: int = 6, outputs: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def _with_loss(loss: Loss, target: Callable[[], Tensor]) -> Callable[[], Workload]:
    return lambda: workload(Linear(), torch.randn(8, 6), target(), loss=loss)


def _ids(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


def _flat_loss(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), target.reshape(-1))


def _labels() -> Tensor:
    return _ids(4, 8)


def _floats() -> Tensor:
    return torch.rand(8, 4)


BUILDERS: dict[str, Callable[[], Workload]] = {
    "lstm": built_in("lstm", vocab=24, embed=6, hidden=4, layers=2, seq=5),
    "mlp": built_in("mlp", inputs=8, hidden=12, layers=2, outputs=4),
    "cnn": built_in("cnn", image=8, width=4, blocks=2, classes=6),
    "gpt": built_in("gpt", layers=2, width=12, heads=2, vocab=18, positions=12, seq=6),
    "gpt-untied": built_in("gpt", layers=1, width=8, heads=4, vocab=16, positions=8, seq=8, tied=0),
    "llama": built_in("llama", layers=2, width=16, heads=4, kv_heads=2, mlp=12, vocab=18, seq=6),
    "bilstm": lambda: workload(BiLSTM(), _ids(20, 4, 6), _ids(3, 4), loss=F.cross_entropy),
    "activations": lambda: workload(MLP(), torch.randn(6, 8), torch.randn(6, 2)),
    "residual-cnn": lambda: workload(
        ResidualCNN(), torch.randn(4, 3, 8, 8), _ids(5, 4), loss=F.cross_entropy
    ),
    "norms": lambda: workload(Norms(), torch.randn(4, 4, 8, 8), torch.randn(4, 4)),
    "encoder": lambda: workload(
        Encoder(), _ids(16, 4, 6), torch.zeros(4, 6), _ids(16, 4, 6), loss=_flat_loss
    ),
    "decoder": lambda: workload(Decoder(), _ids(12, 4, 6), _ids(12, 4, 6), loss=_flat_loss),
    "joins": lambda: workload(Joins(), torch.randn(4, 6, 8), torch.randn(4)),
    "lookups": lambda: workload(Lookups(), _ids(10, 4, 6), torch.randn(4, 6)),
    "nll": _with_loss(lambda out, t: F.nll_loss(F.log_softmax(out, -1), t), _labels),
    "nll-weighted": _with_loss(
        lambda out, t: F.cross_entropy(out, t, label_smoothing=0.1, ignore_index=1), _labels
    ),
    "bce-logits": _with_loss(F.binary_cross_entropy_with_logits, _floats),
    "bce": _with_loss(lambda out, t: F.binary_cross_entropy(torch.sigmoid(out), t), _floats),
    "l1": _with_loss(F.l1_loss, _floats),
    "huber": _with_loss(F.huber_loss, _floats),
    "smooth-l1": _with_loss(F.smooth_l1_loss, _floats),
    "kl": _with_loss(
        lambda out, t: F.kl_div(F.log_softmax(out, -1), t, reduction="batchmean"), _floats
    ),
    "hinge": _with_loss(
        lambda out, t: torch.clamp(1 - out * (2 * t - 1), min=0).pow(2).mean(), _floats
    ),
    "cosine": _with_loss(lambda out, t: 1 - F.cosine_similarity(out, t).mean(), _floats),
}


@cache
def graph_named(name: str) -> Graph:
    """The graph of one of `BUILDERS`, traced once."""
    return trace(BUILDERS[name]).graph
