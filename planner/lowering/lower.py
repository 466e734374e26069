"""Lowers a plan's choices to the `Program` that every rank runs.

Model, mesh, choices -> Program. For every op: bring each operand to the layout that its strategy
reads (by the steps that the cost table costed), apply its views, run the op on the shard. Gradients
are reduced in buckets as they appear, beside compute. Parameters that are held in pieces are
gathered a layer ahead: for forward and again for backward (ZeRO-3), or, if they are only updated in
pieces, once and then kept (ZeRO-1 and 2). The instructions, their merging and their order do not
depend on anything that differs between ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from planner.dims.roots import is_view
from planner.graph.checking import checked
from planner.graph.graph import Graph, Node
from planner.graph.layout import Mesh
from planner.graph.sections import RECEIVE, is_sent_once
from planner.lowering.assemble import Needed, assemble
from planner.lowering.bodies import bodies_of
from planner.lowering.draft import Draft
from planner.lowering.local_shapes import LocalShapes
from planner.lowering.messages import Messages
from planner.lowering.operands import Operands
from planner.lowering.outliving import Outliving
from planner.lowering.parameters import Parameters
from planner.lowering.shard_ops import ShardOps
from planner.lowering.stage_bodies import StageEnds, stage_bodies_of
from planner.program.actions import Action
from planner.program.check_order import order_faults
from planner.program.program import Compute, InputState, Program, Sent
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.modes import mode_faults
from planner.strategy.strategies import Strategy
from planner.strategy.traced_model import Model

__all__ = ["lower", "lowered"]


def lower(
    model: Model,
    mesh: Mesh,
    choices: Choices,
    costing: Costing,
    *,
    timing: Costing | None = None,
    rank: int = 0,
    actions: Sequence[Action] = (),
) -> Program:
    """The program of one training step of `rank`; rank 0 has the largest shards. `costing` decides
    the steps by which layouts change; `timing` (by default the same) the seconds of every
    instruction, which are those of rank 0 on every rank. If the model is a pipeline stage, it runs
    `actions` of the letters of schedules."""
    made = lowered(model, mesh, choices, costing, timing=timing, rank=rank, actions=actions)
    return made(choices.bucket)


def lowered(
    model: Model,
    mesh: Mesh,
    choices: Choices,
    costing: Costing,
    *,
    timing: Costing | None = None,
    rank: int = 0,
    actions: Sequence[Action] = (),
) -> Callable[[int], Program]:
    """A function from the bytes of a bucket to the program with such buckets; the bucket of
    `choices` is ignored. All these programs have the same instructions in order of need, which are
    made once."""
    timing = timing or costing
    local, draft = LocalShapes(model, mesh, rank), Draft()
    needed = _in_order_of_need(choices, local, draft, costing, timing)
    checked("lowering", lambda: order_faults(draft.instructions, mesh))
    overlaps = costing.cluster.device.overlap > 0
    stored = {new for old, new in needed.stores if old in needed.stored_by_all}
    if actions:
        assert needed.ends is not None
        bodies = stage_bodies_of(
            draft,
            actions,
            needed.ends,
            kept=needed.kept,
            held=needed.held,
            stored_by_all=stored,
            trained=needed.trained,
            timing=timing,
        )
    else:
        bodies = bodies_of(
            draft,
            model.graph.microbatches,
            kept=needed.kept,
            held=needed.held,
            stored_by_all=stored,
            timing=timing,
        )

    def program(bucket: int) -> Program:
        return assemble(needed, draft, bodies, local, bucket, timing=timing, overlaps=overlaps)

    return program


def _in_order_of_need(
    choices: Choices, local: LocalShapes, draft: Draft, costing: Costing, timing: Costing
) -> Needed:
    """Adds all instructions to the draft."""
    checked("modes", lambda: mode_faults(local.model, choices.strategies))
    messages = Messages(local, draft, costing=costing, timing=timing)
    ops = ShardOps(local, draft, costing=costing, timing=timing)
    operands = Operands(choices, local, draft, messages, ops)
    parameters = Parameters(choices, local, draft, operands)
    outliving = Outliving(local, draft, operands, timing)
    graph = local.model.graph
    states = parameters.hold(costing.updates.formats)
    trained = frozenset(value for state in states for value in (state.value, state.shard))
    _forward_and_backward(choices, local, draft, operands, parameters)
    loss = None if graph.loss is None else outliving.read_whole(graph.loss, trained)
    reported = tuple((name, outliving.read_whole(value, trained)) for name, value in graph.reported)
    stores = outliving.stores()
    squares = parameters.update(states, timing)
    sent = tuple(_sent(number, value, choices, local, operands) for number, value in graph.sent)
    inputs = (*operands.inputs.values(), *((squares[1],) if squares else ()))
    held = trained | {state.value for state in inputs}
    return Needed(
        states=states,
        inputs=inputs,
        loss=loss,
        reported=reported,
        stores=stores,
        held=held,
        kept=held | {v for v in (loss, *(v for _, v in (*stores, *reported))) if v is not None},
        trained=trained,
        initial_bytes=parameters.nbytes(costing)
        | {"inputs": sum(_input_bytes(draft, graph, state) for state in inputs)},
        sent=sent,
        squares=None if squares is None else (squares[0], squares[1].value),
        ends=_ends(graph, sent, inputs, squares),
        stored_by_all=frozenset(
            state.value for (value, _), state in operands.inputs.items() if value in graph.carried
        ),
    )


def _sent(
    number: int, value: int, choices: Choices, local: LocalShapes, operands: Operands
) -> Sent:
    """A value that leaves the stage, in the layout in which the op that sends it leaves it."""
    graph = local.model.graph
    writer = graph.values[value].writer
    assert writer is not None
    (layout,) = choices.strategies[writer].results
    return Sent(
        crossing=number,
        value=operands.operand(value, graph.nodes[writer].phase, layout),
        subshape=local.model.dims.shapes[value],
        layout=layout,
        dtype=graph.values[value].dtype,
    )


def _ends(
    graph: Graph,
    sent: tuple[Sent, ...],
    inputs: Sequence[InputState],
    squares: tuple[int, InputState] | None,
) -> StageEnds:
    """Where a stage meets others."""
    once = {number for number, value in graph.sent if is_sent_once(graph, value)}
    late = {
        str(number)
        for number, value in graph.received
        if any(n.phase == "update" and value in n.operands for n in graph.nodes if n.op == RECEIVE)
    }
    own, total = ((), ()) if squares is None else ((squares[0],), (squares[1].value,))
    return StageEnds(
        sent=frozenset(one.value for one in sent if one.crossing not in once),
        shares=frozenset((*own, *(one.value for one in sent if one.crossing in once))),
        late=frozenset(s.value for s in inputs if s.kind == "received" and s.name in late),
        squares=frozenset(total),
    )


def _input_bytes(draft: Draft, graph: Graph, state: InputState) -> int:
    """Bytes of an input that are held before the step: those of all microbatches. What comes from
    another stage is not there yet; it is the result of the op that receives it."""
    if state.kind == "received":
        return 0
    pieces = 1 if state.pieces is None else graph.microbatches
    return pieces * draft.value_bytes[state.value]


def _forward_and_backward(
    choices: Choices, local: LocalShapes, draft: Draft, operands: Operands, parameters: Parameters
) -> None:
    """Adds every op that is no view and, after the op that makes a gradient, its reduction."""
    model = local.model
    ready: dict[int | None, list[int]] = defaultdict(list)
    for index, parameter in enumerate(model.graph.parameters):
        ready[model.roots[parameter.gradient].value].append(index)
    for node in model.graph.nodes:
        if is_view(model.dims, node.index):
            continue
        strategy = choices.strategies[node.index]
        operands.make(node, strategy)
        checked("op", partial(_layout_faults, node, strategy, local, draft))
        for value in node.results:
            for index in ready.get(value, ()):
                parameters.reduce(index)


def _layout_faults(
    node: Node, strategy: Strategy, local: LocalShapes, draft: Draft
) -> Iterator[str]:
    """Shapes of the op just added, by its rule, that are not those of its values' sub-dims in their
    layouts."""
    made = draft.instructions[-1]
    assert isinstance(made, Compute)
    for value, layout, shape in zip(node.results, strategy.results, made.shapes, strict=True):
        if value is not None and shape != local.shape(value, layout):
            yield (
                f"{made.id} makes {shape}, value {value} in layout {layout} is "
                f"{local.shape(value, layout)}"
            )
