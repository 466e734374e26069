"""Changes of layout as instructions: the chain of steps that the cost table costed, each a
`Communicate`."""

from __future__ import annotations

from planner.graph.layout import Layout
from planner.lowering.draft import Draft
from planner.lowering.local_shapes import LocalShapes
from planner.program.program import Communicate
from planner.strategy.costing import Costing
from planner.strategy.redistribute import Layouts, Step

__all__ = ["Messages"]


class Messages:
    """Adds the steps of chains to a draft; `costing` chooses the chains, `timing` gives their
    seconds."""

    def __init__(
        self, local: LocalShapes, draft: Draft, *, costing: Costing, timing: Costing
    ) -> None:
        self.model, self.local, self.draft = local.model, local, draft
        self.costing, self.timing = costing, timing

    def chain(self, value: int, phase: str, before: Layout, after: Layout) -> tuple[Step, ...]:
        """The steps from one layout of a root value to another."""
        return () if before == after else self._layouts(value, phase).steps(before, after)

    def _layouts(self, value: int, phase: str) -> Layouts:
        flat = self.model.dims.flat(value)
        return self.costing.messages.layouts(flat, self.local.itemsize(value), phase)

    def send(self, value: int, phase: str, source: int, step: Step, *, asynchronous: bool) -> int:
        """Adds one step that changes `source`, which holds root value `value`; returns the program
        value of its result."""
        flat, dtype = self.model.dims.flat(value), self.local.dtype(value)
        name = self.model.graph.values[self.model.formats.get(value, value)].name
        nbytes = self._layouts(value, phase).numel(step) * self.local.itemsize(value)
        alias = source if self.local.only_looks(flat, step) else None
        result = self.draft.new(self.local.nbytes(value, step.after), alias)
        self.draft.instructions.append(
            Communicate(
                id=self.draft.name(f"{phase}.{name}.{step.kind}"),
                kind=step.kind,
                axes=step.axes,
                sources=(source,),
                results=(result,),
                expanded=(self.local.sizes(flat, step.before),),
                shapes=(self.local.shape(value, step.after),),
                dtypes=(dtype,),
                gather=step.gather,
                split=step.split,
                phase=phase,
                path=name,
                gather_pieces=(self.local.pieces(flat, step, step.gather),),
                split_pieces=(self.local.pieces(flat, step, step.split),),
                asynchronous=asynchronous and step.kind != "slice",
                nbytes=nbytes,
                time=self.timing.messages.communication(step.kind, step.axes, float(nbytes)),
            )
        )
        return result
