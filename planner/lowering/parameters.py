"""Parameters: the pieces that a rank holds between steps, their gradients' reductions, the
update."""

from __future__ import annotations

from cost_models.memory import dtype_bytes
from planner.graph.layout import REPLICATE, local_shape
from planner.lowering.draft import Draft
from planner.lowering.local_shapes import LocalShapes
from planner.lowering.operands import Operands
from planner.lowering.ready_gradients import ready_gradients
from planner.program.program import InputState, ParameterState, Update
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.workload.precision import Formats

__all__ = ["Parameters"]


class Parameters:
    """The parameters of one rank; they are held, and updated, as `choices` say."""

    def __init__(
        self, choices: Choices, local: LocalShapes, draft: Draft, operands: Operands
    ) -> None:
        self.graph = local.model.graph
        self.dims = local.model.dims
        self.roots = local.model.roots
        self.local, self.draft, self.operands = local, draft, operands
        self.chosen = tuple(zip(self.graph.parameters, choices.parameters, strict=True))

    def hold(self, formats: Formats) -> tuple[ParameterState, ...]:
        """Adds the parameters as held between steps: in the layout in which the optimizer updates
        them, or their master copies."""
        states = []
        for parameter, strategy in self.chosen:
            held = strategy.updated
            value = self.draft.new(self.local.nbytes(parameter.value, held))
            self.operands.hold(parameter.value, value, held, strategy.stored)
            states.append(
                ParameterState(
                    name=parameter.name,
                    value=value,
                    shard=value,
                    subshape=self.dims.shapes[parameter.value],
                    stored=held,
                    updated=held,
                    dtype=self.local.dtype(parameter.value),
                    master=formats.master,
                )
            )
        return tuple(states)

    def reduce(self, index: int) -> None:
        """Adds the reduction of a gradient, right after the op that makes it."""
        parameter, strategy = self.chosen[index]
        self.operands.deliver(self.roots[parameter.gradient], "update", strategy.updated)

    def update(
        self, states: tuple[ParameterState, ...], timing: Costing
    ) -> tuple[int, InputState] | None:
        """Adds the optimizer's step and, before it, what makes the gradients ready for it. In a
        pipeline stage that needs the squares of all gradients: the value of their sum here, and
        that of all stages, which comes in."""
        gradients = tuple(
            self.operands.operand(p.gradient, "update", s.updated) for p, s in self.chosen
        )
        seconds = timing.updates.step_overhead() + sum(
            timing.updates.update(
                self.dims.flat(p.value), self.local.itemsize(p.value), self.local.dtype(p.value), s
            )
            for p, s in self.chosen
        )
        sizes, place = self.local.mesh.sizes, self.local.place
        shapes = [local_shape(s.subshape, s.updated, sizes, place) for s in states]
        ready = ready_gradients(
            gradients,
            states,
            shapes,
            timing,
            self.draft.new,
            scale=self._scale() if timing.updates.formats.scaled else None,
            copies={self.graph.values[v].name for v in self.graph.copies},
            of_stages=bool(self.graph.sent or self.graph.received),
        )
        self.draft.instructions += ready.instructions
        self.draft.instructions.append(
            Update(
                id="update.optimizer",
                gradients=ready.gradients,
                squares=ready.squares if timing.updates.formats.scaled else None,
                time=seconds,
            )
        )
        if ready.of_stage is None or ready.squares is None:
            return None
        whole = tuple(REPLICATE for _ in self.local.mesh.sizes)
        total = InputState(
            name="squares",
            value=ready.squares,
            subshape=(),
            layout=whole,
            dtype=ready.dtype,
            kind="squares",
        )
        return ready.of_stage, total

    def _scale(self) -> int:
        """The program value of the loss's scale. The graph of a pipeline stage has it only if the
        loss is computed there."""
        whole = tuple(REPLICATE for _ in self.local.mesh.sizes)
        for value in self.graph.values:
            if value.kind == "scale":
                return self.operands.input(value.id, whole)
        return self.operands.scale(whole)

    def nbytes(self, costing: Costing) -> dict[str, int]:
        """Bytes of this rank's parameters and optimizer state."""
        held = {"parameters": 0, "optimizer": 0}
        for parameter, strategy in self.chosen:
            dtype = self.local.dtype(parameter.value)
            parts = costing.updates.parameter_bytes(
                self.dims.flat(parameter.value),
                dtype_bytes(dtype),
                dtype,
                strategy,
                place=self.local.place,
            )
            for name, nbytes in parts.items():
                held[name] += nbytes
        return held
