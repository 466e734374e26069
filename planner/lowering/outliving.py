"""The values that outlive the step: the loss and other reported values, buffers that change,
parameters."""

from __future__ import annotations

from planner.graph.layout import REPLICATE, Layout
from planner.lowering.draft import Draft
from planner.lowering.local_shapes import LocalShapes
from planner.lowering.operands import Operands
from planner.program.program import Compute, Ref
from planner.strategy.costing import Costing

__all__ = ["Outliving"]


class Outliving:
    """Adds the values that are read after the step to a draft."""

    def __init__(
        self, local: LocalShapes, draft: Draft, operands: Operands, timing: Costing
    ) -> None:
        self.model, self.local, self.draft = local.model, local, draft
        self.operands, self.timing = operands, timing
        self.whole: Layout = tuple(REPLICATE for _ in local.mesh.sizes)

    def read_whole(self, value: int, trained: frozenset[int]) -> int:
        """The program value of a value that is read after the step, whole on every rank. If it is a
        parameter it is a copy, since the update writes to `trained`."""
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
        """The buffers that the step changes, as (old value, new value); the new one is brought to
        the layout in which the step reads the old one, since it is stored so."""
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
