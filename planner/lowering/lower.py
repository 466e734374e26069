"""Lowers a plan's choices to the `Program` that every rank runs.

Model, mesh, choices -> Program. For every op: bring each operand to the layout that its strategy
reads (the steps that the cost table paid for), look at it through its views, run the op on the
shard. Gradients are reduced in buckets as they appear, beside compute. Parameters that are held in
pieces are gathered a layer ahead: for forward and again for backward (ZeRO-3), or, if they are only
updated in pieces, once and kept (ZeRO-1 and 2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cost_models.cluster import Cluster
from cost_models.memory import dtype_bytes
from planner.dims.subdims import OpDims, call_of
from planner.dims.ties import layer_of
from planner.dims.views import is_view
from planner.graph.checking import checked
from planner.graph.graph import Node, Parameter, Serial, map_refs
from planner.graph.layout import (
    REPLICATE,
    Layout,
    Mesh,
    SubShape,
    local_shape,
    local_sizes,
    piece_sizes,
)
from planner.lowering.clip import clip_gradients
from planner.lowering.copying import timed
from planner.lowering.join_biases import join_biases
from planner.lowering.order import SMALL, finish
from planner.program.check import faults
from planner.program.check_order import order_faults
from planner.program.check_program import program_faults
from planner.program.copies import leads
from planner.program.operators import torch_constants
from planner.program.program import (
    Communicate,
    Compute,
    InputState,
    Instruction,
    ParameterState,
    Program,
    Ref,
    Update,
)
from planner.rules import local_call
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.redistribute import Layouts, Step
from planner.strategy.strategies import Strategy, local_of
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
) -> Program:
    """The program of one training step of `rank`; rank 0 has the largest shards. `costing`
    decides by which steps layouts change; `timing` (by default the same) gives every instruction
    its seconds, which are those of rank 0 on every rank."""
    return lowered(model, mesh, choices, costing, timing=timing, rank=rank)(choices.bucket)


def lowered(
    model: Model,
    mesh: Mesh,
    choices: Choices,
    costing: Costing,
    *,
    timing: Costing | None = None,
    rank: int = 0,
) -> Callable[[int], Program]:
    """What gives the programs that differ only in the bytes of a bucket, of which `choices` say
    nothing then: all have the same instructions in order of need, which are made once."""
    lowering = _Lowering(model, mesh, choices, costing, timing or costing, rank)
    needed = lowering.in_order_of_need()
    checked("lowering", lambda: order_faults(lowering.instructions, mesh))

    def program(bucket: int) -> Program:
        made = lowering.program(needed, bucket)
        wrong = faults(made)
        assert not wrong, wrong
        checked("program", lambda: program_faults(made))
        return made

    return program


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """An op on this rank's shard; `args` and `kwargs` still hold the graph's values."""

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    shapes: tuple[tuple[int, ...], ...]
    nbytes: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needed:
    """What a program tells of its instructions, and what their order must keep, whatever that
    order is."""

    states: tuple[ParameterState, ...]
    loss: int
    reported: tuple[tuple[str, int], ...]
    stores: tuple[tuple[int, int], ...]
    kept: frozenset[int]
    trained: frozenset[int]


class _Lowering:
    """Emits instructions in the order of the graph; `schedule.finish` then merges, moves ahead and
    frees.

    Which instructions there are, and how they are merged and ordered, depends on nothing that
    differs by rank."""

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        choices: Choices,
        costing: Costing,
        timing: Costing,
        rank: int,
    ) -> None:
        self.model, self.mesh, self.choices, self.costing, self.timing = (
            model,
            mesh,
            choices,
            costing,
            timing,
        )
        self.rank, self.place, self.last = (
            rank,
            mesh.coordinate(rank),
            mesh.coordinate(mesh.num_devices - 1),
        )
        self.differs = False
        self.shards: dict[tuple[int, Layout], _Shard] = {}
        self.locals: dict[tuple[tuple[int, ...], Layout], tuple[int, ...]] = {}
        self.instructions: list[Instruction] = []
        self.gathers: dict[
            str, str
        ] = {}  # id of an instruction that casts or gathers a parameter -> its layer and phase
        self.value_bytes: dict[int, int] = {}
        self.alias: dict[int, int] = {}
        self.produced: dict[
            int, tuple[int, Layout]
        ] = {}  # root value -> its program value and layout
        self.in_pieces: dict[
            int, Layout
        ] = {}  # parameters that nothing has read yet, to be gathered to this layout
        self.kept_whole: set[int] = set()  # those that are, or have been
        self.delivered: dict[tuple[int, str, Layout], int] = {}
        self.viewed: dict[tuple[int, int], int] = {}
        self.recasted: dict[
            int, int
        ] = {}  # a parameter in another format -> its program value of backward
        self.inputs: dict[tuple[int, Layout], InputState] = {}
        self.names: dict[str, int] = defaultdict(int)
        self.small = {
            v.id
            for v in model.graph.values
            if v.id not in model.formats and v.numel * dtype_bytes(v.dtype) <= SMALL
        }

    # --------------------------------------------------------------------------------------- values

    def _new(self, nbytes: int, alias: int | None = None) -> int:
        number = len(self.value_bytes)
        self.value_bytes[number] = 0 if alias is not None else nbytes
        if alias is not None:
            self.alias[number] = alias
        return number

    def _shape(self, value: int) -> SubShape:
        return self.model.dims.shapes[value]

    def _flat(self, value: int) -> tuple[int, ...]:
        return tuple(size for dim in self._shape(value) for size in dim)

    def _dtype(self, value: int) -> str:
        return self.model.graph.values[value].dtype

    def _local(self, flat: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
        """The flat sub-dim sizes of this rank's shard."""
        if (flat, layout) not in self.locals:
            sizes = local_sizes(flat, layout, self.mesh.sizes, self.place)
            assert sizes is not None, (flat, layout)
            self.differs |= local_sizes(flat, layout, self.mesh.sizes, self.last) != local_sizes(
                flat, layout, self.mesh.sizes
            )
            self.locals[flat, layout] = sizes
        return self.locals[flat, layout]

    def _local_shape(self, value: int, layout: Layout) -> tuple[int, ...]:
        return local_shape(self._shape(value), layout, self.mesh.sizes, self.place)

    def _nbytes(self, value: int, layout: Layout) -> int:
        return math.prod(self._local(self._flat(value), layout)) * dtype_bytes(self._dtype(value))

    def _name(self, stem: str) -> str:
        self.names[stem] += 1
        return f"{stem}#{self.names[stem]}"

    # -------------------------------------------------------------------------------------- layouts

    def _layouts(self, value: int, phase: str) -> Layouts:
        return self.costing.layouts(self._flat(value), dtype_bytes(self._dtype(value)), phase)

    def _steps(self, value: int, phase: str, before: Layout, after: Layout) -> tuple[Step, ...]:
        """The chain of steps that the cost table paid for."""
        return () if before == after else self._layouts(value, phase).steps(before, after)

    def _deliver(self, value: int, phase: str, wanted: Layout) -> int:
        """The program value that holds root `value` in layout `wanted` during `phase`."""
        if self.model.graph.values[value].is_given:
            return self._input(value, wanted)
        source, layout = self._produced(value, phase)
        if phase == "backward" and self._recast(value):
            source = self.recasted[value]
        hub = self.choices.hubs.get((value, phase), layout)
        source = self._convert(value, phase, source, layout, hub)
        return self._convert(value, phase, source, hub, wanted)

    def _recast(self, value: int) -> bool:
        """Whether the value is a parameter in another format that is made anew for backward,
        from the piece that is there; it is then in `recasted`."""
        writer = self.model.graph.values[value].writer
        if not self.choices.recast or value not in self.model.recastable or writer is None:
            return False
        if value not in self.recasted:
            node, strategy = self.model.graph.nodes[writer], self.choices.strategies[writer]
            root, (seen,) = self.model.roots[node.operands[0]], strategy.operands
            if root.value in self.kept_whole:
                return False  # it would be kept from forward on, in more bytes than its cast
            stored, read = self.produced[root.value][1], root.layout(seen)
            hub = self.choices.hubs.get((root.value, "backward"), stored)
            steps = (
                *self._steps(root.value, "backward", stored, hub),
                *self._steps(root.value, "backward", hub, read),
            )
            if any(step.kind != "slice" for step in steps):
                return False
            self.recasted[value] = self._emit(replace(node, phase="backward"), strategy)[0]
        return True

    def _produced(self, value: int, phase: str) -> tuple[int, Layout]:
        """The program value of a root value, and its layout. What is updated in pieces and kept
        whole (ZeRO-1/2) is gathered before its first reading, a layer ahead, the innermost axis
        first."""
        source, layout = self.produced[value]
        whole = self.in_pieces.pop(value, layout)
        for step in self._steps(value, "forward", layout, whole):
            source = self._communicate(value, phase, source, step, asynchronous=True)
            self._ahead(value, phase)
        self.produced[value] = (source, whole)
        return self.produced[value]

    def _convert(self, value: int, phase: str, source: int, before: Layout, after: Layout) -> int:
        if before == after:
            return source
        key = (value, phase, after)
        earlier = self.delivered.get((value, "forward", after)) if phase == "backward" else None
        if earlier is not None and value in self.small:
            return earlier  # cheaper to keep than to send again
        if key not in self.delivered:
            of_parameter = value in self.model.formats
            for step in self._steps(value, phase, before, after):
                source = self._communicate(
                    value, phase, source, step, asynchronous=of_parameter or phase == "update"
                )
                if of_parameter:
                    self._ahead(value, phase)
            self.delivered[key] = source
        return self.delivered[key]

    def _ahead(self, value: int, phase: str) -> None:
        """The last instruction makes a parameter ready, or one in another format: it is for the
        layer that reads it."""
        name = self.model.graph.values[self.model.formats[value]].name
        self.gathers[self.instructions[-1].id] = f"{layer_of(name.rpartition('.')[0])}:{phase}"

    def _communicate(
        self, value: int, phase: str, source: int, step: Step, *, asynchronous: bool
    ) -> int:
        found, flat = self.model.graph.values[value], self._flat(value)
        name = self.model.graph.values[self.model.formats.get(value, value)].name
        nbytes = self._layouts(value, phase).numel(step) * dtype_bytes(found.dtype)
        result = self._new(
            self._nbytes(value, step.after), source if self._looks(flat, step) else None
        )
        self.instructions.append(
            Communicate(
                id=self._name(f"{phase}.{name}.{step.kind}"),
                kind=step.kind,
                axes=step.axes,
                sources=(source,),
                results=(result,),
                expanded=(self._local(flat, step.before),),
                shapes=(self._local_shape(value, step.after),),
                dtypes=(found.dtype,),
                gather=step.gather,
                split=step.split,
                phase=phase,
                path=name,
                gather_pieces=(self._pieces(flat, step, step.gather),),
                split_pieces=(self._pieces(flat, step, step.split),),
                asynchronous=asynchronous and step.kind != "slice",
                nbytes=nbytes,
                time=self.timing.communication(step.kind, step.axes, float(nbytes)),
            )
        )
        return result

    def _looks(self, flat: tuple[int, ...], step: Step) -> bool:
        """Whether a step only looks at a part of the value: a slice of elements that lie
        together."""
        return (
            step.kind == "slice"
            and step.split is not None
            and leads(self._local(flat, step.before), step.split)
        )

    def _pieces(self, flat: tuple[int, ...], step: Step, dim: int | None) -> tuple[int, ...]:
        """The sizes that the ranks of a step have of `dim`, in the order of their group; none
        where all are alike."""
        if dim is None:
            return ()
        outer = tuple(
            p if p == dim and axis not in step.axes else REPLICATE
            for axis, p in enumerate(step.before)
        )
        pieces = piece_sizes(
            self._local(flat, outer)[dim], tuple(self.mesh.sizes[axis] for axis in step.axes)
        )
        return pieces if len(set(pieces)) > 1 else ()

    def _input(self, value: int, layout: Layout) -> int:
        """Inputs come in the layout in which they are read: each rank loads its own piece."""
        key = (value, layout)
        if key not in self.inputs:
            found = self.model.graph.values[value]
            self.inputs[key] = InputState(
                name=found.name,
                value=self._new(self._nbytes(value, layout)),
                subshape=self._shape(value),
                layout=layout,
                dtype=found.dtype,
                kind=found.kind,
            )
        return self.inputs[key].value

    # ------------------------------------------------------------------------------------------ ops

    def _operand(self, value: int, phase: str, seen: Layout) -> int:
        """The program value of graph value `value` in the layout `seen`: its root, delivered,
        through its views."""
        root = self.model.roots[value]
        return self._through_views(value, self._deliver(root.value, phase, root.layout(seen)), seen)

    def _through_views(self, value: int, source: int, seen: Layout) -> int:
        if self.model.roots[value].value == value:
            return source
        key = (value, source)
        if key not in self.viewed:
            writer = self.model.graph.values[value].writer
            assert writer is not None
            node, dims = self.model.graph.nodes[writer], self.model.dims.ops[writer]
            leaves = tuple(dims.results[0][p] if p >= 0 else p for p in seen)
            under = tuple(dims.operands[0].index(p) if p >= 0 else p for p in leaves)
            inner = self._through_views(node.operands[0], source, under)
            (self.viewed[key],) = self._run(node, dims, [inner], leaves, self.timing.view)
        return self.viewed[key]

    def _op(self, node: Node) -> None:
        strategy = self.choices.strategies[node.index]
        results = self._emit(node, strategy)
        checked("op", lambda: self._layout_faults(node, strategy))
        for value, number, layout in zip(node.results, results, strategy.results, strict=True):
            if value is not None:
                self.produced[value] = (number, layout)

    def _layout_faults(self, node: Node, strategy: Strategy) -> Iterator[str]:
        """Whether the shapes of the op just emitted, which its rule gives, are those of its
        values' sub-dims in their layouts."""
        made = self.instructions[-1]
        assert isinstance(made, Compute)
        for value, layout, shape in zip(node.results, strategy.results, made.shapes, strict=True):
            if value is not None and shape != self._local_shape(value, layout):
                yield f"{made.id} makes {shape}, value {value} in layout {layout} is {self._local_shape(value, layout)}"

    def _emit(self, node: Node, strategy: Strategy) -> list[int]:
        """Emits a node's op under a strategy, with what brings its operands; the program values
        of its results."""
        dims = self.model.dims.ops[node.index]
        ids = [
            self._operand(v, node.phase, seen)
            for v, seen in zip(node.operands, strategy.operands, strict=True)
        ]
        leaves = tuple(
            option.number if option.kind == "split" else REPLICATE for option in strategy.options
        )

        def seconds() -> float:
            kernel = self.timing.device_time(node, dims, dims.letter_sizes(strategy.sizes))
            return kernel + self.timing.inner(node, dims, strategy)

        results = self._run(node, dims, ids, leaves, seconds)
        if self.model.casts_parameter(node):
            self._ahead(node.results[0], node.phase)  # type: ignore[arg-type]
        return results

    def _run(
        self, node: Node, dims: OpDims, ids: list[int], leaves: Layout, seconds: Callable[[], float]
    ) -> list[int]:
        """Emits one op on a shard, of which axis a splits leaf `leaves[a]`; the program values
        of its results."""
        shard = self._shard(node, dims, leaves, seconds)
        queue = iter(ids)
        args, kwargs = map_refs((shard.args, shard.kwargs), lambda _: Ref(next(queue)))
        assert next(queue, None) is None, node
        alias = ids[0] if dims.signature.kind == "view" and ids else None
        results = [self._new(nbytes, alias) for nbytes in shard.nbytes]
        self.instructions.append(
            Compute(
                id=self._name(f"{node.phase}.{node.path or 'top'}.{node.op.split('.')[1]}"),
                op=shard.op,
                args=args,
                kwargs=kwargs,
                results=tuple(
                    r if value is not None else None
                    for r, value in zip(results, node.results, strict=True)
                ),
                shapes=shard.shapes,
                dtypes=node.result_dtypes,
                kind=dims.signature.kind,
                phase=node.phase,
                path=node.path,
                time=shard.seconds,
            )
        )
        return results

    def _shard(
        self, node: Node, dims: OpDims, leaves: Layout, seconds: Callable[[], float]
    ) -> _Shard:
        """What the node runs on this rank: the same for all nodes of a class, but those that
        have numbers of their own."""
        key = (self.model.ties.node_class[node.index], leaves)
        found = self.shards.get(key)
        if found is None:
            found = self._new_shard(node, dims, leaves, seconds())
            if not any(isinstance(argument, Serial) for argument in node.args):
                self.shards[key] = found
        return found

    def _new_shard(self, node: Node, dims: OpDims, leaves: Layout, seconds: float) -> _Shard:
        sizes = self._local(dims.sizes, leaves)
        letters = dims.letter_sizes(sizes)
        shapes = tuple(_shape_of(dims, i, letters, node) for i in range(len(node.results)))
        local = local_of(dims, leaves, self.mesh, self.rank, letters, shapes)
        self.differs |= bool(local.offsets or (local.leaves and local.split))
        op, args, kwargs = local_call(dims.signature, call_of(self.model.graph, node), local)
        nbytes = [
            _bytes_of(shape, dtype) for shape, dtype in zip(shapes, node.result_dtypes, strict=True)
        ]
        for place in dims.signature.opaque:
            nbytes[place] = self.costing.reserve_bytes(node, dims, sizes) or nbytes[place]
        return _Shard(
            op=op,
            args=torch_constants(args),
            kwargs=torch_constants(kwargs),
            shapes=shapes,
            nbytes=tuple(nbytes),
            seconds=seconds,
        )

    # ----------------------------------------------------------------------------------- parameters

    def _parameters(self) -> tuple[ParameterState, ...]:
        """Between steps a parameter is held as the optimizer updates it."""
        out = []
        for parameter, strategy in zip(
            self.model.graph.parameters, self.choices.parameters, strict=True
        ):
            held = strategy.updated
            value = self._new(self._nbytes(parameter.value, held))
            self.produced[parameter.value] = (value, held)
            if strategy.stored != held:
                self.in_pieces[parameter.value] = strategy.stored
                self.kept_whole.add(parameter.value)
            out.append(
                ParameterState(
                    name=parameter.name,
                    value=value,
                    shard=value,
                    subshape=self._shape(parameter.value),
                    stored=held,
                    updated=held,
                    dtype=self._dtype(parameter.value),
                )
            )
        return tuple(out)

    def _reduce(self, index: int, parameter: Parameter) -> None:
        """Starts the reduction of a gradient as soon as it is there."""
        root = self.model.roots[parameter.gradient]
        self._deliver(root.value, "update", root.layout(self.choices.parameters[index].updated))

    def _update(self, states: tuple[ParameterState, ...]) -> None:
        gradients = tuple(
            self._operand(p.gradient, "update", s.updated)
            for p, s in zip(self.model.graph.parameters, self.choices.parameters, strict=True)
        )
        seconds = self.timing.step_overhead() + sum(
            self.timing.update(
                self._flat(p.value), dtype_bytes(self._dtype(p.value)), self._dtype(p.value), s
            )
            for p, s in zip(self.model.graph.parameters, self.choices.parameters, strict=True)
        )
        if self.timing.clip_norm is not None:
            shapes = [
                local_shape(s.subshape, s.updated, self.mesh.sizes, self.place) for s in states
            ]
            more, gradients = clip_gradients(gradients, states, shapes, self.timing, self._new)
            self.instructions += more
        self.instructions.append(Update(id="update.optimizer", gradients=gradients, time=seconds))

    # ---------------------------------------------------------------------------------- the program

    def in_order_of_need(self) -> _Needed:
        """Emits all instructions, once."""
        graph = self.model.graph
        states = self._parameters()
        ready: dict[int, list[int]] = defaultdict(list)
        for index, parameter in enumerate(graph.parameters):
            ready[self.model.roots[parameter.gradient].value].append(index)
        for node in graph.nodes:
            if is_view(self.model.dims, node.index):
                continue
            self._op(node)
            for value in node.results:
                for index in ready.get(value, []) if value is not None else []:
                    self._reduce(index, graph.parameters[index])
        root = self.model.roots[graph.loss]
        whole = tuple(REPLICATE for _ in self.mesh.sizes)
        trained = frozenset(value for state in states for value in (state.value, state.shard))
        loss = self._read_later(graph.loss, whole, trained)
        assert root.value in self.produced
        reported = tuple(
            (name, self._read_later(value, whole, trained)) for name, value in graph.reported
        )
        stores = self._stores()
        self._update(states)
        kept = self._kept(states, loss) | {value for _, value in (*stores, *reported)}
        return _Needed(
            states=states,
            loss=loss,
            reported=reported,
            stores=stores,
            kept=frozenset(kept),
            trained=trained,
        )

    def program(self, needed: _Needed, bucket: int) -> Program:
        """The program with buckets of `bucket` bytes."""
        overlaps = self.costing.cluster.device.overlap > 0
        instructions = finish(
            self.instructions,
            self.gathers,
            self.alias,
            set(needed.kept),
            self.timing,
            self.mesh,
            bucket,
            needed.trained,
            overlaps=overlaps,
            buffered=_backend(self.timing.cluster) != "shared",
        )
        instructions = timed(instructions, self.timing)
        checked("freeing", lambda: order_faults(instructions, self.mesh))
        return Program(
            mesh=self.mesh,
            instructions=join_biases(instructions, self._shapes(instructions, needed.states)),
            parameters=needed.states,
            inputs=tuple(self.inputs.values()),
            loss=needed.loss,
            value_bytes=self.value_bytes,
            initial_bytes=self._initial(needed.states),
            stores=needed.stores,
            reported=needed.reported,
            rank=self.rank if self.differs else None,
            backend=_backend(self.timing.cluster),
        )

    def _read_later(self, value: int, layout: Layout, trained: frozenset[int]) -> int:
        """The program value of what is read after the step: a copy of what is a parameter, since
        the update writes to that."""
        source = base = self._operand(value, "forward", layout)
        while base in self.alias:
            base = self.alias[base]
        if base not in trained:
            return source
        dtype, nbytes = self._dtype(value), self._nbytes(value, layout)
        result = self._new(nbytes)
        self.instructions.append(
            Compute(
                id=self._name("forward.top.clone"),
                op="aten.clone.default",
                args=(Ref(source),),
                kwargs=(),
                results=(result,),
                shapes=(self._local_shape(value, layout),),
                dtypes=(dtype,),
                kind="elementwise",
                phase="forward",
                path="",
                time=self.timing.scaling(float(nbytes), dtype),
            )
        )
        return result

    def _stores(self) -> tuple[tuple[int, int], ...]:
        """Buffers that the step changes, in the layouts in which it reads them: so they are
        stored."""
        out = []
        for buffer, new in self.model.graph.updates:
            self._input(buffer, tuple(REPLICATE for _ in self.mesh.sizes))
            states = [
                (layout, state) for (value, layout), state in self.inputs.items() if value == buffer
            ]
            out += [(state.value, self._operand(new, "update", layout)) for layout, state in states]
        return tuple(out)

    def _shapes(
        self, instructions: tuple[Instruction, ...], states: tuple[ParameterState, ...]
    ) -> dict[int, tuple[int, ...]]:
        """The local shapes of all values."""
        sizes, place = self.mesh.sizes, self.place
        shapes = {s.value: local_shape(s.subshape, s.stored, sizes, place) for s in states}
        shapes |= {s.shard: local_shape(s.subshape, s.updated, sizes, place) for s in states}
        shapes |= {
            s.value: local_shape(s.subshape, s.layout, sizes, place) for s in self.inputs.values()
        }
        for instruction in instructions:
            if not isinstance(instruction, Update):
                shapes |= {
                    v: s
                    for v, s in zip(instruction.results, instruction.shapes, strict=True)
                    if v is not None
                }
        return shapes

    def _kept(self, states: tuple[ParameterState, ...], loss: int) -> set[int]:
        """Values that outlive the step."""
        inputs = {state.value for state in self.inputs.values()}
        return {loss, *inputs, *(s.value for s in states), *(s.shard for s in states)}

    def _initial(self, states: tuple[ParameterState, ...]) -> dict[str, int]:
        held = {
            "parameters": 0,
            "optimizer": 0,
            "inputs": sum(self.value_bytes[s.value] for s in self.inputs.values()),
        }
        for parameter, strategy in zip(
            self.model.graph.parameters, self.choices.parameters, strict=True
        ):
            dtype = self._dtype(parameter.value)
            parts = self.costing.parameter_bytes(
                self._flat(parameter.value), dtype_bytes(dtype), dtype, strategy, place=self.place
            )
            for name, nbytes in parts.items():
                held[name] += nbytes
        return held


def _backend(cluster: Cluster) -> str:
    """What sends the messages: CPU ranks of one machine share memory."""
    if not cluster.device.is_host:
        return "nccl"
    return "shared" if cluster.num_nodes == 1 else "gloo"


def _shape_of(dims: OpDims, result: int, letters: tuple[int, ...], node: Node) -> tuple[int, ...]:
    """The local shape of a result; a result that is never read may have no letters, and keeps
    its global shape, as does a dim without letters (of size 1, or 0: statistics that nobody asked
    for)."""
    table, whole = dims.signature.results[result], node.result_shapes[result]
    if len(table) != len(whole):
        return whole
    return tuple(
        math.prod(letters[letter] for letter in dim) if dim else size
        for dim, size in zip(table, whole, strict=True)
    )


def _bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    size = dtype_bytes(dtype)
    for s in shape:
        size *= s
    return size
