"""For every op with a rule, calls to prove it with: random small shapes, among them sizes 1,
broadcasts and 0-dim tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from rule_proof import run_op
from torch import Tensor

from planner.graph.fused import Body, Member
from planner.graph.graph import Ref, map_refs
from planner.kernels import drop_hashes, key_of_microbatch, step_key
from planner.rules.pointwise import POINTWISE

__all__ = ["CASES", "Draw", "draw"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
DTYPE = torch.float64


class Draw:
    """Random sizes and tensors."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)

    def size(self, *choices: int) -> int:
        return self.random.choice(choices or (1, 2, 3, 4, 6, 12))

    def sizes(self, rank: int) -> tuple[int, ...]:
        return tuple(self.size(2, 3, 4, 6) for _ in range(rank))

    def shape(self, low: int = 0, high: int = 3) -> tuple[int, ...]:
        return tuple(self.size() for _ in range(self.random.randint(low, high)))

    def chance(self, p: float = 0.5) -> bool:
        return self.random.random() < p

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    def real(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=DTYPE)

    def positive(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=DTYPE) + 0.1

    def ids(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape)

    def mask(self, *shape: int) -> Tensor:
        return torch.rand(shape) < 0.5

    def stretched(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`."""
        kept = tuple(1 if self.chance(0.3) else size for size in shape)
        return kept[self.random.randint(0, len(kept)) :] if self.chance(0.4) else kept

    def dims(self, rank: int) -> tuple[int, ...]:
        """Some dims of a tensor of that rank, some counted from the end; at least one where
        there is one."""
        if not rank:
            return ()
        return tuple(
            d - rank if self.chance(0.3) else d
            for d in self.random.sample(range(rank), self.random.randint(1, rank))
        )


CASES: dict[str, list[Callable[[Draw], Arguments]]] = {}


def case(*ops: str) -> Callable[[Callable[[Draw], Arguments]], Callable[[Draw], Arguments]]:
    def keep(make: Callable[[Draw], Arguments]) -> Callable[[Draw], Arguments]:
        for op in ops:
            CASES.setdefault(op, []).append(make)
        return make

    return keep


def draw(make: Callable[[Draw], Arguments], seed: int) -> Arguments:
    return make(Draw(seed))


# ------------------------------------------------------------------------------------- element-wise

_UNARY_ARGS: dict[str, tuple[Any, ...]] = {
    "pow.Tensor_Scalar": (2.0,),
    "clamp.default": (-0.5, 0.5),
    "clamp_min.default": (0.1,),
    "clamp_max.default": (0.1,),
    "leaky_relu.default": (0.2,),
    "hardtanh.default": (-1.0, 1.0),
    "fmod.Scalar": (0.7,),
    "remainder.Scalar": (0.7,),
    "add.Scalar": (2.0,),
    "sub.Scalar": (2.0,),
    "rsub.Scalar": (2.0,),
    "mul.Scalar": (2.0,),
    "div.Scalar": (2.0,),
    "softplus.default": (1, 20),
    "elu.default": (),
    "nan_to_num.default": (),
    **{f"{name}.Scalar": (0.1,) for name in ("eq", "ne", "gt", "ge", "lt", "le")},
}
_POSITIVE = {"log.default", "log1p.default", "sqrt.default", "rsqrt.default", "log2.default"}
_BOOLEAN = {"logical_not.default", "bitwise_not.default"}
_BACKWARD_ARGS: dict[str, tuple[Any, ...]] = {
    "threshold_backward.default": (0,),
    "leaky_relu_backward.default": (0.2, False),
    "hardtanh_backward.default": (-0.5, 0.5),
    "softplus_backward.default": (1, 20),
    "gelu_backward.default": (),
    "silu_backward.default": (),
    "sigmoid_backward.default": (),
    "tanh_backward.default": (),
    "hardsigmoid_backward.default": (),
    "hardswish_backward.default": (),
    "mish_backward.default": (),
}
_BINARY = {
    "pow.Tensor_Tensor",
    "maximum.default",
    "minimum.default",
    "logical_and.default",
    "logical_or.default",
    "logical_xor.default",
    "bitwise_and.Tensor",
    "bitwise_or.Tensor",
    "xlogy.Tensor",
    "clamp_min.Tensor",
    "clamp_max.Tensor",
    "atan2.default",
    "floor_divide.default",
    *(f"{name}.Tensor" for name in ("eq", "ne", "gt", "ge", "lt", "le")),
}


def _pointwise(op: str) -> Callable[[Draw], Arguments]:
    name = op.removeprefix("aten.")
    if name in _BACKWARD_ARGS:
        return lambda g: (lambda s: ((g.real(*s), g.real(*s), *_BACKWARD_ARGS[name]), {}))(
            g.shape()
        )
    if name == "elu_backward.default":
        return lambda g: (lambda s: ((g.real(*s), 1.0, 1.0, 1.0, False, g.real(*s)), {}))(g.shape())
    if name == "masked_fill.Scalar":
        return lambda g: (
            lambda s: ((g.real(*s), g.mask(*g.stretched(s)), g.pick(0.0, float("-inf"))), {})
        )(g.shape())
    if name == "masked_fill.Tensor":
        return lambda g: (lambda s: ((g.real(*s), g.mask(*g.stretched(s)), g.real()), {}))(
            g.shape()
        )
    if name == "pow.Scalar":
        return lambda g: ((2.0, g.real(*g.shape())), {})
    if name in _BINARY:
        return lambda g: _binary(g, name)
    make = "positive" if name in _POSITIVE else "mask" if name in _BOOLEAN else "real"
    return lambda g: ((getattr(g, make)(*g.shape()), *_UNARY_ARGS.get(name, ())), {})


def _binary(g: Draw, name: str) -> Arguments:
    shape = g.shape()
    make: Any = g.mask if name.startswith(("logical", "bitwise")) else g.positive
    pair = [make(*shape), make(*g.stretched(shape))]
    if name not in ("pow.Tensor_Tensor", "clamp_min.Tensor", "clamp_max.Tensor"):
        g.random.shuffle(pair)
    if name.split(".")[0] in ("eq", "ne"):
        pair = [(4 * t).long() for t in pair]
    return tuple(pair), {}


for _op in POINTWISE:
    case(_op)(_pointwise(_op))


@case("aten.neg.default", "aten.clone.default")
def _unary_linear(g: Draw) -> Arguments:
    return (g.real(*g.shape()),), {}


@case("aten.mul.Scalar", "aten.div.Scalar")
def _by_scalar(g: Draw) -> Arguments:
    return (g.real(*g.shape()), 2.5), {}


@case("aten._to_copy.default")
def _to_copy(g: Draw) -> Arguments:
    return (4 * g.real(*g.shape()),), {
        "dtype": g.pick(
            "torch.float64", "torch.int64", "torch.bool", "torch.uint8", "torch.float32"
        )
    }


@case("aten._to_copy.default")
def _mask_to_copy(g: Draw) -> Arguments:
    return (g.pick(g.mask, lambda *s: g.ids(9, *s))(*g.shape()),), {
        "dtype": g.pick("torch.float64", "torch.int64")
    }


@case("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor")
def _arithmetic(g: Draw) -> Arguments:
    shape = g.shape()
    pair = [g.positive(*shape), g.positive(*g.stretched(shape))]
    g.random.shuffle(pair)
    return tuple(pair), {}


@case("aten.add.Tensor", "aten.sub.Tensor")
def _scaled(g: Draw) -> Arguments:
    shape = g.sizes(2)
    return (g.real(*shape), g.real(*shape)), {"alpha": 3}


@case("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor")
def _with_number(g: Draw) -> Arguments:
    return (g.real(*g.shape()), 2.5), {}


@case(
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.mul.Tensor",
    "aten.div.Tensor",
    "aten.maximum.default",
)
def _with_itself(g: Draw) -> Arguments:
    x = g.positive(*g.sizes(2))
    return (x, x), {}


@case("aten.add.Tensor", "aten.mul.Tensor")
def _integers(g: Draw) -> Arguments:
    shape = g.sizes(2)
    return (g.ids(9, *shape), g.ids(9, *shape)), {}


@case("aten.mul.Tensor")
def _masks_multiply(g: Draw) -> Arguments:
    shape = g.sizes(2)
    return g.pick((g.mask(*shape), g.real(*shape)), (g.mask(*shape), g.mask(*shape))), {}


@case("aten.where.self")
def _where(g: Draw) -> Arguments:
    shape = g.shape()
    return (
        g.mask(*g.stretched(shape)),
        g.real(*shape),
        g.pick(g.real(*g.stretched(shape)), g.real()),
    ), {}


@case("aten.where.self")
def _where_itself(g: Draw) -> Arguments:
    x = g.real(*g.sizes(2))
    return (g.mask(*x.shape), x, x), {}


@case("aten.expand.default")
def _expand(g: Draw) -> Arguments:
    shape = g.shape(1, 3)
    return (g.real(*g.stretched(shape)), shape), {}


@case("aten.full.default")
def _full(g: Draw) -> Arguments:
    return (g.shape(), 1.5), {"dtype": "torch.float64"}


@case("aten.zeros.default", "aten.ones.default")
def _zeros(g: Draw) -> Arguments:
    return (g.shape(),), {"dtype": "torch.float64"}


@case("aten.arange.default")
def _arange(g: Draw) -> Arguments:
    return (g.size(),), {}


@case("aten.arange.start")
def _arange_start(g: Draw) -> Arguments:
    return (2, 8), {}


@case("aten.arange.start_step")
def _arange_step(g: Draw) -> Arguments:
    return (0, 12, 2), {}


@case("aten.scalar_tensor.default")
def _scalar(g: Draw) -> Arguments:
    return (1.5,), {"dtype": "torch.float64"}


@case("shardwright.constant")
def _constant(g: Draw) -> Arguments:
    return ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (3, 2)), {"dtype": "torch.float64"}


@case("aten.slice_scatter.default")
def _slice_scatter(g: Draw) -> Arguments:
    shape = g.sizes(3)
    dim = g.pick(0, 1, -1)
    return (g.real(*shape), g.real(*shape).narrow(dim, 0, 1), dim, 1, 2), {}


@case("aten.select_scatter.default")
def _select_scatter(g: Draw) -> Arguments:
    shape = g.sizes(3)
    dim = g.pick(0, 1, -1)
    return (g.real(*shape), g.real(*shape).select(dim, 0), dim, 1), {}


@case("aten.tril_indices.default")
def _tril_indices(g: Draw) -> Arguments:
    return (3, 4), {}


# ----------------------------------------------------------------------------------------- products


@case("aten.mm.default")
def _mm(g: Draw) -> Arguments:
    m, k, n = g.size(), g.size(), g.size()
    return (g.real(m, k), g.real(k, n)), {}


@case("aten.bmm.default")
def _bmm(g: Draw) -> Arguments:
    b, m, k, n = g.sizes(4)
    return (g.real(b, m, k), g.real(b, k, n)), {}


@case("aten.mm.default")
def _square(g: Draw) -> Arguments:
    x = g.real(4, 4)
    return (x, x), {}


def _convolution_args(g: Draw) -> tuple[Tensor, Tensor, list[Any]]:
    windows, transposed = g.pick(1, 2, 2), g.chance(0.3)
    groups = g.pick(1, 1, 2, 4)
    c, o = groups * g.size(1, 2, 4), groups * g.size(1, 2, 3)
    kernel, stride, padding = g.size(1, 3), g.size(1, 2), g.size(0, 1)
    x = g.real(g.size(2, 4), c, *([6] * windows))
    weight = g.real(*((c, o // groups) if transposed else (o, c // groups)), *([kernel] * windows))
    return (
        x,
        weight,
        [
            (stride,) * windows,
            (padding,) * windows,
            (1,) * windows,
            transposed,
            (0,) * windows,
            groups,
        ],
    )


@case("aten.convolution.default")
def _convolution(g: Draw) -> Arguments:
    x, weight, rest = _convolution_args(g)
    return (x, weight, None, *rest), {}


@case("aten.convolution_backward.default")
def _convolution_backward(g: Draw) -> Arguments:
    x, weight, rest = _convolution_args(g)
    (out,) = run_op("aten.convolution.default", (x, weight, None, *rest), ())
    mask = g.pick(
        (True, True, True), (False, True, True), (True, True, False), (False, True, False)
    )
    return (g.real(*out.shape), x, weight, (out.shape[1],), *rest, mask), {}


#: Kernel, stride, padding: halving, overlapping, and one that changes nothing.
_POOLS = (
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (1, 1), (0, 0)),
    ((3, 3), (1, 1), (1, 1)),
    ((1, 1), (1, 1), (0, 0)),
)


def _image(g: Draw, windows: int = 2) -> Tensor:
    return g.real(*(g.sizes(1) if g.chance(0.3) else g.sizes(2)), *([4] * windows))


@case("aten.max_pool2d_with_indices.default")
def _max_pool(g: Draw) -> Arguments:
    return (_image(g), *g.pick(*_POOLS)), {}


@case("aten.max_pool2d_with_indices_backward.default")
def _max_pool_backward(g: Draw) -> Arguments:
    x, (kernel, stride, padding) = _image(g), g.pick(*_POOLS)
    out, indices = run_op("aten.max_pool2d_with_indices.default", (x, kernel, stride, padding), ())
    return (g.real(*out.shape), x, kernel, stride, padding, (1, 1), False, indices), {}


@case("aten.avg_pool2d.default")
def _avg_pool(g: Draw) -> Arguments:
    return (_image(g), *g.pick(*_POOLS)), {}


@case("aten.avg_pool2d_backward.default")
def _avg_pool_backward(g: Draw) -> Arguments:
    x, (kernel, stride, padding) = _image(g), g.pick(*_POOLS)
    (out,) = run_op("aten.avg_pool2d.default", (x, kernel, stride, padding), ())
    return (g.real(*out.shape), x, kernel, stride, padding, False, True, None), {}


@case("aten._adaptive_avg_pool2d.default")
def _adaptive(g: Draw) -> Arguments:
    return (_image(g), g.pick((2, 2), (1, 4), (4, 4))), {}


@case("aten._adaptive_avg_pool2d_backward.default")
def _adaptive_backward(g: Draw) -> Arguments:
    x = _image(g)
    return (g.real(*x.shape[:-2], *g.pick((2, 2), (1, 4), (4, 4))), x), {}


@case("aten.max_pool3d_with_indices.default", "aten.avg_pool3d.default")
def _pool_3d(g: Draw) -> Arguments:
    return (_image(g, 3), *g.pick(((2,) * 3, (2,) * 3), ((1,) * 3, (1,) * 3))), {}


@case("aten.max_pool3d_with_indices_backward.default")
def _max_pool_3d_backward(g: Draw) -> Arguments:
    (x, kernel, stride), _ = _pool_3d(g)
    out, indices = run_op("aten.max_pool3d_with_indices.default", (x, kernel, stride), ())
    return (g.real(*out.shape), x, kernel, stride, (0,) * 3, (1,) * 3, False, indices), {}


@case("aten.avg_pool3d_backward.default")
def _avg_pool_3d_backward(g: Draw) -> Arguments:
    (x, kernel, stride), _ = _pool_3d(g)
    (out,) = run_op("aten.avg_pool3d.default", (x, kernel, stride), ())
    return (g.real(*out.shape), x, kernel, stride, (0,) * 3, False, True, None), {}


@case("aten._adaptive_avg_pool3d.default")
def _adaptive_3d(g: Draw) -> Arguments:
    return (_image(g, 3), g.pick((2, 2, 2), (4, 4, 4))), {}


@case("aten._adaptive_avg_pool3d_backward.default")
def _adaptive_3d_backward(g: Draw) -> Arguments:
    x = _image(g, 3)
    return (g.real(*x.shape[:-3], *g.pick((2, 2, 2), (4, 4, 4))), x), {}


@case("aten.upsample_bilinear2d.default")
def _bilinear(g: Draw) -> Arguments:
    return (g.real(*g.sizes(2), 2, 3), (4, 6), False, 2.0, 2.0), {}


@case("aten.upsample_bilinear2d_backward.default")
def _bilinear_backward(g: Draw) -> Arguments:
    b, c = g.sizes(2)
    return (g.real(b, c, 4, 6), (4, 6), (b, c, 2, 3), False, 2.0, 2.0), {}


@case("aten.upsample_nearest2d.default")
def _upsample(g: Draw) -> Arguments:
    return (g.real(*g.sizes(2), 2, 3), (4, 6), 2.0, 2.0), {}


@case("aten.upsample_nearest2d_backward.default")
def _upsample_backward(g: Draw) -> Arguments:
    b, c = g.sizes(2)
    return (g.real(b, c, 4, 6), (4, 6), (b, c, 2, 3), 2.0, 2.0), {}


# --------------------------------------------------------------------------------------- reductions


@case("aten.sum.default")
def _sum_all(g: Draw) -> Arguments:
    return (g.pick(g.real, g.mask)(*g.shape()),), {}


@case("aten.sum.dim_IntList")
def _sum(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.real(*shape), g.pick(g.dims(len(shape)), ()), g.chance()), {}


@case("aten.amax.default", "aten.amin.default")
def _amax(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.real(*shape), g.pick(g.dims(len(shape)), ()), g.chance()), {}


@case("aten.amax.default", "aten.amin.default")
def _amax_of_one(g: Draw) -> Arguments:
    return (g.real(*g.sizes(3)), (g.pick(0, 1, -1),), g.chance()), {}


@case("aten.any.dim", "aten.all.dim")
def _any(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.mask(*shape), g.dims(len(shape))[0], g.chance()), {}


@case("aten.max.default", "aten.min.default", "aten.argmax.default", "aten.prod.default")
def _max_all(g: Draw) -> Arguments:
    return (g.real(*g.shape(1)),), {}


@case("aten.any.default", "aten.all.default")
def _any_all(g: Draw) -> Arguments:
    return (g.mask(*g.shape(1)),), {}


@case(
    "aten.argmax.default",
    "aten.max.dim",
    "aten.min.dim",
    "aten.argmin.default",
    "aten.prod.dim_int",
)
def _argmax(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.real(*shape), g.dims(len(shape))[0], g.chance()), {}


@case("aten.cumsum.default", "aten.cumprod.default", "aten.sort.default")
def _scan(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.real(*shape), g.dims(len(shape))[0]), {}


@case("aten._softmax.default", "aten._log_softmax.default")
def _softmax(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.real(*shape), g.dims(len(shape))[0], False), {}


@case("aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default")
def _softmax_backward(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.real(*shape), g.real(*shape), g.dims(len(shape))[0], "torch.float64"), {}


@case("aten.topk.default")
def _topk(g: Draw) -> Arguments:
    return (g.real(*g.sizes(3)), 2, g.pick(0, 1, -1)), {}


@case("aten.native_layer_norm.default")
def _layer_norm(g: Draw) -> Arguments:
    shape, tail = g.shape(2, 3), g.pick(1, 2)
    norm = shape[-tail:]
    weight, bias = g.pick((True, True), (True, False), (False, False))
    return (
        g.real(*shape),
        norm,
        g.real(*norm) if weight else None,
        g.real(*norm) if bias else None,
        1e-5,
    ), {}


@case("aten.native_layer_norm_backward.default")
def _layer_norm_backward(g: Draw) -> Arguments:
    (x, norm, weight, bias, eps), _ = _layer_norm(g)
    _, mean, rstd = run_op("aten.native_layer_norm.default", (x, norm, weight, bias, eps), ())
    mask = (g.chance(0.8), weight is not None, bias is not None)
    return (
        g.real(*x.shape),
        x,
        norm,
        mean,
        rstd,
        weight,
        bias,
        mask if any(mask) else (True, *mask[1:]),
    ), {}


@case("aten.native_group_norm.default")
def _group_norm(g: Draw) -> Arguments:
    n, groups, per = g.size(2, 4), g.size(1, 2, 4), g.size(1, 2, 3)
    c = groups * per
    window = g.pick((6,), (2, 3), ())
    affine = g.chance(0.7)
    weights = (g.real(c), g.real(c)) if affine else (None, None)
    positions = 6 if window else 1
    return (g.real(n, c, *window), *weights, n, c, positions, groups, 1e-5), {}


@case("aten.native_group_norm_backward.default")
def _group_norm_backward(g: Draw) -> Arguments:
    (x, weight, bias, n, c, positions, groups, eps), _ = _group_norm(g)
    _, mean, rstd = run_op(
        "aten.native_group_norm.default", (x, weight, bias, n, c, positions, groups, eps), ()
    )
    affine = weight is not None
    return (
        g.real(*x.shape),
        x,
        mean,
        rstd,
        weight,
        n,
        c,
        positions,
        groups,
        (g.chance(0.8) or not affine, affine, affine),
    ), {}


@case("aten.native_batch_norm.default")
def _batch_norm(g: Draw) -> Arguments:
    c, training = g.size(2, 4, 6), g.chance(0.4)
    x = g.real(g.size(2, 3), c, *g.pick((), (3,), (2, 2)))
    weights = (g.real(c), g.real(c)) if g.chance(0.7) else (None, None)
    running = (None, None) if training else (g.real(c), g.positive(c))
    return (x, *weights, *running, training, 0.1, 1e-5), {}


@case("aten.native_batch_norm_backward.default")
def _batch_norm_backward(g: Draw) -> Arguments:
    (x, weight, bias, mean, var, training, momentum, eps), _ = _batch_norm(g)
    _, save_mean, save_rstd = run_op(
        "aten.native_batch_norm.default", (x, weight, bias, mean, var, training, momentum, eps), ()
    )
    mask = (g.chance(0.8), weight is not None, weight is not None)
    return (
        g.real(*x.shape),
        x,
        weight,
        mean,
        var,
        save_mean,
        save_rstd,
        training,
        eps,
        mask if any(mask) else (True, *mask[1:]),
    ), {}


@case("shardwright.batch_norm")
def _training_norm(g: Draw) -> Arguments:
    c = g.size(2, 4, 6)
    x = g.real(g.size(2, 3), c, *g.pick((), (3,), (2, 2)))
    weights = (g.real(c), g.real(c)) if g.chance(0.7) else (None, None)
    running = (g.real(c), g.positive(c)) if g.chance(0.7) else (None, None)
    return (x, *weights, *running, 0.1, 1e-5), {}


@case("shardwright.batch_norm_backward")
def _training_norm_backward(g: Draw) -> Arguments:
    (x, weight, bias, *rest), _ = _training_norm(g)
    _, mean, rstd, _, _ = run_op("shardwright.batch_norm", (x, weight, bias, *rest), ())
    return (g.real(*x.shape), x, weight, mean, rstd, 1e-5), {}


@case("shardwright.rms_norm")
def _rms_norm(g: Draw) -> Arguments:
    shape, dims = g.shape(2, 3), g.pick(1, 2)
    tail = shape[-dims:]
    return (
        g.real(*shape),
        g.real(*tail) if g.chance(0.7) else None,
        dims,
        math.prod(tail),
        1e-5,
    ), {}


@case("shardwright.rms_norm_backward")
def _rms_norm_backward(g: Draw) -> Arguments:
    (x, weight, dims, count, eps), _ = _rms_norm(g)
    _, rstd = run_op("shardwright.rms_norm", (x, weight, dims, count, eps), ())
    return (g.real(*x.shape), x, weight, rstd, dims, count), {}


@case("shardwright.dropout")
def _dropout(g: Draw) -> Arguments:
    return (g.real(*g.shape()), step_key(g.size(), g.size()), g.pick(0.1, 0.5, 0.9), g.size()), {}


@case("shardwright.uniform")
def _uniform(g: Draw) -> Arguments:
    return (step_key(g.size(), g.size()), g.shape(), g.size(), "torch.float64"), {}


def _key_and_samples(g: Draw, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, Any]]:
    """A microbatch's key, and its samples in some dim, if there is one."""
    key = key_of_microbatch(step_key(g.size(), g.size()), g.pick(0, 1, 2))
    here = [(d, n) for d, size in enumerate(shape) for n in (1, size) if size % n == 0]
    return key, {"samples": (lambda d, n: (d, 3 * n, n))(*g.pick(*here))} if here else {}


@case("shardwright.dropout")
def _dropout_of_a_microbatch(g: Draw) -> Arguments:
    key, samples = _key_and_samples(g, shape := g.shape())
    return (g.real(*shape), key, 0.5, g.size()), samples


@case("shardwright.uniform")
def _uniform_of_a_microbatch(g: Draw) -> Arguments:
    key, samples = _key_and_samples(g, shape := g.shape())
    return (key, shape, g.size(), "torch.float64"), samples


@case("shardwright.accumulate")
def _accumulate(g: Draw) -> Arguments:
    return (g.real(*g.shape()),), {"ahead": True} if g.chance() else {}


@case("shardwright.receive", "shardwright.send")
def _crossing(g: Draw) -> Arguments:
    return (g.real(*g.shape()),), {}


@case("shardwright.sum_of_stages")
def _sum_of_stages(g: Draw) -> Arguments:
    shape = g.shape()
    return tuple(g.real(*shape) for _ in range(g.pick(2, 3))), {}


@case("shardwright.piece")
def _piece(g: Draw) -> Arguments:
    shape, m = list(g.sizes(g.pick(1, 2, 3))), g.pick(2, 3)
    dim, here = g.pick(*range(len(shape))), g.pick(1, 2, 4)
    shape[dim] = g.pick(1, 2, 3) * m * here
    key = key_of_microbatch(step_key(g.size(), g.size()), g.pick(*range(m)))
    return (g.real(*shape), key, dim, m * here, here), {}


@case("shardwright.drop_hashes")
def _drop_hashes(g: Draw) -> Arguments:
    return (step_key(g.size(), g.size()), g.shape(1), g.size()), {}


@case("shardwright.drop_hashes")
def _drop_hashes_of_a_microbatch(g: Draw) -> Arguments:
    key, samples = _key_and_samples(g, shape := g.shape(1))
    return (key, shape, g.size()), samples


@case("shardwright.drop_by")
def _drop_by(g: Draw) -> Arguments:
    shape = g.shape(1)
    rows, columns = drop_hashes(step_key(g.size(), g.size()), shape, g.size())
    return (g.real(*shape), rows, columns, g.pick(0.1, 0.5, 0.9)), {}


@case("shardwright.dropout_backward")
def _dropout_backward(g: Draw) -> Arguments:
    shape = g.shape()
    return (g.real(*shape), g.mask(*shape), 0.3), {}


# ------------------------------------------------------------------------------------------ lookups


@case("aten.embedding.default")
def _embedding(g: Draw) -> Arguments:
    v, d = g.size(6, 12), g.size()
    return (g.real(v, d), g.ids(v, *g.shape(0, 2)), *g.pick((), (-1,), (2,))), {}


@case("shardwright.checked_ids")
def _checked_ids(g: Draw) -> Arguments:
    n, wrap = g.size(6, 12), g.chance()
    return (g.ids(n, *g.shape(0, 3)) - n * wrap, n, wrap), {}


@case("aten.embedding_dense_backward.default")
def _embedding_backward(g: Draw) -> Arguments:
    v, d, shape = g.size(6, 12), g.size(), g.shape(1, 2)
    return (g.real(*shape, d), g.ids(v, *shape), v, g.pick(-1, 0, 4), g.chance(0.2)), {}


@case("aten.embedding_dense_backward.default")
def _embedding_backward_padded(g: Draw) -> Arguments:
    return (g.real(4, 6, 2), g.ids(4, 4, 6), 4, 2, False), {}


@case("aten.gather.default")
def _gather(g: Draw) -> Arguments:
    shape = g.sizes(3)
    dim = g.pick(0, 1, 2, -1)
    index = [max(1, s - g.pick(0, 0, 1)) for s in shape]
    index[dim] = g.size()
    return (g.real(*shape), dim, g.ids(shape[dim], *index)), {}


@case("aten.scatter.src", "aten.scatter_add.default")
def _scatter(g: Draw) -> Arguments:
    shape = g.sizes(3)
    dim = g.pick(0, 1, 2, -1)
    index = [max(1, s - g.pick(0, 0, 1)) for s in shape]
    index[dim] = 1
    source = [s + g.pick(0, 0, 1) for s in index]
    return (g.real(*shape), dim, g.ids(shape[dim], *index), g.real(*source)), {}


@case("aten.scatter_reduce.two")
def _scatter_reduce(g: Draw) -> Arguments:
    (x, dim, index, source), _ = _scatter(g)
    return (x, dim, index, source, g.pick("amin", "amax", "prod", "mean")), {}


@case("aten.scatter.value")
def _scatter_value(g: Draw) -> Arguments:
    shape = g.sizes(2)
    return (g.real(*shape), 1, g.ids(shape[1], shape[0], 1), 1.5), {}


@case("aten.index_select.default")
def _index_select(g: Draw) -> Arguments:
    shape, dim = g.sizes(2), g.pick(0, 1, -1)
    return (g.real(*shape), dim, g.ids(shape[dim], g.size(2, 4))), {}


@case("aten.index_add.default")
def _index_add(g: Draw) -> Arguments:
    shape, dim, n = g.sizes(2), g.pick(0, 1, -1), g.size(2, 4)
    source = [n if d == dim % 2 else s for d, s in enumerate(shape)]
    return (g.real(*shape), dim, g.ids(shape[dim], n), g.real(*source)), {}


@case("aten.index.Tensor")
def _index(g: Draw) -> Arguments:
    a, b, c = g.sizes(3)
    where = g.shape(1, 2)
    indices = g.pick(
        (g.ids(a, *where),),
        (None, g.ids(b, *where)),
        (g.ids(a, *where), g.ids(b, *where)),
        (g.ids(a, 4), None, g.ids(c, 4)),
        (g.ids(a, 4, 1), g.ids(b, 3)),
    )
    return (g.real(a, b, c), indices), {}


@case("aten.index_put.default")
def _index_put(g: Draw) -> Arguments:
    (x, indices), _ = _index(g)
    (picked,) = run_op("aten.index.Tensor", (x, indices), ())
    return (x, indices, g.real(*picked.shape), True), {}


# -------------------------------------------------------------------------------------------- fused


def _lstm_operands(g: Draw) -> tuple[Any, ...]:
    t, b, i, h = g.size(1, 3), g.size(2, 4), g.size(1, 3), g.size(2, 4)
    bias = g.chance(0.7)
    x, h0, c0, w_ih, w_hh = (
        g.real(t, b, i),
        g.real(b, h),
        g.real(b, h),
        g.real(4 * h, i),
        g.real(4 * h, h),
    )
    return (x, h0, c0, w_ih, w_hh, g.real(4 * h) if bias else None, g.real(4 * h) if bias else None)


@case("shardwright.lstm")
def _lstm(g: Draw) -> Arguments:
    return _lstm_operands(g), {}


@case("shardwright.lstm")
def _lstm_from_zero(g: Draw) -> Arguments:
    x, h0, _, *weights = _lstm_operands(g)
    return (x, h0, h0, *weights), {}


@case("shardwright.lstm_backward")
def _lstm_backward(g: Draw) -> Arguments:
    operands = _lstm_operands(g)
    y, h, c, reserve = run_op("shardwright.lstm", operands, ())
    grads = g.pick((True, False, False), (True, True, True), (False, True, False))
    given = tuple(
        g.real(*t.shape) if want else None for t, want in zip((y, h, c), grads, strict=True)
    )
    return (*given, *operands, y, c, reserve), {}


@case("shardwright.recurrent")
def _recurrent(g: Draw) -> Arguments:
    t, b, i, h = g.size(1, 3), g.size(2, 4), g.size(1, 3), g.size(2, 4)
    mode, bias = g.pick("gru", "keras-gru", "reset-gru", "tanh", "relu"), g.chance(0.7)
    rows = 3 * h if mode.endswith("gru") else h
    biases = (g.real(rows), g.real(rows)) if bias else (None, None)
    return (g.real(t, b, i), g.real(b, h), g.real(rows, i), g.real(rows, h), *biases, mode), {}


@case("shardwright.recurrent_backward")
def _recurrent_backward(g: Draw) -> Arguments:
    (x, h0, w_ih, w_hh, *biases, mode), _ = _recurrent(g)
    y, h, reserve = run_op("shardwright.recurrent", (x, h0, w_ih, w_hh, *biases, mode), ())
    wanted = g.pick((True, False), (True, True), (False, True))
    grads = tuple(
        g.real(*t.shape) if want else None for t, want in zip((y, h), wanted, strict=True)
    )
    return (*grads, x, h0, w_ih, w_hh, y, reserve, mode), {}


@case("shardwright.masked_lstm")
def _masked_lstm(g: Draw) -> Arguments:
    operands = _lstm_operands(g)
    return (*operands, g.mask(*operands[0].shape[:2])), {}


@case("shardwright.masked_lstm_backward")
def _masked_lstm_backward(g: Draw) -> Arguments:
    (*operands, mask), _ = _masked_lstm(g)
    y, h, c, reserve = run_op("shardwright.masked_lstm", (*operands, mask), ())
    grads = g.pick((True, False, False), (True, True, True), (False, True, False))
    given = tuple(
        g.real(*t.shape) if want else None for t, want in zip((y, h, c), grads, strict=True)
    )
    return (*given, *operands[:5], y, reserve, mask), {}


@case("shardwright.masked_recurrent")
def _masked_recurrent(g: Draw) -> Arguments:
    (*operands, mode), _ = _recurrent(g)
    return (*operands, g.mask(*operands[0].shape[:2]), mode), {}


@case("shardwright.masked_recurrent_backward")
def _masked_recurrent_backward(g: Draw) -> Arguments:
    (*operands, mask, mode), _ = _masked_recurrent(g)
    y, h, reserve = run_op("shardwright.masked_recurrent", (*operands, mask, mode), ())
    wanted = g.pick((True, False), (True, True), (False, True))
    grads = tuple(
        g.real(*t.shape) if want else None for t, want in zip((y, h), wanted, strict=True)
    )
    return (*grads, *operands[:4], y, reserve, mask, mode), {}


@case("shardwright.attention")
def _attention(g: Draw) -> Arguments:
    b, kv_heads, t, d, s = g.sizes(5)
    heads, value_depth = kv_heads * g.pick(1, 1, 2, 3), g.pick(d, d, 3)
    return (
        g.real(b, heads, t, d),
        g.real(b, kv_heads, s, d),
        g.real(b, kv_heads, s, value_depth),
        g.chance(),
        0.3,
    ), {}


@case("shardwright.attention_backward")
def _attention_backward(g: Draw) -> Arguments:
    (q, k, v, causal, scale), _ = _attention(g)
    out, lse = run_op("shardwright.attention", (q, k, v, causal, scale), ())
    return (g.real(*out.shape), q, k, v, out, lse, causal, scale), {}


@case("shardwright.masked_attention")
def _masked_attention(g: Draw) -> Arguments:
    (q, k, v, causal, scale), _ = _attention(g)
    shape = tuple(g.pick(size, 1) for size in (*q.shape[:3], k.shape[2]))
    return (q, k, v, g.pick(g.real, g.mask)(*shape), causal and g.chance(), scale), {}


@case("shardwright.masked_attention_backward")
def _masked_attention_backward(g: Draw) -> Arguments:
    (q, k, v, bias, causal, scale), _ = _masked_attention(g)
    out, lse = run_op("shardwright.masked_attention", (q, k, v, bias, causal, scale), ())
    wanted = bias.is_floating_point() and g.chance()
    return (g.real(*out.shape), q, k, v, bias, out, lse, causal, scale, wanted), {}


@case("shardwright.cross_entropy")
def _cross_entropy(g: Draw) -> Arguments:
    n, c = g.size(2, 4, 6), g.size(4, 6)
    return (g.real(n, c), g.ids(c, n), g.pick(-100, 1)), {}


@case("shardwright.count_targets")
def _count_targets(g: Draw) -> Arguments:
    return (g.ids(5, g.size(2, 4, 6)), g.pick(-100, 1)), {}


@case("shardwright.cross_entropy_backward")
def _cross_entropy_backward(g: Draw) -> Arguments:
    (logits, target, ignored), _ = _cross_entropy(g)
    _, lse = run_op("shardwright.cross_entropy", (logits, target, ignored), ())
    return (g.real(), logits, target, lse, ignored), {}


# -------------------------------------------------------------------------------------------- views

RESHAPES = (
    ((6, 4), (2, 3, 4)),
    ((2, 3, 4), (6, 4)),
    ((2, 3, 4), (24,)),
    ((24,), (2, 12)),
    ((4, 6), (2, 12)),
    ((2, 12), (4, 6)),
    ((3, 4), (3, 1, 4)),
    ((1, 3, 1, 4), (12,)),
    ((), (1,)),
    ((1, 1), ()),
    ((2, 6, 18), (2, 6, 3, 2, 3)),
    ((2, 3), (3, 2)),
    ((4, 2, 3), (4, 3, 2)),
    ((4, 1), (4,)),
    ((6,), (6,)),
    ((4, 9), (6, 6)),
)


@case("shardwright.reshape")
def _reshape(g: Draw) -> Arguments:
    before, after = g.pick(*RESHAPES)
    return (g.real(*before), after), {}


@case("aten.permute.default")
def _permute(g: Draw) -> Arguments:
    shape = g.shape()
    order = list(range(len(shape)))
    g.random.shuffle(order)
    return (g.real(*shape), tuple(order)), {}


@case("aten.slice.Tensor")
def _slice(g: Draw) -> Arguments:
    dim, where = (
        g.pick(0, 1, -1),
        g.pick(
            (0, 6),
            (2, 4),
            (6, 12),
            (1, 9223372036854775807),
            (-4, 9223372036854775807),
            (0, -3),
            (0, 12, 2),
            (0, 12),
            (3, 4),
        ),
    )
    return (g.real(*(12 if d == dim % 3 else g.size() for d in range(3))), dim, *where), {}


@case("aten.slice_backward.default")
def _slice_backward(g: Draw) -> Arguments:
    (x, dim, *where), _ = _slice(g)
    (out,) = run_op("aten.slice.Tensor", (x, dim, *where), ())
    return (
        g.real(*out.shape),
        tuple(x.shape),
        dim,
        *where[:2],
        where[2] if len(where) > 2 else 1,
    ), {}


@case("aten.select.int")
def _select(g: Draw) -> Arguments:
    return (g.real(*g.sizes(3)), g.pick(0, 1, -1), g.pick(0, 1, -1)), {}


@case("aten.select_backward.default")
def _select_backward(g: Draw) -> Arguments:
    (x, dim, index), _ = _select(g)
    (out,) = run_op("aten.select.int", (x, dim, index), ())
    return (g.real(*out.shape), tuple(x.shape), dim, index), {}


@case("aten.chunk.default", "aten.unsafe_chunk.default")
def _chunk(g: Draw) -> Arguments:
    dim = g.pick(0, 1, -1)
    return (
        g.real(*(12 if d == dim % 3 else g.size() for d in range(3))),
        g.pick(1, 2, 3, 4, 5, 20),
        dim,
    ), {}


@case("aten.split.Tensor", "aten.unsafe_split.Tensor")
def _split(g: Draw) -> Arguments:
    dim = g.pick(0, 1, -1)
    return (
        g.real(*(12 if d == dim % 3 else g.size() for d in range(3))),
        g.pick(4, 6, 12, 5, 20),
        *g.pick((dim,), () if dim == 0 else (dim,)),
    ), {}


@case("aten.split_with_sizes.default")
def _split_with_sizes(g: Draw) -> Arguments:
    dim = g.pick(0, 1, -1)
    return (
        g.real(*(12 if d == dim % 3 else g.size() for d in range(3))),
        g.pick((4, 4, 4), (4, 8), (2, 4, 6)),
        dim,
    ), {}


@case("aten.unbind.int")
def _unbind(g: Draw) -> Arguments:
    return (g.real(*g.sizes(3)), g.pick(0, 1, -1)), {}


@case("aten.cat.default")
def _cat(g: Draw) -> Arguments:
    shape, dim = g.shape(1, 3), 0
    dim = g.dims(len(shape))[0]
    equal = g.chance()
    parts = [
        [s if equal or d != dim % len(shape) else g.size() for d, s in enumerate(shape)]
        for _ in range(g.pick(1, 2, 3))
    ]
    return (tuple(g.real(*part) for part in parts), dim), {}


@case("aten.cat.default")
def _cat_itself(g: Draw) -> Arguments:
    x = g.real(*g.sizes(2))
    return ((x, x),), {}


@case("aten.flip.default")
def _flip(g: Draw) -> Arguments:
    shape = g.shape(1)
    return (g.real(*shape), g.dims(len(shape))), {}


@case("aten.roll.default")
def _roll(g: Draw) -> Arguments:
    return (g.real(*g.sizes(3)), *g.pick(((1,), (1,)), ((1, 2), (0, -1)), ((1,), ()))), {}


@case("aten.repeat.default")
def _repeat(g: Draw) -> Arguments:
    return (g.real(*g.sizes(2)), g.pick((1, 2), (2, 1, 3), (1, 1), (3, 2))), {}


@case("aten.constant_pad_nd.default")
def _pad(g: Draw) -> Arguments:
    return (g.real(*g.sizes(3)), g.pick((1, 1), (0, 2, 1, 0), (0, 0, 1, 1), (-1, 0)), 0.0), {}


@case("aten.tril.default", "aten.triu.default")
def _tril(g: Draw) -> Arguments:
    return (g.real(*g.sizes(g.pick(2, 3))), *g.pick((), (1,))), {}


def _adaptive(rank: int) -> Callable[[Draw], Arguments]:
    """Adaptive maximum pooling of that many dims, of a batch or of one sample."""
    return lambda g: (
        (g.real(*(g.size(2, 3, 4) for _ in range(g.pick(1, 2))), *((6,) * rank)), (3,) * rank),
        {},
    )


def _adaptive_backward(rank: int) -> Callable[[Draw], Arguments]:
    def make(g: Draw) -> Arguments:
        (x, size), _ = _adaptive(rank)(g)
        out, indices = run_op(f"aten.adaptive_max_pool{rank}d.default", (x, size), ())
        return (g.real(*out.shape), x, indices), {}

    return make


def _fractional_backward(rank: int) -> Callable[[Draw], Arguments]:
    def make(g: Draw) -> Arguments:
        x = g.real(*g.sizes(2), *((6,) * rank))
        how = ((2,) * rank, (3,) * rank)
        samples = torch.full((*x.shape[:2], rank), 0.5, dtype=x.dtype)
        out, indices = run_op(f"aten.fractional_max_pool{rank}d.default", (x, *how, samples), ())
        return (g.real(*out.shape), x, *how, indices), {}

    return make


for _rank in (2, 3):
    case(f"aten.adaptive_max_pool{_rank}d.default")(_adaptive(_rank))
    case(f"aten.adaptive_max_pool{_rank}d_backward.default")(_adaptive_backward(_rank))
    case(f"aten.fractional_max_pool{_rank}d_backward.default")(_fractional_backward(_rank))


def _transformed(g: Draw) -> tuple[Tensor, tuple[int, ...]]:
    x = torch.complex(*(g.real(*shape) for shape in [g.sizes(3)] * 2))
    return x, g.pick((2,), (0,), (1, 2))


@case("aten._fft_c2c.default")
def _fft_c2c(g: Draw) -> Arguments:
    return (*_transformed(g), 0, g.chance()), {}


@case("aten._fft_c2r.default")
def _fft_c2r(g: Draw) -> Arguments:
    x, dims = _transformed(g)
    size = 2 * (x.shape[dims[-1]] - 1)
    return (x, dims, 2, size + g.pick(0, 1)), {}


@case("aten._fft_r2c.default")
def _fft_r2c(g: Draw) -> Arguments:
    x, dims = _transformed(g)
    return (x.real.contiguous(), dims, 0, True), {}


# ---------------------------------------------------------------------------------------- fused ops


def _body(operands: tuple[Tensor, ...], *calls: tuple[Any, ...], results: tuple[int, ...]) -> Body:
    """A body of calls (op, arguments with slots as Refs) on operands; every call has as many
    results as its op gives."""
    held: dict[int, Tensor] = dict(enumerate(operands))
    members = []
    for op, *args in calls:
        made = run_op(op, map_refs(tuple(args), held.__getitem__), ())
        slots = tuple(len(held) + i for i in range(len(made)))
        held.update(zip(slots, made, strict=True))
        members.append(
            Member(
                op=op,
                args=tuple(args),
                kwargs=(),
                results=slots,
                shapes=tuple(tuple(t.shape) for t in made),
                dtypes=tuple(str(t.dtype).removeprefix("torch.") for t in made),
            )
        )
    kinds = tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in operands)
    return Body(operands=kinds, members=tuple(members), results=results)


@case("shardwright.fused")
def _gate(g: Draw) -> Arguments:
    """SwiGLU: both the gate and the product are read outside."""
    shape = g.sizes(3)
    tensors = g.real(*shape), g.real(*shape)
    calls = ("aten.silu.default", Ref(0)), ("aten.mul.Tensor", Ref(2), Ref(1))
    return (*tensors, _body(tensors, *calls, results=(2, 3))), {}


@case("shardwright.fused")
def _sum_and_norm(g: Draw) -> Arguments:
    """A residual sum and its norm: the last dim cannot be split."""
    shape = g.sizes(3)
    tensors = g.real(*shape), g.real(*shape), g.real(shape[-1])
    calls = (
        ("aten.add.Tensor", Ref(0), Ref(1)),
        ("shardwright.rms_norm", Ref(3), Ref(2), 1, shape[-1], 1e-5),
    )
    return (*tensors, _body(tensors, *calls, results=(3, 4))), {}


@case("shardwright.fused")
def _norm_backward_and_sum(g: Draw) -> Arguments:
    """Backward of a norm, which is linear in both terms of its gradient; the weight's gradient is
    partial over the rows."""
    shape = g.sizes(3)
    tensors = (
        g.real(*shape),
        g.real(*shape),
        g.real(*shape),
        g.real(shape[-1]),
        g.positive(*shape[:-1], 1),
    )
    calls = (
        ("aten.add.Tensor", Ref(0), Ref(1)),
        ("shardwright.rms_norm_backward", Ref(5), Ref(2), Ref(3), Ref(4), 1, shape[-1]),
    )
    return (*tensors, _body(tensors, *calls, results=(6, 7))), {}


@case("shardwright.fused")
def _rotated(g: Draw) -> Arguments:
    """Rotary positions: halves of the last dim change places; another shape between two members."""
    batch, heads, length = g.sizes(3)
    tensors = g.real(batch, heads, length, 4), g.real(length, 4)
    calls = (
        ("aten.split.Tensor", Ref(0), 2, -1),
        ("aten.neg.default", Ref(3)),
        ("aten.cat.default", (Ref(4), Ref(2)), -1),
        ("aten.mul.Tensor", Ref(5), Ref(1)),
        ("shardwright.reshape", Ref(6), (batch * heads, length, 4)),
        ("aten.neg.default", Ref(7)),
    )
    return (*tensors, _body(tensors, *calls, results=(8,))), {}
