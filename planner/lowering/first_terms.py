"""The first microbatch's terms of sums over microbatches, which become the sums.

A sum lies in the memory of its first term, without a copy, if nothing else lives there: later terms
are added to it in place. If the term shares memory with a parameter, an input, another sum or an op
with several results, or is a part of something larger, it is copied.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from cost_models.memory import dtype_bytes
from planner.lowering.draft import Draft
from planner.program.operators import may_alias
from planner.program.program import Communicate, Compute, Instruction, writes
from planner.strategy.costing import Costing

__all__ = ["FirstTerms"]


class FirstTerms:
    """The first terms of the sums `sums`. `kept` are other values that outlive a microbatch.
    `lying` are those that lie in the memory of their first terms, with these terms."""

    def __init__(
        self, draft: Draft, sums: Collection[int], kept: Collection[int], timing: Costing
    ) -> None:
        self.draft, self.timing = draft, timing
        self._writer = {v: one for one in draft.instructions for v in writes(one)}
        self._taken = {draft.base(value) for value in kept}
        self.lying: dict[int, int] = {}
        for value in sorted(sums):
            one = self._writer[value]
            assert isinstance(one, Compute)
            if self._may_become(one):
                self._taken.add(draft.base(one.operands[0]))
                self.lying[value] = one.operands[0]

    def of(self, one: Instruction) -> Compute:
        """A sum over microbatches as the first one begins it."""
        assert isinstance(one, Compute)
        (value,) = one.results
        if value in self.lying:
            return replace(one, kwargs=(), kind="view", time=0.0)
        nbytes = float(math.prod(one.shapes[0]) * dtype_bytes(one.dtypes[0]))
        return replace(
            one,
            op="aten.clone.default",
            kwargs=(),
            time=self.timing.updates.scaling(nbytes, one.dtypes[0]),
        )

    def _may_become(self, one: Compute) -> bool:
        """Whether a sum may lie where its first term does: in memory that is the term's alone."""
        (term,) = one.operands
        base = self.draft.base(term)
        writer = self._writer.get(base)
        return base not in self._taken and self._is_whole(term) and _is_fresh(writer)

    def _is_whole(self, term: int) -> bool:
        """Whether a term, and all views on the way to it, have as many bytes as what they view."""
        held = self.draft.value_bytes[self.draft.base(term)]
        while term in self.draft.alias:
            view = self._writer[term]
            assert isinstance(view, Compute | Communicate)
            at = view.results.index(term)
            if math.prod(view.shapes[at]) * dtype_bytes(view.dtypes[at]) != held:
                return False
            term = self.draft.alias[term]
        return True


def _is_fresh(writer: Instruction | None) -> bool:
    """Whether an instruction's result lies in new memory of its own. Results of one op may share
    theirs; those of one message are parts of a buffer, all of which is received."""
    if isinstance(writer, Communicate):
        return writer.kind != "slice"
    if not isinstance(writer, Compute) or may_alias(writer.op):
        return False
    return len(writer.results) == 1
