"""Ops that are refused: what is wrong with each, and the line of the model that calls it."""

from __future__ import annotations

from typing import Any

import torch

from cost_models.errors import NotTraceable
from planner.kernels.functional import is_view_in_place
from planner.state.source_line import from_text

__all__ = ["ChangedInPlace", "Refused", "check_op", "refused_write"]

aten = torch.ops.aten

_RANDOM_HINT = (
    "this random op is not supported: draw from torch.rand, randn, bernoulli, randint, "
    "multinomial or dropout"
)


class Refused(NotTraceable):
    """An op is refused. The step is traced again with stacks, so that the message names its
    line."""


class ChangedInPlace(Refused):
    """An op writes to a tensor in place, and the write is seen through another tensor."""


def check_op(node: torch.fx.Node, op: str, name: str) -> None:
    """Raises `Refused` for an op of the model `name` that no plan can run, whatever it writes
    to."""
    target: Any = node.target
    where = _where(node, name)
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise Refused(f"{where} runs {op}: {_RANDOM_HINT}")
    if op.startswith("aten.index_put") and any(_is_mask(i) for i in node.args[1]):  # type: ignore[union-attr]
        raise Refused(
            f"{where} writes a tensor of several numbers under a mask ({op}): use torch.where"
        )
    if op == "aten.native_batch_norm.default" and node.args[5] and node.args[3] is not None:
        raise Refused(
            f"{where} normalises by the statistics of a sample or group and changes running ones in place: "
            "set track_running_stats=False"
        )


def refused_write(node: torch.fx.Node, op: str, name: str) -> Refused:
    """The error for an op of the model `name` that writes to what something else sees."""
    target: Any = node.target
    where = _where(node, name)
    if target is not aten.copy_.default and not is_view_in_place(target):
        return Refused(
            f"{where} runs {op}, which changes a tensor in place and has no out-of-place "
            "form: use another op"
        )
    op = node.meta.get("custom", {}).get("writes", op)
    return ChangedInPlace(
        f"{where} changes a tensor in place ({op}) that is a parameter, an input, part of a buffer, or read "
        "again: use the out-of-place op; a whole buffer may be changed"
    )


def _where(node: torch.fx.Node, name: str) -> str:
    path = node.meta.get("custom", {}).get("path", "")
    return f"module {path or '(top)'!r} of {name!r}{_line(node)}"


def _is_mask(index: Any) -> bool:
    """Whether an index is a mask."""
    return isinstance(index, torch.fx.Node) and index.meta["val"].dtype == torch.bool


def _line(node: torch.fx.Node) -> str:
    """The place in the user's code that called the op, if it was recorded; else empty."""
    place = from_text(str(node.meta.get("stack_trace") or ""))
    return f" at {place}" if place else ""
