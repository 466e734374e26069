"""The bodies of a step in microbatches: which instructions of the draft run before the first
microbatch, in the first, in one of the middle, and in the last.

Draft -> bodies in order of need, actions. What a body needs is found backwards: a microbatch needs
its terms of the sums over all microbatches, the last one also everything that reads whole sums. The
first term becomes the sum, the others are added to it in place. What is gathered once for the step,
and the sums that other ops read, are made by the first microbatch and carried to the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from planner.lowering.draft import Draft
from planner.lowering.first_terms import FirstTerms
from planner.program.actions import STEP, WHOLE_STEP, Action
from planner.program.program import (
    ACCUMULATE,
    Communicate,
    Compute,
    Instruction,
    Ref,
    reads,
    writes,
)
from planner.strategy.costing import Costing

__all__ = [
    "FIRST", "LAST", "MIDDLE", "TOTALS", "TOTALS_FIRST", "Bodies", "Body", "Parts", "accumulates",
    "bodies_of", "entering", "needed",
]  # fmt: skip

#: Sums that ops of the microbatches read, such as the number of targets: complete before the first.
TOTALS_FIRST, TOTALS = "TOTALS_FIRST", "TOTALS"
FIRST, MIDDLE, LAST = "FIRST", "MIDDLE", "LAST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A body in order of need; `alias` is the draft's, as it is here, and `kept` are the values
    that outlive an action of it; those of `ends` end with it, though nothing in it reads them."""

    instructions: list[Instruction]
    alias: dict[int, int]
    kept: frozenset[int]
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """All bodies of a step by name, its actions, and the values carried between them; `lying` are
    those of the sums that lie in the memory of their first terms, `stashed` what forward leaves for
    backward, if other microbatches come in between."""

    by_name: dict[str, Body]
    actions: tuple[Action, ...] = WHOLE_STEP
    carried: frozenset[int] = frozenset()
    lying: frozenset[int] = frozenset()
    stashed: frozenset[int] = frozenset()


def bodies_of(
    draft: Draft,
    microbatches: int,
    *,
    kept: frozenset[int],
    held: frozenset[int],
    stored_by_all: Iterable[int],
    timing: Costing,
) -> Bodies:
    """The bodies of a step: one, if it has no microbatches. `kept` outlive the step, `held` are
    there before it; the new values `stored_by_all` are stored after every microbatch."""
    if microbatches == 1:
        whole = Body(instructions=draft.instructions, alias=draft.alias, kept=kept)
        return Bodies(by_name={STEP: whole})
    parts = Parts(draft, frozenset(stored_by_all), kept - held, timing)
    actions = _actions(microbatches, totals=bool(parts.ahead))
    listed = {name: parts.listed(name) for name in dict.fromkeys(a.body for a in actions)}
    enters = {name: entering(body) - held for name, body in listed.items()}
    by_name = {}
    for name, body in listed.items():
        begun = [one for one in body if one.kind == "view" and accumulates(one)]
        alias = draft.alias | {v: reads(one)[0] for one in begun for v in writes(one)}
        later = _later(name, actions, enters) | held
        more = kept if name == LAST else parts.stored
        by_name[name] = Body(instructions=body, alias=alias, kept=later | more)
    carried = frozenset().union(*enters.values())
    lying = frozenset(parts.first.lying)
    return Bodies(by_name=by_name, actions=actions, carried=carried, lying=lying)


def _actions(microbatches: int, *, totals: bool) -> tuple[Action, ...]:
    """The actions of a step of one stage, in order."""
    ahead = [Action(TOTALS if j else TOTALS_FIRST, j) for j in range(microbatches)]
    body = [FIRST, *[MIDDLE] * (microbatches - 2), LAST]
    return (*(ahead if totals else ()), *(Action(name, j) for j, name in enumerate(body)))


def entering(body: Sequence[Instruction]) -> frozenset[int]:
    """The values that a body reads before it writes them."""
    written: set[int] = set()
    found: set[int] = set()
    for instruction in body:
        found.update(value for value in reads(instruction) if value not in written)
        written.update(writes(instruction))
    return frozenset(found)


def _later(
    name: str, actions: Sequence[Action], entering: dict[str, frozenset[int]]
) -> frozenset[int]:
    """The values that enter the actions after the first one of a body."""
    at = next(place for place, action in enumerate(actions) if action.body == name)
    return frozenset().union(*(entering[action.body] for action in actions[at + 1 :]))


class Parts:
    """The instructions of a draft, by what they are needed for. Those of `once` run once for all
    microbatches, like gathers of parameters that are kept whole."""

    def __init__(
        self,
        draft: Draft,
        stored: frozenset[int],
        outliving: frozenset[int],
        timing: Costing,
        once: Collection[str] = (),
    ) -> None:
        self.draft, self.stored, self.outliving = draft, stored, outliving
        self.more_once = frozenset(once)
        sums = [one for one in draft.instructions if accumulates(one)]
        self.ahead = frozenset(v for one in sums if _is_ahead(one) for v in writes(one))
        self.sums = frozenset(v for one in sums for v in writes(one)) - self.ahead
        self.once = self._once()
        in_first = self._needed(self.sums | self.stored, self.ahead)
        self.once_made = frozenset(
            v for one in in_first if one.id in self.once for v in writes(one)
        )
        wanted = self.sums | stored | outliving
        self.names = {one.id for one in self._needed(wanted, self.ahead, updates=True)}
        self.first = FirstTerms(draft, self.ahead | self.sums, self.once_made, timing)

    def listed(self, name: str) -> list[Instruction]:
        """The instructions of a body, in order of need."""
        if name in (TOTALS_FIRST, TOTALS):
            body = [self._ahead(one) for one in self._needed(self.ahead, ())]
        elif name == LAST:
            wanted = self.sums | self.stored | self.outliving
            body = self._needed(wanted, self.ahead | self.once_made, updates=True)
        else:
            given = self.ahead if name == FIRST else self.ahead | self.once_made
            body = self._needed(self.sums | self.stored, given)
        change = self.first.of if name in (TOTALS_FIRST, FIRST) else self.added
        return [change(one) if accumulates(one) else one for one in body]

    def _needed(
        self, wanted: Collection[int], given: Collection[int], *, updates: bool = False
    ) -> list[Instruction]:
        return needed(self.draft, wanted, given, updates=updates)

    def _once(self) -> set[str]:
        """The instructions that run once for all microbatches: gathers of parameters that are kept
        whole, and messages of sums that are complete."""
        found, ready = {*self.draft.once, *self.more_once}, set(self.ahead)
        for one in self.draft.instructions:
            if isinstance(one, Communicate) and ready.issuperset(one.sources):
                found.add(one.id)
                ready.update(one.results)
        return found

    @staticmethod
    def added(one: Instruction) -> Instruction:
        """A sum as the second and later microbatches add to it, in place."""
        assert isinstance(one, Compute)
        (total,), (term,) = one.results, one.operands
        assert total is not None
        return replace(one, args=(Ref(total), Ref(term)), kwargs=())

    def _ahead(self, one: Instruction) -> Instruction:
        """An instruction as it runs ahead of the microbatches: under an id of its own, if they run
        it too."""
        return replace(one, id=f"{one.id}.ahead") if one.id in self.names else one


def needed(
    draft: Draft, wanted: Collection[int], given: Collection[int], *, updates: bool = False
) -> list[Instruction]:
    """The instructions that make the wanted values, from those given; and the update with all that
    it needs."""
    due, found = set(wanted), []
    due.difference_update(given)
    for one in reversed(draft.instructions):
        if not due.isdisjoint(writes(one)) or (updates and one.kind == "optimizer"):
            found.append(one)
            due.update(value for value in reads(one) if value not in given)
    return found[::-1]


def accumulates(one: Instruction) -> bool:
    return isinstance(one, Compute) and one.op == ACCUMULATE


def _is_ahead(one: Instruction) -> bool:
    return isinstance(one, Compute) and ("ahead", True) in one.kwargs
