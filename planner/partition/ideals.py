"""The ideals of a graph: sets of units with all that comes before them, as integers whose bits are
the units.
"""

from __future__ import annotations

from collections.abc import Iterable

from planner.partition.dag import Dag

__all__ = ["all_ideals", "prefixes"]


def all_ideals(dag: Dag, most: int) -> list[int] | None:
    """Every ideal once, None if there are more than `most`.

    From an ideal the units that may be added next are tried in order, and a unit that was passed
    over is not added later: so each ideal is reached in one way.
    """
    needs, after = _needs(dag), _after(dag)
    ideals = []
    waiting = [(0, _bits(unit for unit, need in enumerate(needs) if not need))]
    while waiting:
        ideal, free = waiting.pop()
        ideals.append(ideal)
        if len(ideals) + len(waiting) > most:
            return None
        while free:
            bit = free & -free
            free ^= bit
            more, opened = ideal | bit, free
            for unit in after[bit.bit_length() - 1]:
                if needs[unit] & more == needs[unit]:
                    opened |= 1 << unit
            waiting.append((more, opened))
    return ideals


def prefixes(dag: Dag, deep: bool) -> list[int]:
    """The ideals along one order of the units: as deep into a branch as it goes, or all branches
    side by side."""
    needs, after = _needs(dag), _after(dag)
    ready = [unit for unit, need in enumerate(needs) if not need]
    ideals, ideal = [0], 0
    while ready:
        unit = ready.pop() if deep else ready.pop(0)
        ideal |= 1 << unit
        ideals.append(ideal)
        ready += [
            next_
            for next_ in sorted(after[unit])
            if needs[next_] & ideal == needs[next_] and not ideal >> next_ & 1
        ]
    return ideals


def _bits(units: Iterable[int]) -> int:
    total = 0
    for unit in units:
        total |= 1 << unit
    return total


def _needs(dag: Dag) -> list[int]:
    return [_bits(before) for before in dag.before]


def _after(dag: Dag) -> list[list[int]]:
    after: list[list[int]] = [[] for _ in dag.before]
    for unit, before in enumerate(dag.before):
        for earlier in before:
            after[earlier].append(unit)
    return after
