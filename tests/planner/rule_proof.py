"""Proves an op rule by execution: the op whole, the op on shards cut as a layout says, and the
two compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from planner.dims.subdims import OpDims, SubDims, call_of, infer
from planner.graph.graph import Graph, Group, Node, Ref, Value, map_refs, refs_in
from planner.graph.layout import (
    PARTIAL_SUM,
    REPLICATE,
    Layout,
    Mesh,
    SubShape,
    local_shape,
    local_sizes,
)
from planner.program.operators import bare
from planner.rules import Signature, local_call
from planner.strategy.strategies import local_of

__all__ = [
    "Choice",
    "Trial",
    "Wrong",
    "as_torch",
    "assignments",
    "caught",
    "mutations",
    "prove",
    "run_op",
    "run_shard",
    "trial",
]

#: What one mesh axis does to an op: splits a leaf (an int), or holds a linear group of operands as
#: partial sums.
Choice = int | frozenset[int]


class Wrong(AssertionError):
    """The shards do not make up the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One call with real operands, its whole results, and its sub-dims."""

    graph: Graph
    node: Node
    subdims: SubDims
    op: OpDims
    operands: tuple[Tensor, ...]
    results: tuple[Tensor | None, ...]


def run_op(op: str, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    """The op's results as a tuple; dtypes are given by name, as a `Graph` holds them."""
    namespace, name, *overload = op.split(".")
    function = (
        bare(op)
        if namespace == "shardwright"
        else getattr(getattr(torch.ops.aten, name), overload[0])
    )
    out = function(*as_torch(args), **{key: as_torch(value) for key, value in kwargs})
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def as_torch(argument: Any) -> Any:
    """An argument with dtypes as torch's, which a `Graph` holds by name."""
    if isinstance(argument, tuple):
        return tuple(as_torch(item) for item in argument)
    if isinstance(argument, str) and argument.startswith("torch."):
        return getattr(torch, argument.removeprefix("torch."))
    return argument


def trial(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, taken_apart: bool) -> Trial:
    """A graph of the one call `op(*args)`; with `taken_apart`, every dim is reshaped to its
    prime factors beside it, so that letters become several leaves."""
    values: list[Value] = []
    known: dict[int, int] = {}
    operands: list[Tensor] = []

    def add(tensor: Tensor, kind: str) -> int:
        dtype = str(tensor.dtype).removeprefix("torch.")
        values.append(
            Value(
                id=len(values),
                shape=tuple(tensor.shape),
                dtype=dtype,
                kind=kind,
                name=str(len(values)),
            )
        )
        return len(values) - 1

    def convert(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            operands.append(argument)
            if id(argument) not in known:
                known[id(argument)] = add(argument, "input")
            return Ref(known[id(argument)])
        if isinstance(argument, tuple | list):
            return tuple(convert(item) for item in argument)
        return argument

    converted, words = convert(args), tuple(sorted(kwargs.items()))
    results = tuple(
        r if isinstance(r, Tensor) else None
        for r in run_op(op, map_refs_in_order(converted, operands), words)
    )
    present = [torch.empty(0) if r is None else r for r in results]
    node = _node(
        op,
        converted,
        words,
        [None if r is None else add(r, "activation") for r in results],
        present,
    )
    nodes = [node]
    for value in list(values) if taken_apart else []:
        factored = tuple(f for size in value.shape for f in _factors(size))
        if value.shape and math.prod(value.shape) > 0 and factored != value.shape:
            made = add(torch.empty(factored), "activation")
            shaped = torch.empty(factored)
            nodes.append(
                replace(
                    _node("shardwright.reshape", (Ref(value.id), factored), (), [made], [shaped]),
                    index=len(nodes),
                )
            )
    graph = Graph(
        nodes=tuple(nodes), values=tuple(values), parameters=(), inputs=(), buffers=(), loss=0
    )
    subdims = infer(graph)
    return Trial(
        graph=graph,
        node=node,
        subdims=subdims,
        op=subdims.ops[0],
        operands=tuple(operands),
        results=results,
    )


def _node(
    op: str, args: Any, kwargs: Any, results: list[int | None], tensors: list[Tensor]
) -> Node:
    return Node(
        index=0,
        op=op,
        args=args,
        kwargs=kwargs,
        results=tuple(results),
        result_shapes=tuple(tuple(t.shape) for t in tensors),
        result_dtypes=tuple(str(t.dtype).removeprefix("torch.") for t in tensors),
        phase="forward",
        path="",
    )


def _factors(size: int) -> list[int]:
    for factor in range(2, size):
        if size % factor == 0:
            return [factor, *_factors(size // factor)]
    return [size]


def map_refs_in_order(args: Any, tensors: Any) -> Any:
    """`args` with the i-th Ref replaced by `tensors[i]`."""
    order = iter(tensors)
    return map_refs(args, lambda _: next(order))


# -------------------------------------------------------------------------------------- what to try


def assignments(
    op: OpDims, limit: int = 24
) -> Iterator[tuple[tuple[int, ...], tuple[Choice, ...]]]:
    """(mesh sizes, what each axis does): every free leaf alone, evenly or not, nested axes on
    one leaf, pairs of leaves, linear groups alone and beside a split leaf."""
    free = [
        leaf
        for leaf in range(len(op.sizes))
        if leaf not in op.fixed and op.letter[leaf] not in op.signature.inner
    ]
    counts = {leaf: [n for n in (2, 3) if op.sizes[leaf] >= n] for leaf in free}
    free = [leaf for leaf in free if counts[leaf]]
    for leaf in free:
        for n in counts[leaf]:
            yield (n,), (leaf,)
        for a, b in itertools.product((2, 3), repeat=2):
            if op.sizes[leaf] >= a * b:
                yield (a, b), (leaf, leaf)
    for one, two in itertools.islice(itertools.permutations(free, 2), limit):
        yield (counts[one][-1], counts[two][0]), (one, two)
    for group in op.signature.linear:
        yield (2,), (group,)
        for leaf in free[:3]:
            yield (2, counts[leaf][0]), (group, leaf)
            yield (counts[leaf][0], 2), (leaf, group)


def operand_layout(op: OpDims, position: int, choices: tuple[Choice, ...]) -> Layout:
    leaves = op.operands[position]
    return tuple(
        (PARTIAL_SUM if position in choice else REPLICATE)
        if isinstance(choice, frozenset)
        else (leaves.index(choice) if choice in leaves else REPLICATE)
        for choice in choices
    )


def result_layout(op: OpDims, result: int, choices: tuple[Choice, ...]) -> Layout:
    leaves = op.results[result]

    def place(choice: Choice) -> int:
        if isinstance(choice, frozenset):
            return PARTIAL_SUM
        if choice in leaves:
            return leaves.index(choice)
        return PARTIAL_SUM if op.letter[choice] in op.signature.reduced_in(result) else REPLICATE

    return tuple(map(place, choices))


# ----------------------------------------------------------------------------------- cut, run, join

Shards = dict[tuple[int, ...], Tensor]


def cut(tensor: Tensor, subshape: SubShape, layout: Layout, mesh: tuple[int, ...]) -> Shards:
    """The shard of `tensor` for every coordinate of the mesh; partial sums are random terms.

    Shards are contiguous, and must be at run time: of a strided mean or deviation, torch 2.13's
    `native_layer_norm_backward` and `native_group_norm_backward` read other elements, without a
    word.
    """
    shards: Shards = {(): tensor.reshape([s for dim in subshape for s in dim])}
    for axis, placement in enumerate(layout):
        shards = {
            (*at, i): piece
            for at, shard in shards.items()
            for i, piece in enumerate(_pieces(shard, placement, mesh[axis]))
        }
    return {
        at: shard.reshape(local_shape(subshape, layout, mesh, at)).contiguous()
        for at, shard in shards.items()
    }


def _pieces(shard: Tensor, placement: int, count: int) -> list[Tensor]:
    if placement == REPLICATE:
        return [shard] * count
    if placement >= 0:
        return list(shard.tensor_split(count, placement))
    if shard.dtype == torch.bool:
        return [shard, *[torch.zeros_like(shard)] * (count - 1)]
    if shard.is_floating_point() or shard.is_complex():
        terms = [torch.randn_like(shard) for _ in range(count - 1)]
    else:
        terms = [torch.randint_like(shard, 5) for _ in range(count - 1)]
    return [shard - sum(terms), *terms]


def join(shards: Shards, subshape: SubShape, layout: Layout, mesh: tuple[int, ...]) -> Tensor:
    """The inverse of `cut`. Raises Wrong where shards that should be the same differ."""
    flat = tuple(s for dim in subshape for s in dim)
    shards = {
        at: shard.reshape(local_sizes(flat, layout, mesh, at)) for at, shard in shards.items()
    }
    for axis in reversed(range(len(mesh))):
        ahead = sorted({at[:axis] for at in shards})
        shards = {
            at: _joined([shards[(*at, i)] for i in range(mesh[axis])], layout[axis]) for at in ahead
        }
    return shards[()].reshape([math.prod(dim) for dim in subshape])


def _joined(pieces: list[Tensor], placement: int) -> Tensor:
    if placement >= 0:
        return torch.cat(pieces, placement)
    if placement == PARTIAL_SUM:
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        return total
    for piece in pieces[1:]:
        _same(pieces[0], piece, "shards that should be the same")
    return pieces[0]


def _same(whole: Tensor, made: Tensor, what: str, rounding: float = 1e-10) -> None:
    if whole.shape != made.shape or whole.dtype != made.dtype:
        raise Wrong(
            f"{what}: {whole.dtype} {tuple(whole.shape)} against {made.dtype} {tuple(made.shape)}"
        )
    if whole.is_complex():
        whole, made = (
            torch.view_as_real(whole.resolve_conj()),
            torch.view_as_real(made.resolve_conj()),
        )
    if not whole.is_floating_point():
        if not torch.equal(whole, made):
            raise Wrong(f"{what}: integers differ")
        return
    finite = whole[whole.isfinite()]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    tolerance = (rounding if whole.dtype == torch.float64 else 1e-4) * scale
    if not torch.allclose(whole, made, rtol=0, atol=tolerance, equal_nan=True):
        raise Wrong(f"{what}: largest difference {float((whole - made).abs().max()):.3g}")


def run_shard(
    trial: Trial,
    mesh: tuple[int, ...],
    choices: tuple[Choice, ...],
    at: tuple[int, ...],
    operands: list[Tensor],
    group: Any = None,
) -> tuple[Any, ...]:
    """The call on the shard at mesh coordinate `at`, as the rule's `localize` writes it. Checks
    the results' shapes."""
    op = trial.op
    leaves = tuple(choice if isinstance(choice, int) else REPLICATE for choice in choices)
    on = Mesh(tuple(map(str, range(len(mesh)))), mesh)
    shapes = []
    for r, value in enumerate(trial.node.results):
        layout = result_layout(op, r, choices)
        shapes.append(
            trial.node.result_shapes[r]
            if value is None
            else local_shape(trial.subdims.shapes[value], layout, mesh, at)
        )
    call = replace(call_of(trial.graph, trial.node), args=_by_position(trial.node.args))
    sizes = local_sizes(op.sizes, leaves, mesh, at)
    assert sizes is not None
    rank = sum(i * math.prod(mesh[axis + 1 :]) for axis, i in enumerate(at))
    local = local_of(op, leaves, on, rank, op.letter_sizes(sizes), tuple(shapes))
    name, args, kwargs = local_call(op.signature, call, local)

    def resolve(argument: Any) -> Any:
        if isinstance(argument, Group):
            assert group is not None, "an inner letter needs a process group"
            return group
        return tuple(map(resolve, argument)) if isinstance(argument, tuple) else argument

    out = run_op(
        name,
        resolve(map_refs(args, lambda i: operands[i])),
        tuple((k, resolve(v)) for k, v in kwargs),
    )
    for r, value in enumerate(trial.node.results):
        if value is not None and tuple(out[r].shape) != shapes[r]:
            raise Wrong(
                f"result {r} has local shape {tuple(out[r].shape)}, the layout says {shapes[r]}"
            )
    return out


def _by_position(args: Any) -> Any:
    return map_refs_in_order(args, [Ref(i) for i in range(len(refs_in(args)))])


def prove(trial: Trial, mesh: tuple[int, ...], choices: tuple[Choice, ...]) -> None:
    """Raises Wrong, or whatever the op raises, if the call's shards do not make up the whole
    call."""
    op = trial.op
    shards = []
    for position, value in enumerate(trial.node.operands):
        layout = operand_layout(op, position, choices)
        shards.append(cut(trial.operands[position], trial.subdims.shapes[value], layout, mesh))
    places = list(itertools.product(*map(range, mesh)))
    out = {at: run_shard(trial, mesh, choices, at, [cuts[at] for cuts in shards]) for at in places}
    for r, result in enumerate(trial.node.results):
        if result is None:
            continue
        layout = result_layout(op, r, choices)
        made = join({at: out[at][r] for at in places}, trial.subdims.shapes[result], layout, mesh)
        whole = trial.results[r]
        assert whole is not None
        rounding = 1e-4 if any(t.dtype == torch.float32 for t in trial.operands) else 1e-10
        _same(whole, made, f"{trial.node.op} result {r}, {choices} on mesh {mesh}", rounding)


def mutations(trial: Trial) -> Iterator[tuple[str, Trial, Choice]]:
    """The trial with its rule made wrong in one place, and what an axis must do to notice: a
    fixed letter freed, a partial sum called the same on every shard, or a partial sum of one
    operand said to pass."""
    signature = trial.op.signature
    used = {
        letter
        for tensor in (*signature.operands, *signature.results)
        for dim in tensor
        for letter in dim
    }
    for letter in sorted(signature.fixed & used):
        for leaf in (leaf for leaf, mine in enumerate(trial.op.letter) if mine == letter):
            yield (
                f"free {letter}",
                with_signature(trial, replace(signature, fixed=signature.fixed - {letter})),
                leaf,
            )
    for r in range(len(signature.reduced)):
        for letter in sorted(signature.reduced[r] - signature.fixed - signature.inner):
            if trial.node.results[r] is None:
                continue
            reduced = tuple(x - {letter} if i == r else x for i, x in enumerate(signature.reduced))
            leaf = trial.op.letter.index(letter) if letter in trial.op.letter else -1
            if leaf >= 0:
                yield (
                    f"same {letter} in {r}",
                    with_signature(trial, replace(signature, reduced=reduced)),
                    leaf,
                )
    for position, operand in enumerate(trial.operands):
        group = frozenset({position})
        if group not in signature.linear and operand.is_floating_point():
            yield (
                f"linear {position}",
                with_signature(trial, replace(signature, linear=(group,))),
                group,
            )


def caught(trial: Trial, choice: Choice) -> bool | None:
    """Whether some mesh shows that the trial's signature is wrong; None where no mesh divides
    the leaf."""
    counts = [n for n in (2, 3) if isinstance(choice, frozenset) or trial.op.sizes[choice] % n == 0]
    for n in counts:
        try:
            prove(trial, (n,), (choice,))
        except (
            AssertionError,
            RuntimeError,
            IndexError,
            ValueError,
            ZeroDivisionError,
            UserWarning,
        ):
            return True
    return False if counts else None


def with_signature(trial: Trial, signature: Signature) -> Trial:
    """The trial under another signature with the same letters, its fixed leaves those of the new
    one."""
    fixed = frozenset(
        leaf for leaf, letter in enumerate(trial.op.letter) if letter in signature.fixed
    )
    return replace(trial, op=replace(trial.op, signature=signature, fixed=fixed))
