"""Op names to callables: ATen overloads, and our own kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import unknown_name
from planner import kernels
from planner.graph.fused import FUSED, Body
from planner.graph.graph import Serial, map_refs
from planner.kernels.formats import alike
from planner.kernels.formulas import FORMULAS

__all__ = [
    "bare",
    "is_overload",
    "makes_tensors",
    "may_alias",
    "callable_of",
    "returns_list",
    "run_body",
    "torch_constants",
]

_OURS: dict[str, Callable[..., Any]] = {
    "shardwright.accumulate": kernels.accumulate,
    "shardwright.attention": kernels.attention,
    "shardwright.attention_backward": kernels.attention_backward,
    "shardwright.checked_ids": kernels.checked_ids,
    "shardwright.constant": kernels.constant,
    "shardwright.batch_norm": kernels.batch_norm,
    "shardwright.batch_norm_backward": kernels.batch_norm_backward,
    "shardwright.count_targets": kernels.count_targets,
    "shardwright.clipped": kernels.clipped,
    "shardwright.square_sum": kernels.square_sum,
    "shardwright.cross_entropy": kernels.cross_entropy,
    "shardwright.cross_entropy_backward": kernels.cross_entropy_backward,
    "shardwright.drop_by": kernels.drop_by,
    "shardwright.drop_hashes": kernels.drop_hashes,
    "shardwright.dropout": kernels.dropout,
    "shardwright.dropout_backward": kernels.dropout_backward,
    "shardwright.embedding_backward_shard": kernels.embedding_backward_shard,
    "shardwright.embedding_shard": kernels.embedding_shard,
    FUSED: lambda *args: run_body(args[-1], *args[:-1]),
    "shardwright.lstm": kernels.lstm_forward,
    "shardwright.lstm_backward": kernels.lstm_backward,
    "shardwright.masked_attention": kernels.masked_attention,
    "shardwright.masked_attention_backward": kernels.masked_attention_backward,
    "shardwright.masked_lstm": kernels.masked_lstm,
    "shardwright.masked_lstm_backward": kernels.masked_lstm_backward,
    "shardwright.masked_recurrent": kernels.masked_recurrent,
    "shardwright.masked_recurrent_backward": kernels.masked_recurrent_backward,
    "shardwright.piece": kernels.piece,
    "shardwright.ready": kernels.ready,
    "shardwright.receive": kernels.receive,
    "shardwright.recurrent": kernels.recurrent_forward,
    "shardwright.recurrent_backward": kernels.recurrent_backward,
    "shardwright.reshape": torch.reshape,
    "shardwright.rms_norm": kernels.rms_norm,
    "shardwright.rms_norm_backward": kernels.rms_norm_backward,
    "shardwright.send": kernels.send,
    "shardwright.sum_of_stages": kernels.sum_of_stages,
    "shardwright.uniform": kernels.uniform,
}

#: Those whose result may be an operand, or a part of it.
_ALIASING = frozenset(
    f"shardwright.{name}" for name in ("accumulate", "piece", "receive", "reshape", "send")
)

#: torch's own bindings of frequent ops: the same arguments, about 0.5 us less per call than
#: `torch.ops` (measured, 2.13).
_DIRECT: dict[str, Callable[..., Any]] = {
    "aten.add.Tensor": torch.add,
    "aten.addmm.default": torch.addmm,
    "aten.bmm.default": torch.bmm,
    "aten.div.Tensor": torch.div,
    "aten.mm.default": torch.mm,
    "aten.mul.Tensor": torch.mul,
    "aten.permute.default": torch.permute,
    "aten.sub.Tensor": torch.sub,
    "aten.t.default": torch.t,
    "aten.tanh.default": torch.tanh,
    "aten.transpose.int": torch.transpose,
    "aten.view.default": torch.reshape,
    "aten._unsafe_view.default": torch.reshape,
}


def callable_of(op: str) -> Callable[..., Any]:
    """The callable for an op's name, which takes operands of any strides. An unknown name is
    refused, with the nearest known one."""
    return alike(op, bare(op))


def bare(op: str) -> Callable[..., Any]:
    """The same without the wrapper for strides: some of torch's ops ignore those of operands."""
    if op in _OURS:
        return _OURS[op]
    if op in _DIRECT:
        return _DIRECT[op]
    overload: Callable[..., Any] | None = _overload(op)
    if overload is None:
        raise unknown_name("op", op, list(_OURS))
    return overload


def may_alias(op: str) -> bool:
    """Whether a result of the op may share memory with an argument."""
    if op in _OURS:
        return op in _ALIASING
    overload = _overload(op)
    # The last are views whose schema promises that they are not written to.
    return (
        overload is None
        or any(r.alias_info is not None for r in overload._schema.returns)
        or op.startswith(("aten._unsafe_view", "aten.unsafe_"))
    )


def makes_tensors(op: str) -> bool:
    """Whether the op makes a tensor without tensor operands. It must be given a device: the default
    would be the host's memory."""
    if op in _OURS:
        return op in ("shardwright.constant", "shardwright.drop_hashes", "shardwright.uniform")
    overload = None if op in _DIRECT else _overload(op)
    if overload is None:
        return False
    takes_tensors = any("Tensor" in str(a.type) for a in overload._schema.arguments)
    return not takes_tensors and any(a.name == "device" for a in overload._schema.arguments)


def is_overload(op: str) -> bool:
    """Whether torch has an op by that name; it has those of our own kernels that are traced, as
    `NAME.default`."""
    return _overload(op) is not None and op.count(".") > 1


def returns_list(op: str) -> bool:
    """Whether the op returns one list of tensors (`aten.split`), not a tensor or a fixed number
    of them."""
    overload = None if op in _OURS else _overload(op)
    return overload is not None and any(
        isinstance(r.type, torch.ListType) for r in overload._schema.returns
    )


def _overload(op: str) -> Any:
    place: Any = torch.ops
    for part in op.split("."):
        place = getattr(place, part, None)
        if place is None:
            return None
    return place


def torch_constants(argument: Any) -> Any:
    """Nested arguments of a graph's node, converted for a call: `"torch.float32"` becomes
    torch.float32, a `Serial` its number."""
    if isinstance(argument, tuple):
        return tuple(torch_constants(a) for a in argument)
    if isinstance(argument, Serial):
        return argument.number
    if isinstance(argument, str) and argument.startswith("torch."):
        return getattr(torch, argument.removeprefix("torch."))
    return argument


def run_body(body: Body, *operands: Tensor) -> Any:
    """The results of a fused op, member by member: what its kernel is compiled from, and what that
    must give. One result is no tuple."""
    held: dict[int, Any] = dict(enumerate(operands))
    for member in body.members:
        call = FORMULAS.get(member.op) or callable_of(member.op)
        args, kwargs = map_refs(
            (torch_constants(member.args), torch_constants(member.kwargs)), held.__getitem__
        )
        out = call(*_lists(args), **{key: value for key, value in kwargs if key != "pin_memory"})
        results = out if isinstance(out, tuple | list) else (out,)
        held.update(
            {s: one for s, one in zip(member.results, results, strict=True) if s is not None}
        )
    made = tuple(held[slot] for slot in body.results)
    return made if len(made) > 1 else made[0]


def _lists(args: tuple[Any, ...]) -> list[Any]:
    return [_lists(item) if isinstance(item, tuple) else item for item in args]
