"""What outlives the step: the loss and what is reported beside it, buffers that change,
parameters."""

from __future__ import annotations

from planner.graph.layout import REPLICATE, Layout
from planner.lowering.draft import Draft
from planner.lowering.local_shapes import LocalShapes
from planner.lowering.operands import Operands
from planner.program.program import Compute, ParameterState, Ref
from planner.strategy.costing import Costing

__all__ = ["Outliving"]


class Outliving:
    """Adds what is read after the step to a draft."""

    def __init__(
        self, local: LocalShapes, draft: Draft, operands: Operands, timing: Costing
    ) -> None:
        self.model, self.local, self.draft = local.model, local, draft
        self.operands, self.timing = operands, timing
        self.whole: Layout = tuple(REPLICATE for _ in local.mesh.sizes)

    def read_whole(self, value: int, trained: frozenset[int]) -> int:
        """The program value of what is read after the step, whole on every rank: a copy of what
        is a parameter, since the update writes to `trained`."""
        source = self.operands.operand(value, "forward", self.whole)
        return self._copied(value, source) if self.draft.base(source) in trained else source

    def _copied(self, value: int, source: int) -> int:
        dtype, nbytes = self.local.dtype(value), self.local.nbytes(value, self.whole)
        result = self.draft.new(nbytes)
        self.draft.instructions.append(
            Compute(
                id=self.draft.name("forward.top.clone"),
                op="aten.clone.default",
                args=(Ref(source),),
                kwargs=(),
                results=(result,),
                shapes=(self.local.shape(value, self.whole),),
                dtypes=(dtype,),
                kind="elementwise",
                phase="forward",
                path="",
                time=self.timing.updates.scaling(float(nbytes), dtype),
            )
        )
        return result

    def stores(self) -> tuple[tuple[int, int], ...]:
        """Buffers that the step changes, in the layouts in which it reads them: so they are
        stored."""
        out = []
        for buffer, new in self.model.graph.updates:
            self.operands.input(buffer, self.whole)
            states = [
                (layout, state)
                for (value, layout), state in self.operands.inputs.items()
                if value == buffer
            ]
            out += [
                (state.value, self.operands.operand(new, "update", layout))
                for layout, state in states
            ]
        return tuple(out)

    def held(self, states: tuple[ParameterState, ...]) -> frozenset[int]:
        """Inputs and parameters, which no step frees."""
        inputs = {state.value for state in self.operands.inputs.values()}
        return frozenset({*inputs, *(s.value for s in states), *(s.shard for s in states)})
