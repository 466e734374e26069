"""The bodies of a pipeline stage: forward, backward (whole, or the half that others wait for and
the half that no one does) and the update.

Draft, actions of the stage -> bodies in order of need, and the actions by the names of their bodies.
The bodies of a step of one stage (`bodies.py`) are one microbatch whole; here each is divided by
phase. What forward leaves for backward is *stashed*: it is there once for every microbatch under
way. `F`, `B`, `I` and `W` are the letters of schedules; a first or last action has a body of its
own: it begins sums, or completes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.graph.sections import RECEIVE
from planner.lowering.bodies import (
    TOTALS,
    TOTALS_FIRST,
    Bodies,
    Body,
    Parts,
    accumulates,
    entering,
    needed,
)
from planner.lowering.draft import Draft
from planner.program.actions import Action
from planner.program.program import Compute, Instruction, reads, writes
from planner.strategy.costing import Costing

__all__ = ["SHARES", "UPDATE", "StageEnds", "named_actions", "stage_bodies_of"]

#: What waits for what other stages send at the end of the step: for their shares in the gradients of
#: tied parameters, before the norm of all gradients is known; and the update.
SHARES, UPDATE = "SHARES", "UPDATE"

_FIRST, _LAST = "_FIRST", "_LAST"

#: The bodies that run after one of a letter, for the same microbatch.
_LATER = {"F": "BIW", "I": "W"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEnds:
    """The values in which a stage meets others: `sent` in every microbatch by forward and by
    backward, `shares` at the end of the step; `late` are those that come in then, and `squares` the
    sum of the squares of the gradients of all stages, which comes last."""

    sent: frozenset[int]
    shares: frozenset[int]
    late: frozenset[int]
    squares: frozenset[int] = frozenset()


def stage_bodies_of(
    draft: Draft,
    actions: Sequence[Action],
    ends: StageEnds,
    *,
    kept: frozenset[int],
    held: frozenset[int],
    stored_by_all: Iterable[int],
    trained: frozenset[int],
    timing: Costing,
) -> Bodies:
    """The bodies of a stage that runs `actions`: for every microbatch once `F`, and `B` or both `I`
    and `W`. `trained` are the values of parameters."""
    stored = frozenset(stored_by_all)
    return _Stage(draft, actions, ends, kept, held, stored, trained, timing).bodies()


def named_actions(
    actions: Sequence[Action], *, totals: bool, ends: Sequence[str]
) -> tuple[Action, ...]:
    """The actions of a stage by the names of their bodies; with those for `totals` before them, and
    those that wait for other stages at the end."""
    stage, microbatches = actions[0].stage, 1 + max(action.microbatch for action in actions)
    places = {
        letters: [place for place, action in enumerate(actions) if action.body in letters]
        for letters in ("F", "BI", "BW")
    }
    firsts = {found[0] for found in places.values() if found}
    lasts = {places["BW"][-1]} if microbatches > 1 else set()
    out = [Action(TOTALS if j else TOTALS_FIRST, j, stage) for j in range(microbatches * totals)]
    for place, action in enumerate(actions):
        name = action.body
        name += _FIRST if place in firsts else ""
        name += _LAST if place in lasts else ""
        out.append(Action(name, action.microbatch, stage))
    return (*out, *(Action(name, microbatches - 1, stage) for name in ends))


class _Stage:
    def __init__(
        self,
        draft: Draft,
        actions: Sequence[Action],
        ends: StageEnds,
        kept: frozenset[int],
        held: frozenset[int],
        stored: frozenset[int],
        trained: frozenset[int],
        timing: Costing,
    ) -> None:
        self.draft, self.ends, self.kept, self.held = draft, ends, kept, held
        self.microbatches = 1 + max(action.microbatch for action in actions)
        outliving = (kept - held) | ends.shares
        casts = _casts_for_backward(draft, trained)
        self.parts = Parts(draft, stored | ends.sent, outliving, timing, casts)
        self.stored = stored
        last = self._after(ends.squares)
        early = self._after(ends.late) - last
        self.ends_of = {SHARES: early, UPDATE: last} if ends.squares else {UPDATE: early}
        self.ends_of = {name: ids for name, ids in self.ends_of.items() if ids}
        self.late = last | early
        self.actions = self._actions(actions)
        self.listed = self._listed()

    def bodies(self) -> Bodies:
        """The bodies, and what lives from one of them to others."""
        enter = {name: entering(body) - self.held for name, body in self.listed.items()}
        made_by = {
            name: frozenset(v for one in body for v in writes(one))
            for name, body in self.listed.items()
        }
        once = self.parts.ahead | self.parts.sums | self.parts.once_made
        per_microbatch = [
            n for n in self.listed if n not in self.ends_of and not n.startswith(TOTALS)
        ]
        stashed = frozenset().union(*(enter[name] for name in per_microbatch)) - once
        last = self.actions[-1].body
        crossing = self.ends.sent | self.ends.shares
        at_end = frozenset().union(*(enter[name] for name in self.ends_of))
        carried = (frozenset().union(*enter.values()) - stashed) | at_end
        carried |= frozenset().union(*(made_by[n] for n in per_microbatch if n != last)) & (
            self.kept - self.held - self.stored
        )
        by_name = {}
        for name, body in self.listed.items():
            begun = [one for one in body if one.kind == "view" and accumulates(one)]
            alias = {v: a for v, a in self.draft.alias.items() if v in made_by[name]}
            alias |= {v: reads(one)[0] for one in begun for v in writes(one)}
            outlive = self.held | crossing | self.stored
            outlive |= self._stash_after(name, enter) & stashed
            outlive |= self.kept if name == last else carried | self.kept
            ends = frozenset() if name != last else carried - self.kept - enter[name]
            by_name[name] = Body(instructions=body, alias=alias, kept=frozenset(outlive), ends=ends)
        return Bodies(
            by_name=by_name,
            actions=self.actions,
            carried=carried,
            lying=frozenset(self.parts.first.lying),
            stashed=stashed,
        )

    def _stash_after(self, name: str, enter: dict[str, frozenset[int]]) -> frozenset[int]:
        """What later actions of a microbatch read."""
        later = "" if name in self.ends_of else _LATER.get(name[0], "")
        read = (enter[n] for n in enter if n[0] in later and n not in self.ends_of)
        return frozenset().union(*read)

    # -------------------------------------------------------------------------------------- actions

    def _actions(self, actions: Sequence[Action]) -> tuple[Action, ...]:
        """The actions, by the names of their bodies."""
        return named_actions(actions, totals=bool(self.parts.ahead), ends=tuple(self.ends_of))

    # --------------------------------------------------------------------------------- instructions

    def _listed(self) -> dict[str, list[Instruction]]:
        """The instructions of every body, in order of need."""
        found: dict[str, list[Instruction]] = {}
        for name in dict.fromkeys(action.body for action in self.actions):
            if name.startswith(TOTALS):
                found[name] = self.parts.listed(name)
            elif name in self.ends_of:
                found[name] = [o for o in self.draft.instructions if o.id in self.ends_of[name]]
            else:
                body = self._of_microbatch(name)
                change = self.parts.first.of if _FIRST in name else self.parts.added
                found[name] = [change(one) if accumulates(one) else one for one in body]
        return found

    def _of_microbatch(self, name: str) -> list[Instruction]:
        """The instructions of one microbatch's forward, backward, or half of it."""
        letter, parts = name[0], self.parts
        whole = self.microbatches == 1 or _LAST in name
        first = _FIRST in name
        given = parts.ahead if first else parts.ahead | parts.once_made
        wanted = parts.sums | parts.stored
        one = self.microbatches == 1
        some = wanted | parts.outliving if one else wanted
        every = needed(self.draft, some, given, updates=one)
        forward = _forward(every)
        if letter == "F":
            return [one for one in every if one.id in forward and one.id not in self.late]
        if whole:
            every = needed(self.draft, wanted | parts.outliving, given, updates=True)
        back = [one for one in every if one.id not in forward and one.id not in self.late]
        if letter == "B":
            return back
        inputs = {one.id for one in needed(self.draft, self.ends.sent, given)}
        inputs |= {one.id for one in back if isinstance(one, Compute) and one.op == RECEIVE}
        return [one for one in back if (one.id in inputs) == (letter == "I")]

    def _after(self, values: frozenset[int]) -> frozenset[str]:
        """The ids of the instructions that depend on values that come in."""
        due, found = set(values), set[str]()
        for one in self.draft.instructions:
            if not due.isdisjoint(reads(one)):
                found.add(one.id)
                due.update(writes(one))
        return frozenset(found)


def _forward(instructions: Iterable[Instruction]) -> set[str]:
    """The ids of the instructions of forward, without views of what backward makes (a piece of a
    value, say): these belong to backward."""
    found, later = set[str](), set[int]()
    for one in instructions:
        if one.phase == "forward" and later.isdisjoint(reads(one)):
            found.add(one.id)
        else:
            later.update(writes(one))
    return found


def _casts_for_backward(draft: Draft, trained: frozenset[int]) -> set[str]:
    """The ids of the instructions that cast parameters, as held or as gathered for the step, and
    that backward reads: made once, they are not stashed for every microbatch."""
    ready, found = set(trained), set[str]()
    back = {v for one in draft.instructions if one.phase != "forward" for v in reads(one)}
    back |= {draft.base(value) for value in back}
    for one in draft.instructions:
        if one.id in draft.once or (one.kind == "view" and ready.issuperset(reads(one))):
            ready.update(writes(one))
        elif (
            isinstance(one, Compute)
            and one.op == "aten._to_copy.default"
            and one.phase == "forward"
            and ready.issuperset(reads(one))
            and not back.isdisjoint(writes(one))
        ):
            found.add(one.id)
            ready.update(writes(one))
    return found
