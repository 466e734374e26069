"""Ops that write to their arguments (`x.pow_(2)`, `torch.lerp(a, b, w, out=c)`), replaced by ops
that return new tensors, which are then copied.

Overload -> its `Twin`, found by schema: the same arguments by name and type, none of them written,
and a result for each that was. Names do not suffice: the twin of `pow_.Scalar` is
`pow.Tensor_Scalar`. The only writes left in a recorded step are `copy_`, which `read_fx` reads, and
ops without a twin, which it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.torch_private.modes import TorchDispatchMode
from planner.torch_private.recording import OpOverload, writing_as

__all__ = ["Functional", "Twin", "is_view_in_place", "rewritten", "twin_of", "written_arguments"]

#: Arguments that a twin may have and its op does not: the tensor written to implies them.
_OF_DESTINATION = {
    "dtype": "Optional[ScalarType]",
    "layout": "Optional[Layout]",
    "device": "Optional[Device]",
    "pin_memory": "Optional[bool]",
}
#: Ops that a twin and a copy cannot replace: they give a tensor other memory or another size, or
#: add to what is in `out`.
_NO_TWIN = (
    "aten::set_", "aten::set", "aten::set_data", "aten::resize_", "aten::resize",
    "aten::resize_as_", "aten::resize_as", "aten::resize_as_sparse_", "aten::resize_as_sparse",
    "aten::_compute_linear_combination",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """The op that returns what another one writes. `written` are the names of the arguments that
    the other writes to, pure outputs first; the twin's results are what the other returns beside
    them, and then a new tensor (or list) for each of `written`."""

    op: OpOverload
    written: tuple[str, ...]


def written_arguments(op: OpOverload) -> tuple[str, ...]:
    """The names of the arguments that the op's schema says are written to: `out=` and its like,
    then the others."""
    arguments = [
        a for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write
    ]
    return tuple(a.name for a in sorted(arguments, key=_is_out, reverse=True))


def is_view_in_place(op: OpOverload) -> bool:
    """Whether the op changes only its argument's shape or strides, not its memory: `x.t_()`,
    `x.squeeze_(0)`."""
    twin = twin_of(op) if torch.Tag.inplace_view in op.tags else None
    return twin is not None and twin.op._schema.returns[0].alias_info is not None


@cache
def twin_of(op: OpOverload) -> Twin | None:
    """The op that returns what `op` writes; None if there is none, or `op` does not write."""
    schema, written = op._schema, written_arguments(op)
    if not written or schema.name in _NO_TWIN:
        return None
    packets = getattr(torch.ops, schema.name.split("::")[0])
    for name in _names(schema.name.split("::")[1]):
        packet = getattr(packets, name, None)
        for overload in packet.overloads() if packet is not None else ():
            found = _as_twin(op, written, getattr(packet, overload))
            if found is not None:
                return found
    return None


def _names(name: str) -> tuple[str, ...]:
    """The names that a twin may have, the likeliest first."""
    if name.startswith("__i") and name.endswith("__"):
        return (f"__{name[3:]}",)
    plain = name if name.endswith("__") else name.removesuffix("_")
    return plain, f"{plain}_functional"


def _as_twin(op: OpOverload, written: tuple[str, ...], other: OpOverload) -> Twin | None:
    """`other` as the twin of `op`, if its schema fits; else None."""
    ours, theirs = op._schema, other._schema
    wanted = {a.name: str(a.real_type) for a in ours.arguments if not _is_out(a)}
    given = {a.name: str(a.real_type) for a in theirs.arguments}
    results = [str(r.real_type) for r in ours.returns if r.alias_info is None]
    types = {a.name: str(a.real_type) for a in ours.arguments}
    results += [types[name] for name in written]
    if theirs.is_mutable or [str(r.real_type) for r in theirs.returns] != results:
        return None
    return Twin(op=other, written=written) if given in (wanted, wanted | _OF_DESTINATION) else None


def _is_out(argument: Any) -> bool:
    """Whether an argument is only there to be written to."""
    return bool(
        argument.kwarg_only and argument.alias_info is not None and argument.alias_info.is_write
    )


# ---------------------------------------------------------------------------------------- recording


class Functional(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, every op that writes is run as its twin and a copy."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _is_rewritten(func):
            return rewritten(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@cache
def _is_rewritten(op: Any) -> bool:
    return (
        op._schema.name != "aten::copy_"
        and torch.Tag.inplace_view not in op.tags
        and twin_of(op) is not None
    )


def rewritten(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """What `op(*args, **kwargs)` returns and writes, by its twin and `copy_`."""
    twin = twin_of(op)
    assert twin is not None, op
    given = {a.name: a.default_value for a in op._schema.arguments}
    given |= dict(zip(given, args, strict=False)) | kwargs
    results = twin.op(**_arguments(twin, given))
    made = list(results) if len(twin.op._schema.returns) > 1 else [results]
    fresh = made[: len(made) - len(twin.written)]
    with writing_as(str(op)):
        for name, value in zip(twin.written, made[len(fresh) :], strict=True):
            _write(op, given[name], value)
    return _returned(op, given, fresh)


def _arguments(twin: Twin, given: Mapping[str, Any]) -> dict[str, Any]:
    """The twin's arguments by name. A dtype that was not given is that of the tensor written to,
    in which the op itself works."""
    destination = given[twin.written[0]]
    taken = [a.name for a in twin.op._schema.arguments]
    found = {name: given[name] for name in taken if name in given}
    if isinstance(destination, Tensor):
        found |= {
            name: getattr(destination, name)
            for name in ("dtype", "device")
            if name in taken and found.get(name) is None
        }
    return found


def _write(op: OpOverload, destination: Any, value: Any) -> None:
    """Copies a twin's result to the tensor that its op writes to."""
    if isinstance(destination, (tuple, list)):
        for one, new in zip(destination, value, strict=True):
            _write(op, one, new)
    elif destination is not None:
        if destination.shape != value.shape and destination.numel() == 0:
            destination.resize_(value.shape)
        if destination.shape != value.shape:
            raise NotTraceable(
                f"{op} writes a result of shape {tuple(value.shape)} to a tensor of shape "
                f"{tuple(destination.shape)}, which would be resized: pass a tensor of the "
                "result's shape"
            )
        destination.copy_(value)


def _returned(op: OpOverload, given: Mapping[str, Any], fresh: list[Any]) -> Any:
    """What the op returns: the arguments that its schema aliases to results, and the new tensors
    in `fresh`."""
    names = {_alias(a): a.name for a in op._schema.arguments if a.alias_info is not None}
    new = iter(fresh)
    out = [
        next(new) if r.alias_info is None else given[names[_alias(r)]] for r in op._schema.returns
    ]
    return out[0] if len(out) == 1 else tuple(out) or None


def _alias(argument: Any) -> frozenset[str]:
    return frozenset(argument.alias_info.before_set)
