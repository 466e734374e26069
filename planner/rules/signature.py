"""What an op does to the dims of its tensors: the `Signature`, written in *letters* like an
einsum.

For one call, a rule names the letter at every dim of every operand and result, and says what
splitting a letter does. A result that has the letter is split too; one that does not is partial
(`reduced`) or the same on every shard. A rule is trusted only because `tests/planner/test_rules.py`
runs the op whole and in shards and compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "RULES",
    "Call",
    "Letters",
    "Local",
    "OpCost",
    "Rule",
    "Signature",
    "dim_of",
    "no_cost",
    "register",
    "unsplit",
]

#: The letters of every dim of one tensor: ((0,), (1, 2)) is a tensor whose second dim is the
#: product of letters 1 and 2.
Letters = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One op with its arguments and the shapes of its tensors, all global; operands are those of
    `args` and then of `kwargs`."""

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCost:
    """The work of one call at given letter sizes. `gemm` is (batch, m, n, k); `steps` counts
    sequential time steps."""

    flops: float
    elements: float  # read and written, in elements
    gemm: tuple[int, int, int, int] | None = None
    steps: int = 1


def no_cost(sizes: tuple[int, ...]) -> OpCost:
    """The cost of an op that reads and writes no element: a view."""
    return OpCost(flops=0.0, elements=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """`sizes[l]` is the size of letter l. `fixed` letters cannot be split. If a letter of
    `reduced[r]` is split, result r is a partial sum. `linear` are groups of operand positions: if
    those operands are partial sums (and all others whole), every result is a partial sum. `inner`
    letters can be split only with collectives inside the op; `inner_traffic` returns these as
    (kind, elements of the whole buffer, times), given the local letter sizes. `view`: the op does
    no work at all."""

    kind: str
    sizes: tuple[int, ...]
    operands: tuple[Letters, ...]
    results: tuple[Letters, ...]
    fixed: frozenset[int] = frozenset()
    reduced: tuple[frozenset[int], ...] = ()
    linear: tuple[frozenset[int], ...] = ()
    inner: frozenset[int] = frozenset()
    inner_traffic: Callable[[tuple[int, ...], int], tuple[tuple[str, float, int], ...]] | None = (
        None
    )
    cost: Callable[[tuple[int, ...]], OpCost] | None = None
    view: bool = False
    # Results that only the op's own backward can read: never redistributed.
    opaque: frozenset[int] = frozenset()
    placed: bool = False  # the kernel takes the place of its shard in the whole tensor
    names: tuple[tuple[int, str], ...] = ()  # words for letters, if the op knows one
    source: str = "written"  # or `discovered`, or `replicated` if neither found anything to split
    arguments: tuple[
        tuple[tuple[int, ...], int], ...
    ] = ()  # of a discovered one: where a letter's size stands in the arguments
    lstm: Callable[[tuple[int, ...]], tuple[int, int, int, int]] | None = (
        None  # steps, batch, width, hidden: whose reserve is opaque
    )
    # Letters of which a shard must be one run: of their leaves only the first splits.
    contiguous: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for tensor in (*self.operands, *self.results):
            for dim in tensor:
                assert all(0 <= letter < len(self.sizes) for letter in dim), self
        assert not self.reduced or len(self.reduced) == len(self.results)

    def reduced_in(self, result: int) -> frozenset[int]:
        """The letters that make this result partial if they are split."""
        return self.reduced[result] if self.reduced else frozenset()

    def elements(self, sizes: tuple[int, ...]) -> float:
        """Elements of all operands and results at the given letter sizes."""
        return float(
            sum(
                math.prod(sizes[x] for dim in t for x in dim)
                for t in (*self.operands, *self.results)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """One shard of a call, as `Rule.localize` reads it. `split` has, for each letter that is
    split, the mesh axes that split it; `results` the local shapes; `sizes` the local letter sizes.
    For the `contiguous` letters among those split, `pieces` has the sizes on all ranks of the
    axes, in the order of their group, and `offsets` the first element of this shard. `leaves`, for
    `placed` ops only, are every letter's leaves, outermost first, each as (size, size here, first
    element of this shard)."""

    results: tuple[tuple[int, ...], ...]
    split: dict[int, tuple[int, ...]]
    sizes: tuple[int, ...]
    pieces: dict[int, tuple[int, ...]] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    leaves: tuple[tuple[tuple[int, int, int], ...], ...] = ()


def dim_of(call: Call, place: int, rank: int, default: int = 0) -> int:
    """The dim that is argument number `place`, counted from the front (negative dims resolved); 0
    for a tensor without dims, as in torch."""
    dim: int = call.args[place] if len(call.args) > place else default
    return dim % max(rank, 1)


def unsplit(call: Call, kind: str = "elementwise", source: str = "written") -> Signature:
    """The signature of a call in which nothing can be split."""
    shapes = (*call.operands, *call.results)
    sizes = tuple(size for shape in shapes for size in shape)
    numbers = iter(range(len(sizes)))
    letters: list[Letters] = [tuple((next(numbers),) for _ in shape) for shape in shapes]
    return Signature(
        kind=kind,
        sizes=sizes,
        operands=tuple(letters[: len(call.operands)]),
        results=tuple(letters[len(call.operands) :]),
        fixed=frozenset(range(len(sizes))),
        source=source,
    )


#: op, args, kwargs to run on a shard; they still hold all `Ref`s of the call, in the same order.
LocalCall = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The signature of an op's calls, and how its arguments change on a shard (default: not at
    all)."""

    signature: Callable[[Call], Signature]
    localize: Callable[[Call, Local], LocalCall] = field(
        default=lambda call, local: (call.op, call.args, call.kwargs)
    )


RULES: dict[str, Rule] = {}


def register(
    *ops: str, localize: Callable[[Call, Local], LocalCall] | None = None
) -> Callable[[Callable[[Call], Signature]], Callable[[Call], Signature]]:
    """Registers the decorated function as the signature of `ops`."""

    def keep(signature: Callable[[Call], Signature]) -> Callable[[Call], Signature]:
        for op in ops:
            assert op not in RULES, op
            RULES[op] = (
                Rule(signature=signature)
                if localize is None
                else Rule(signature=signature, localize=localize)
            )
        return signature

    return keep
