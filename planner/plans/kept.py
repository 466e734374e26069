"""What the ops of forward hold for backward: the kept activations by layer and op.

Model, choices -> bytes per device by node. Counted are results in the layout in which their op
leaves them; copies in other layouts come on top, and so do parameters that are gathered or cast.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from cost_models.memory import dtype_bytes
from planner.dims.ties import pattern_of
from planner.graph.graph import Node
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.modes import rerun
from planner.strategy.strategies import SECOND
from planner.strategy.traced_model import Model
from planner.strategy.update_costs import local_numel

__all__ = ["KeptRow", "held_for_backward", "kept_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """What the like ops of `count` layers hold between forward and backward, all together."""

    group: str
    op: str
    count: int
    nbytes: int


def held_for_backward(model: Model, choices: Choices, costing: Costing) -> dict[int, int]:
    """Bytes of their results that ops of forward hold until backward reads them, by node; of a
    result that is only looked at, through a view, too."""
    again, graph = rerun(model, choices.strategies), model.graph
    held = {
        _memory_of(model, value)
        for (value, _), uses in model.uses.items()
        if value not in again and value not in model.formats
        for use in uses
        if use.node is not None and _in_backward(choices, graph.nodes[use.node])
    }
    out: dict[int, int] = defaultdict(int)
    for value in sorted(held):
        writer = graph.values[value].writer
        if writer is not None and graph.nodes[writer].phase == "forward":
            out[writer] += _bytes(model, choices, costing, value, graph.nodes[writer])
    return dict(out)


def kept_rows(model: Model, choices: Choices, costing: Costing) -> tuple[KeptRow, ...]:
    """What is held, ops at the same places of like layers together, the largest first."""
    groups: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for index, nbytes in held_for_backward(model, choices, costing).items():
        node = model.graph.nodes[index]
        groups[pattern_of(node.path), node.op.split(".")[1]].append((node.path, nbytes))
    rows = (
        KeptRow(
            group=group,
            op=op,
            count=len({path for path, _ in some}),
            nbytes=sum(n for _, n in some),
        )
        for (group, op), some in groups.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.nbytes))


def _in_backward(choices: Choices, node: Node) -> bool:
    """Whether an op reads its operands in backward: it belongs there, or runs again."""
    return node.phase == "backward" or choices.strategies[node.index].mode in SECOND


def _memory_of(model: Model, value: int) -> int:
    """The root value whose memory a root value shares, if its op returns a view with a layout of
    its own (expand, slice, split); else itself."""
    writer = model.graph.values[value].writer
    while writer is not None and model.dims.ops[writer].signature.kind == "view":
        operands = model.graph.nodes[writer].operands
        if not operands:
            break
        value = model.roots[operands[0]].value
        writer = model.graph.values[value].writer
    return value


def _bytes(model: Model, choices: Choices, costing: Costing, value: int, node: Node) -> int:
    strategy, dims = choices.strategies[node.index], model.dims.ops[node.index]
    place = node.results.index(value)
    if place in dims.signature.opaque:
        reserve = costing.ops.reserve_bytes(node, dims, strategy.sizes)
        if reserve is not None:
            return reserve
    numel = local_numel(model.dims.flat(value), strategy.results[place], costing.sizes)
    return numel * dtype_bytes(model.graph.values[value].dtype)
