"""A small instance of an op's call, with numbers in its tensors, which discovery runs whole and
in shards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from planner.graph.graph import Ref, map_refs
from planner.rules.signature import Call

__all__ = ["Instance", "int_paths", "replaced", "run", "small_instances"]

#: Calls of no more elements than this are tried at their own shapes, if no smaller ones run.
_LARGEST = 1 << 18
#: The sizes that replace a call's own, in the order of first use; four shards divide each.
_SMALL = (4, 8, 12, 16, 20, 24, 28, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A call at small shapes. `args` and `kwargs` hold Refs by operand position; `sizes` maps
    the call's sizes to the small ones."""

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    operands: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def draw(self, seed: int, positive: bool) -> list[Tensor]:
        """Random operands: float64 in place of any float dtype, integers below `highest`."""
        generator = torch.Generator().manual_seed(seed)
        return [
            _numbers(shape, dtype, self.highest, positive, generator)
            for shape, dtype in zip(self.operands, self.dtypes, strict=True)
        ]

    @property
    def highest(self) -> int:
        """Integers are drawn below this, so that they are valid indices into any dim, and into a
        shard of any. Kernels are not trusted to check: a few write wherever an index says."""
        return 1 if any(1 in shape for shape in self.operands) else 2

    @property
    def has_indices(self) -> bool:
        """Whether some operand is of integers, which may be indices."""
        return any(dtype.startswith(("int", "uint")) for dtype in self.dtypes)


def _numbers(
    shape: tuple[int, ...], dtype: str, high: int, positive: bool, generator: torch.Generator
) -> Tensor:
    kind = getattr(torch, dtype)
    if kind == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if kind.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)
    if kind.is_floating_point:
        # Between 0.1 and 0.9, logarithms and inverses of most functions are finite.
        if positive:
            return 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randint(0, high, shape, generator=generator).to(kind)


#: Arguments that name places in other operands, or that only the forward pass can make. Kernels
#: trust them: with random ones they would write anywhere.
_PLACES = {
    "indices",
    "max_indices",
    "offsets",
    "offset2bag",
    "maximum_indices",
    "lengths",
    "logsumexp",
}


def _trusts(op: str) -> bool:
    """Whether the op takes places that its kernel may not check."""
    schema = getattr(overload(op), "_schema", None)
    return schema is not None and any(argument.name in _PLACES for argument in schema.arguments)


def small_instances(call: Call, dtypes: tuple[str, ...]) -> Iterator[Instance]:
    """The instances to try; none if trying the op on random numbers may end the process."""
    if not _trusts(call.op):
        yield from _instances(call, dtypes)


def _instances(call: Call, dtypes: tuple[str, ...]) -> Iterator[Instance]:
    """The call with each of its sizes replaced by a small one, in arguments too; then at its own
    shapes, if they are small."""
    order = iter(range(len(call.operands)))
    args, kwargs = map_refs((call.args, call.kwargs), lambda _: Ref(next(order)))
    call = replace(call, kwargs=kwargs)
    shapes = (*call.operands, *call.results)
    distinct = list(dict.fromkeys(size for shape in shapes for size in shape if size > 1))
    if len(distinct) <= len(_SMALL):
        sizes = dict(zip(distinct, _SMALL, strict=False))
        yield _instance(call, _with_sizes(args, sizes), dtypes, sizes)
        yield _instance(call, args, dtypes, sizes)
    if sum(math.prod(shape) for shape in shapes) <= _LARGEST:
        yield _instance(call, args, dtypes, {size: size for size in distinct})


def _instance(call: Call, args: Any, dtypes: tuple[str, ...], sizes: dict[int, int]) -> Instance:
    operands = tuple(tuple(sizes.get(size, size) for size in shape) for shape in call.operands)
    return Instance(
        op=call.op,
        args=args,
        kwargs=call.kwargs,
        operands=operands,
        dtypes=dtypes,
        sizes=tuple(sizes.items()),
    )


def _with_sizes(args: Any, sizes: dict[int, int]) -> Any:
    if isinstance(args, tuple):
        return tuple(_with_sizes(item, sizes) for item in args)
    return sizes.get(args, args) if isinstance(args, int) and not isinstance(args, bool) else args


def int_paths(args: Any, value: int, at: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The paths at which the integer `value` occurs in nested arguments."""
    if isinstance(args, tuple):
        for index, item in enumerate(args):
            yield from int_paths(item, value, (*at, index))
    elif isinstance(args, int) and not isinstance(args, bool) and args == value:
        yield at


def replaced(args: Any, path: tuple[int, ...], value: int) -> Any:
    """Nested arguments with `value` at `path`."""
    if not path:
        return value
    return tuple(
        replaced(item, path[1:], value) if index == path[0] else item
        for index, item in enumerate(args)
    )


def overload(op: str) -> Any:
    """torch's op overload of that name."""
    place: Any = torch.ops
    for part in op.split("."):
        place = getattr(place, part)
    return place


#: What an op raises if it refuses its arguments: torch's own errors are of these kinds, and so are
#: those of ops written in Python.
_REFUSALS = (
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    MemoryError,
)


def run(instance: Instance, args: Any, tensors: list[Tensor]) -> list[Tensor] | None:
    """The op's tensor results; None if it refuses its arguments, in whatever way."""
    place = overload(instance.op)
    args, kwargs = map_refs((args, instance.kwargs), lambda i: tensors[i])
    real, named = _real(args), {k: _real(v) for k, v in kwargs}
    try:
        out = place(*real, **named)
    except _REFUSALS:
        return None
    results = list(out) if isinstance(out, tuple | list) else [out]
    tensors = [r if isinstance(r, Tensor) else torch.empty(0) for r in results]
    # There are no pieces of sparse tensors.
    return tensors if all(t.layout == torch.strided for t in tensors) else None


def _real(argument: Any) -> Any:
    """torch's object for an argument that a `Graph` spells as text (a dtype, a device)."""
    if isinstance(argument, tuple):
        return [_real(item) for item in argument]
    if isinstance(argument, str) and argument.startswith("torch."):
        found = getattr(torch, argument.removeprefix("torch."))
        wide = isinstance(found, torch.dtype) and found.is_floating_point
        return torch.float64 if wide else found
    return argument
