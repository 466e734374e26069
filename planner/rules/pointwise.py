"""Element-wise ops, with broadcasting; and ops that make a tensor without operands."""

from __future__ import annotations

from typing import Any

from planner.graph.graph import Ref
from planner.rules.signature import Call, Letters, Local, LocalCall, OpCost, Signature, register

__all__ = ["broadcast", "pointwise_signature"]

#: Element-wise ops that are not linear: no partial sum passes through them.
_CURVED = (
    "aten.abs.default", "aten.relu.default", "aten.sigmoid.default", "aten.tanh.default",
    "aten.exp.default", "aten.log.default", "aten.log1p.default", "aten.log2.default",
    "aten.expm1.default", "aten.sqrt.default", "aten.rsqrt.default", "aten.reciprocal.default",
    "aten.sin.default", "aten.cos.default", "aten.tan.default", "aten.atan.default",
    "aten.atan2.default", "aten.erf.default", "aten.gelu.default", "aten.silu.default",
    "aten.elu.default", "aten.softplus.default", "aten.leaky_relu.default", "aten.hardtanh.default",
    "aten.hardswish.default", "aten.hardsigmoid.default", "aten.mish.default", "aten.sign.default",
    "aten.sgn.default", "aten.floor.default", "aten.ceil.default", "aten.round.default",
    "aten.trunc.default", "aten.isnan.default", "aten.isinf.default", "aten.nan_to_num.default",
    "aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar", "aten.clamp.default",
    "aten.clamp_min.default", "aten.clamp_max.default", "aten.clamp_min.Tensor",
    "aten.clamp_max.Tensor", "aten.maximum.default", "aten.minimum.default", "aten.xlogy.Tensor",
    "aten.eq.Scalar", "aten.eq.Tensor", "aten.ne.Scalar", "aten.ne.Tensor", "aten.gt.Scalar",
    "aten.gt.Tensor", "aten.ge.Scalar", "aten.ge.Tensor", "aten.lt.Scalar", "aten.lt.Tensor",
    "aten.le.Scalar", "aten.le.Tensor", "aten.logical_not.default", "aten.logical_and.default",
    "aten.logical_or.default", "aten.logical_xor.default", "aten.bitwise_not.default",
    "aten.bitwise_and.Tensor", "aten.bitwise_or.Tensor", "aten.masked_fill.Tensor",
    "aten.add.Scalar", "aten.sub.Scalar", "aten.rsub.Scalar", "aten.fmod.Scalar",
    "aten.remainder.Scalar", "aten.floor_divide.default",
)  # fmt: skip

#: Gradients of element-wise ops: linear in the gradient that comes in, which is the first operand.
_GRADIENTS = (
    "aten.sigmoid_backward.default", "aten.tanh_backward.default",
    "aten.threshold_backward.default", "aten.gelu_backward.default", "aten.silu_backward.default",
    "aten.elu_backward.default", "aten.leaky_relu_backward.default",
    "aten.hardtanh_backward.default", "aten.softplus_backward.default",
    "aten.hardswish_backward.default", "aten.hardsigmoid_backward.default",
    "aten.mish_backward.default",
)  # fmt: skip

#: Ops whose arguments have one form, for the test that runs them all.
POINTWISE = (*_CURVED, *_GRADIENTS, "aten.masked_fill.Scalar")

_FIRST = (frozenset({0}),)


def broadcast(operand: tuple[int, ...], result: tuple[int, ...]) -> tuple[Letters, tuple[int, ...]]:
    """The operand's letters if result dim d is letter d, and the dims at which it is broadcast,
    which have no letter."""
    lead = len(result) - len(operand)
    letters: list[tuple[int, ...]] = []
    for d, size in enumerate(operand):
        same = size == result[lead + d]
        letters.append((lead + d,) if same else ())
    return tuple(letters), tuple(d for d in range(len(result)) if d < lead or not letters[d - lead])


def pointwise_signature(
    call: Call, linear: tuple[frozenset[int], ...] = (), view: bool = False
) -> Signature:
    """Every dim of the result is a letter. An operand that is broadcast along a letter stays whole
    if that letter is split."""
    (result,) = call.results
    return Signature(
        kind="elementwise",
        sizes=result,
        operands=tuple(broadcast(shape, result)[0] for shape in call.operands),
        results=(tuple((d,) for d in range(len(result))),),
        linear=linear,
        view=view,
    )


def _tensors(call: Call) -> list[int]:
    """Operand positions of the arguments, None for a scalar: `add(x, 2)` is linear in nothing."""
    return [i for i, a in enumerate(call.args) if isinstance(a, Ref)]


@register(*_CURVED, "shardwright.checked_ids")
def _plain(call: Call) -> Signature:
    return pointwise_signature(call)


@register(
    *_GRADIENTS, "aten.neg.default", "aten.mul.Scalar", "aten.div.Scalar", "aten.clone.default"
)
def _linear_in_first(call: Call) -> Signature:
    return pointwise_signature(call, _FIRST)


@register("aten._to_copy.default")
def _to_copy(call: Call) -> Signature:
    """Partial sums pass, unless the new dtype is an integer one, which rounds."""
    dtype = str(dict(call.kwargs).get("dtype", ""))
    return pointwise_signature(call, () if "int" in dtype or "bool" in dtype else _FIRST)


@register("aten.masked_fill.Scalar")
def _masked_fill(call: Call) -> Signature:
    return pointwise_signature(call, _FIRST if call.args[2] == 0 else ())


@register("aten.add.Tensor", "aten.sub.Tensor")
def _linear_together(call: Call) -> Signature:
    together = frozenset({0, 1}) if _tensors(call) == [0, 1] else frozenset()
    return pointwise_signature(call, (together,) if together else ())


@register("aten.where.self")
def _where(call: Call) -> Signature:
    return pointwise_signature(call, (frozenset({1, 2}),) if len(call.operands) == 3 else ())


@register("aten.mul.Tensor")
def _product(call: Call) -> Signature:
    return pointwise_signature(call, tuple(frozenset({i}) for i in range(len(call.operands))))


@register("aten.div.Tensor")
def _quotient(call: Call) -> Signature:
    return pointwise_signature(call, (frozenset({0}),) if isinstance(call.args[0], Ref) else ())


# ------------------------------------------------------------------------------------- from nothing


def _local_shape_first(call: Call, local: Local) -> LocalCall:
    return call.op, (local.results[0], *call.args[1:]), call.kwargs


@register(
    "aten.full.default", "aten.zeros.default", "aten.ones.default", localize=_local_shape_first
)
def _constant(call: Call) -> Signature:
    (result,) = call.results
    return Signature(
        kind="elementwise",
        sizes=result,
        operands=(),
        results=(tuple((d,) for d in range(len(result))),),
        cost=_write_only,
    )


@register(
    "aten.arange.default",
    "aten.arange.start",
    "aten.arange.start_step",
    "aten.scalar_tensor.default",
    "aten.tril_indices.default",
    "shardwright.constant",
)
def _whole(call: Call) -> Signature:
    (result,) = call.results
    letters = tuple((d,) for d in range(len(result)))
    return Signature(
        kind="elementwise",
        sizes=result,
        operands=(),
        results=(letters,),
        fixed=frozenset(range(len(result))),
        cost=_write_only,
    )


def _write_only(sizes: tuple[int, ...]) -> OpCost:
    total = 1.0
    for size in sizes:
        total *= size
    return OpCost(flops=0.0, elements=total)


def _stretch_args(call: Call, local: Local) -> LocalCall:
    args: tuple[Any, ...] = (call.args[0], local.results[0])
    return call.op, args, ()


@register("aten.expand.default", localize=_stretch_args)
def _expand(call: Call) -> Signature:
    signature = pointwise_signature(call, (frozenset({0}),))
    return Signature(
        kind="view",
        sizes=signature.sizes,
        operands=signature.operands,
        results=signature.results,
        linear=signature.linear,
        cost=lambda sizes: OpCost(flops=0.0, elements=0.0),
    )
