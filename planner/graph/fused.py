"""What a fused op does: the small graph of ops that run as one pass over memory.

A `Body` is an argument of the node `shardwright.fused`, after the node's operands. It names its own
tensors by *slots*: operand i is slot i, and the members' results follow in order. Nothing in it
depends on the place of the node in the step, so like layers have equal bodies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from planner.graph.graph import Graph, Node, Ref, Value, refs_in

__all__ = ["FUSED", "Body", "Member", "as_graph", "body_of", "body_text", "called"]

#: The op that runs a body.
FUSED = "shardwright.fused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One op of a body. `args` and `kwargs` are those of a graph's node, but a `Ref` is a slot;
    `results[i]` is the slot of its i-th result, None if nothing reads it."""

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    results: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def operands(self) -> list[int]:
        """The slots that it reads."""
        return refs_in((self.args, self.kwargs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The members in order, the (shape, dtype) of every operand, and the slots of the results."""

    operands: tuple[tuple[tuple[int, ...], str], ...]
    members: tuple[Member, ...]
    results: tuple[int, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Bodies are keys of many look-ups, and hashing one walks all its arguments.
        object.__setattr__(self, "_hash", hash((self.operands, self.members, self.results)))

    def __hash__(self) -> int:
        return self._hash

    def kinds(self) -> dict[int, tuple[tuple[int, ...], str]]:
        """The (shape, dtype) of every slot."""
        out = dict(enumerate(self.operands))
        for member in self.members:
            for slot, shape, dtype in zip(
                member.results, member.shapes, member.dtypes, strict=True
            ):
                if slot is not None:
                    out[slot] = shape, dtype
        return out


def body_of(args: tuple[Any, ...]) -> Body:
    """The body among the arguments of a fused op: the last."""
    body = args[-1]
    assert isinstance(body, Body), args
    return body


def as_graph(body: Body) -> Graph:
    """The body as a graph of its own, whose values are the slots and whose inputs the operands."""
    writer = {slot: index for index, member in enumerate(body.members) for slot in member.results}
    kinds = body.kinds()
    assert sorted(kinds) == list(range(len(kinds))), body
    return Graph(
        nodes=tuple(_node(index, member) for index, member in enumerate(body.members)),
        values=tuple(
            Value(
                id=slot,
                shape=shape,
                dtype=dtype,
                kind="input" if slot < len(body.operands) else "activation",
                name=str(slot),
                writer=writer.get(slot),
            )
            for slot, (shape, dtype) in sorted(kinds.items())
        ),
        parameters=(),
        inputs=tuple(range(len(body.operands))),
        buffers=(),
        loss=body.results[0],
    )


def _node(index: int, member: Member) -> Node:
    return Node(
        index=index,
        op=member.op,
        args=member.args,
        kwargs=member.kwargs,
        results=member.results,
        result_shapes=member.shapes,
        result_dtypes=member.dtypes,
        phase="forward",
        path="",
    )


def called(body: Body) -> str:
    """The names of the members' ops, in order: `rms_norm, _to_copy`."""
    return ", ".join(member.op.split(".")[1] for member in body.members)


def body_text(body: Body) -> str:
    """The body as a person reads it: `{$2 = silu($0); $3 = mul.Tensor($2, $1) -> $2, $3}`."""
    lines = "; ".join(map(_member_text, body.members))
    return f"{{{lines} -> {', '.join(f'${slot}' for slot in body.results)}}}"


def _member_text(member: Member) -> str:
    made = ", ".join("_" if slot is None else f"${slot}" for slot in member.results)
    arguments = [_argument(value) for value in member.args]
    arguments += [f"{key}={_argument(value)}" for key, value in member.kwargs]
    name = member.op.split(".", 1)[1].removesuffix(".default")
    return f"{made} = {name}({', '.join(arguments)})"


def _argument(value: Any) -> str:
    if isinstance(value, Ref):
        return f"${value.id}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_argument, value))}{',' * (len(value) == 1)})"
    return value if isinstance(value, str) and value.startswith("torch.") else repr(value)
