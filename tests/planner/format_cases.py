"""Calls of torch's functions as models make them, and the ATen ops that they run forward and
backward, with their operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rule_cases import CASES, draw
from rule_proof import as_torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from planner.torch_private.modes import TorchDispatchMode

__all__ = ["OpCall", "calls_of", "rule_calls"]


@dataclass(frozen=True, slots=True)
class OpCall:
    """One call of an op; its tensors stand in `args` and `kwargs`, nested or not."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OpCall] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not func._schema.is_mutable:
            self.calls.append(OpCall(str(func), _kept(args), _kept(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _kept(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(argument, dict):
        return {key: _kept(value) for key, value in argument.items()}
    return (
        type(argument)(_kept(item) for item in argument)
        if isinstance(argument, tuple | list)
        else argument
    )


def calls_of(function: Callable[..., Any], *tensors: Tensor) -> list[OpCall]:
    """The ops that `function` runs on the tensors, and those of the gradients of all of its
    floating results."""
    given = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    with _Recorder() as recorder:
        out = [
            t for t in tree_leaves(function(*given)) if isinstance(t, Tensor) and t.requires_grad
        ]
        if out:
            loss = sum(
                (
                    (t.abs() if t.is_complex() else t)
                    * torch.arange(1.0, t.numel() + 1).view(t.shape)
                ).sum()
                for t in out
            )
            assert isinstance(loss, Tensor)
            torch.autograd.grad(loss, [t for t in given if t.requires_grad], allow_unused=True)
    return recorder.calls


def rule_calls(seed: int) -> Iterator[OpCall]:
    """A call of every case of every op that has a rule."""
    for op, makes in CASES.items():
        for make in makes:
            args, kwargs = draw(make, seed)
            yield OpCall(op, _listed(args), {key: as_torch(value) for key, value in kwargs.items()})


def _listed(argument: Any) -> Any:
    if isinstance(argument, tuple | list):
        return tuple(_listed(item) for item in argument)
    return as_torch(argument)


def _x(*shape: int) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))
    )


def _image() -> Tensor:
    return _x(2, 4, 6, 6)


_IDS = torch.tensor([[1, 0, 2], [3, 1, 1]])


#: What models call that may have kernels of its own, by name: (function, tensors).
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (_image(), _x(4), _x(4))),
    "group_norm of sequences": (
        lambda x, w, b: F.group_norm(x, 2, w, b),
        (_x(2, 4, 5), _x(4), _x(4)),
    ),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (6,), w, b), (_x(2, 3, 6), _x(6), _x(6))),
    "instance_norm": (lambda x: F.instance_norm(x), (_image(),)),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (_image(), _x(4), _x(4)),
    ),
    "rms_norm": (lambda x, w: F.rms_norm(x, (6,), w), (_x(2, 3, 6), _x(6))),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), (_image(),)),
    "normalize": (lambda x: F.normalize(x, dim=1), (_image(),)),
    "conv1d": (F.conv1d, (_x(2, 4, 6), _x(4, 4, 3), _x(4))),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (_image(), _x(4, 4, 3, 3), _x(4))),
    "conv2d of groups": (lambda x, w: F.conv2d(x, w, groups=4), (_image(), _x(4, 1, 3, 3))),
    "conv3d": (F.conv3d, (_x(2, 2, 4, 4, 4), _x(2, 2, 3, 3, 3), _x(2))),
    "conv_transpose2d": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        (_image(), _x(4, 2, 2, 2)),
    ),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), (_x(2, 4, 6),)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), (_image(),)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (_x(2, 2, 4, 4, 4),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), (_image(),)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (_x(2, 2, 4, 4, 4),)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (4, 3)), (_image(),)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 3), (_x(2, 2, 4, 4, 4),)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 3), (_image(),)),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 3), (_x(2, 2, 4, 4, 4),)),
    "fractional_max_pool2d": (
        lambda x: F.fractional_max_pool2d(
            x, 2, 3, _random_samples=torch.full((2, 4, 2), 0.5, dtype=torch.float64)
        ),
        (_image(),),
    ),
    "fractional_max_pool3d": (
        lambda x: F.fractional_max_pool3d(
            x, 2, 2, _random_samples=torch.full((2, 2, 3), 0.5, dtype=torch.float64)
        ),
        (_x(2, 2, 4, 4, 4),),
    ),
    "max_unpool2d": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        (_image(),),
    ),
    "lp_pool2d": (lambda x: F.lp_pool2d(x.abs() + 1, 2, 2), (_image(),)),
    "upsample nearest": (lambda x: F.interpolate(x, scale_factor=2.0), (_image(),)),
    "upsample nearest exact": (
        lambda x: F.interpolate(x, size=9, mode="nearest-exact"),
        (_image(),),
    ),
    "upsample bilinear": (lambda x: F.interpolate(x, size=9, mode="bilinear"), (_image(),)),
    "upsample bicubic": (
        lambda x: F.interpolate(x, size=9, mode="bicubic", align_corners=True),
        (_image(),),
    ),
    "upsample antialias": (
        lambda x: F.interpolate(x, size=4, mode="bilinear", antialias=True),
        (_image(),),
    ),
    "upsample linear": (lambda x: F.interpolate(x, size=9, mode="linear"), (_x(2, 4, 6),)),
    "upsample trilinear": (
        lambda x: F.interpolate(x, size=5, mode="trilinear"),
        (_x(2, 2, 4, 4, 4),),
    ),
    "grid_sample": (
        lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False),
        (_image(), _x(2, 3, 3, 2)),
    ),
    "grid_sample of volumes": (
        lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False),
        (_x(2, 2, 3, 3, 3), _x(2, 2, 2, 2, 3)),
    ),
    "affine_grid": (lambda t: F.affine_grid(t, [2, 4, 6, 6], align_corners=False), (_x(2, 2, 3),)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (_image(),)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (_image(),)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), (_image(),)),
    "unfold": (lambda x: F.unfold(x, 3), (_image(),)),
    "fold": (lambda x: F.fold(x, (4, 4), 2), (_x(2, 8, 9),)),
    "pad reflect": (lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"), (_image(),)),
    "pad replicate": (lambda x: F.pad(x, (1, 1, 2, 2), mode="replicate"), (_image(),)),
    "pad replicate of volumes": (
        lambda x: F.pad(x, (1,) * 6, mode="replicate"),
        (_x(2, 2, 3, 3, 3),),
    ),
    "pad circular": (lambda x: F.pad(x, (1, 1, 2, 2), mode="circular"), (_image(),)),
    "lstm cell": (
        lambda x, w, u: torch.lstm_cell(x, (x.mT @ x, x.mT @ x), w, u, None, None),
        (_x(4, 4), _x(16, 4), _x(16, 4)),
    ),
    "gru cell": (
        lambda x, w, u: torch.gru_cell(x, x.mT @ x, w, u, None, None),
        (_x(4, 4), _x(12, 4), _x(12, 4)),
    ),
    "softmax": (lambda x: F.softmax(x, 1), (_image(),)),
    "log_softmax": (lambda x: F.log_softmax(x, 1), (_image(),)),
    "nll_loss of images": (
        lambda x: F.nll_loss(F.log_softmax(x, 1), _IDS[:, None].repeat(1, 6, 1)),
        (_x(2, 4, 6, 3),),
    ),
    "cross_entropy with weights": (
        lambda x, w: F.cross_entropy(x, _IDS[0], w.detach().abs()),
        (_x(3, 4), _x(4)),
    ),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, _IDS[0]), (_x(3, 4),)),
    "multilabel_margin_loss": (
        lambda x: F.multilabel_margin_loss(x, torch.tensor([[1, 0, -1, 2]] * 3)),
        (_x(3, 4),),
    ),
    "embedding": (lambda w: F.embedding(_IDS, w), (_x(4, 6),)),
    "embedding by frequency": (
        lambda w: F.embedding(_IDS, w, scale_grad_by_freq=True),
        (_x(4, 6),),
    ),
    "embedding_bag": (
        lambda w, s: F.embedding_bag(_IDS, w, mode="sum", per_sample_weights=s),
        (_x(4, 6), _x(2, 3)),
    ),
    "embedding_bag of means": (lambda w: F.embedding_bag(_IDS, w), (_x(4, 6),)),
    "embedding_bag of maxima": (lambda w: F.embedding_bag(_IDS, w, mode="max"), (_x(4, 6),)),
    "gather": (lambda x: x.gather(1, _IDS), (_x(2, 4),)),
    "scatter_add": (lambda x, s: x.scatter_add(1, _IDS, s), (_x(2, 4), _x(2, 3))),
    "scatter_reduce": (lambda x, s: x.scatter_reduce(1, _IDS, s, "mean"), (_x(2, 4), _x(2, 3))),
    "index_select": (lambda x: x.index_select(1, _IDS[0]), (_image(),)),
    "index_copy": (lambda x, s: x.index_copy(0, _IDS[0], s), (_x(4, 6), _x(3, 6))),
    "index_put": (
        lambda x, s: x.index_put((_IDS[0], _IDS[1]), s, accumulate=True),
        (_x(4, 6), _x(3)),
    ),
    "masked_scatter": (lambda x, s: x.masked_scatter(x.detach() > 0, s), (_x(3, 4), _x(3, 4))),
    "take_along_dim": (lambda x: torch.take_along_dim(x, _IDS, 1), (_x(2, 4),)),
    "cumsum": (lambda x: x.cumsum(1), (_image(),)),
    "cumprod": (lambda x: x.cumprod(1), (_image(),)),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (_image(),)),
    "cummax": (lambda x: x.cummax(1), (_image(),)),
    "sort": (lambda x: x.sort(1), (_image(),)),
    "topk": (lambda x: x.topk(2, 1), (_image(),)),
    "kthvalue": (lambda x: x.kthvalue(2, 1), (_image(),)),
    "median": (lambda x: x.median(1), (_image(),)),
    "renorm": (lambda x: x.renorm(2, 1, 1.0), (_x(3, 4),)),
    "cdist": (lambda x, y: torch.cdist(x, y), (_x(3, 4), _x(5, 4))),
    "pdist": (F.pdist, (_x(3, 4),)),
    "trilinear": (lambda x, y, w: F.bilinear(x, y, w), (_x(3, 4), _x(3, 5), _x(2, 4, 5))),
    "einsum": (lambda x, y: torch.einsum("bchw,bcd->bdhw", x, y), (_image(), _x(2, 4, 3))),
    "det": (lambda x: torch.linalg.det(x), (_x(4, 4),)),
    "slogdet": (lambda x: torch.linalg.slogdet(x), (_x(4, 4),)),
    "solve": (lambda x, y: torch.linalg.solve(x, y), (_x(4, 4), _x(4, 2))),
    "inv": (lambda x: torch.linalg.inv(x), (_x(4, 4),)),
    "cholesky": (
        lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(4, dtype=x.dtype)),
        (_x(4, 4),),
    ),
    "svd": (lambda x: torch.linalg.svdvals(x), (_x(4, 3),)),
    "matrix_exp": (lambda x: torch.linalg.matrix_exp(x), (_x(4, 4),)),
    "fft": (lambda x: torch.fft.rfft2(x), (_image(),)),
    "inverse fft": (lambda x: torch.fft.irfft(torch.fft.rfft(x)), (_image(),)),
    "stft": (
        lambda x: torch.stft(x, 4, 2, window=torch.ones(4, dtype=x.dtype), return_complex=True),
        (_x(2, 16),),
    ),
    "complex": (lambda x: torch.view_as_complex(x * 2), (_x(4, 3, 2),)),
    "weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), (_x(4, 3), _x(4, 1))),
    "flash attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        (_x(2, 2, 4, 8),) * 3,
    ),
    "prelu": (lambda x, w: F.prelu(x, w), (_image(), _x(4))),
    "glu": (lambda x: F.glu(x, 1), (_image(),)),
    "trace": (lambda x: x.trace(), (_x(4, 4),)),
    "diag_embed": (lambda x: torch.diag_embed(x), (_x(3, 4),)),
    "tril": (lambda x: x.tril(), (_image(),)),
    "roll": (lambda x: x.roll((1, 2), (1, 2)), (_image(),)),
    "flip": (lambda x: x.flip(1), (_image(),)),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), (_image(),)),
    "searchsorted": (
        lambda x: torch.searchsorted(x.detach().sort(-1).values, x.detach()),
        (_x(3, 4),),
    ),
    "histc": (lambda x: torch.histc(x.detach(), 4), (_x(3, 4),)),
    "foreach": (
        lambda x, y: torch._foreach_mul(torch._foreach_add([x, y], 1.0), 2.0),
        (_image(), _x(3, 4)),
    ),
}

__all__ += ["FUNCTIONS"]
