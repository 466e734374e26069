"""The split of a graph into contiguous parts whose most loaded device has the least load.

A dynamic programme over ideals and numbers of devices used: the least load with which the devices
can hold an ideal. First over the ideals along two orders of the units, which gives a split; then,
against that as the incumbent, over all ideals. An ideal is passed over if what is left cannot be
done by the devices that are left within the incumbent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.partition.dag import Dag, DagSplit, Part
from planner.partition.ideals import all_ideals, prefixes
from planner.partition.loads import Floats, Ideals, ideals_of

__all__ = ["split_dag"]

#: Ideals that are looked at at most. Beyond, only those along orders are, and the bound is that of
#: the work.
MOST_IDEALS = 200_000
#: Pairs of ideals whose loads are worked out at once.
_PAIRS = 4_000_000
_NEVER = float("inf")

#: Devices used of each kind.
Used = tuple[int, ...]
#: For each ideal: the kind of the last device and the ideal before its part.
Choices = NDArray[np.int32]


def split_dag(dag: Dag, most_ideals: int = MOST_IDEALS) -> DagSplit | None:
    """The best split, None if nothing fits. It is the optimum, unless the graph has more ideals
    than `most_ideals`."""
    few = sorted({*prefixes(dag, deep=True), *prefixes(dag, deep=False)})
    first = _best(dag, few, _NEVER)
    every = all_ideals(dag, most_ideals)
    bound = _work_bound(dag)
    if every is None:
        return None if first is None else DagSplit(first.parts, first.load, bound)
    best = _best(dag, every, _NEVER if first is None else first.load) or first
    return None if best is None else DagSplit(best.parts, best.load, best.load)


def _best(dag: Dag, names: Sequence[int], below: float) -> DagSplit | None:
    """The best split along some ideals with a load less than `below`."""
    search = _Search(dag, ideals_of(dag, names), below)
    for used in search.states():
        search.extend(used)
    if search.last is None:
        return None
    return DagSplit(search.parts(), search.below, 0.0)


@dataclass(slots=True)
class _Search:
    dag: Dag
    ideals: Ideals
    below: float
    loads: dict[Used, Floats] = field(default_factory=dict)
    choices: dict[Used, Choices] = field(default_factory=dict)
    last: Used | None = None

    def states(self) -> Iterator[Used]:
        """Devices used of each kind, fewer in all before more."""
        counts = [range(device.count + 1) for device in self.dag.devices]
        start = (0,) * len(counts)
        self.loads[start] = np.full(len(self.ideals.names), _NEVER)
        self.loads[start][0] = 0.0
        yield from sorted(itertools.product(*counts), key=sum)[:-1]

    def extend(self, used: Used) -> None:
        """Adds a device of each kind after the devices used."""
        loads = self.loads.pop(used, None)
        if loads is None:
            return
        rows = np.flatnonzero((loads < self.below) & (loads < _NEVER))
        rows = rows[rows < len(loads) - 1]
        if len(rows):
            for kind, device in enumerate(self.dag.devices):
                if used[kind] < device.count:
                    self._extend(used, kind, rows, loads)

    def _extend(self, used: Used, kind: int, rows: NDArray[np.intp], loads: Floats) -> None:
        to = tuple(count + (k == kind) for k, count in enumerate(used))
        work = self.ideals.seconds[0]
        first = int(np.searchsorted(work, self._least_work(to) * (1 - 1e-12)))
        first = max(first, int(rows[0]) + 1)
        reach = self.below * self._rate(kind)
        target = self.loads.setdefault(to, np.full(len(loads), _NEVER))
        choices = self.choices.setdefault(to, np.zeros((len(loads), 2), np.int32))
        step = max(1, _PAIRS // (len(loads) - first + 1))
        for chunk in np.split(rows, range(step, len(rows), step)):
            end = int(np.searchsorted(work, work[chunk[-1]] + reach, side="right"))
            if end <= first:
                continue
            pairs = self.ideals.loads(self.dag, kind, chunk, first, end)
            np.maximum(pairs, loads[chunk, None], out=pairs)
            best = pairs.argmin(axis=0)
            least = pairs[best, np.arange(len(best))]
            better = least < np.minimum(target[first:end], self.below)
            target[first:end][better] = least[better]
            choices[first:end][better, 0] = kind
            choices[first:end][better, 1] = chunk[best[better]]
        if target[-1] < self.below:
            self.below, self.last = float(target[-1]), to

    def _least_work(self, used: Used) -> float:
        """What must be done by then, for the devices that are left to do the rest in time."""
        left = sum(
            (device.count - count) * self._rate(kind) if device.count > count else 0.0
            for kind, (device, count) in enumerate(zip(self.dag.devices, used, strict=True))
        )
        return float(self.ideals.seconds[0, -1]) - (self.below * left if left else 0.0)

    def _rate(self, kind: int) -> float:
        """The most work, in seconds of the first kind, that a kind does in a second."""
        return _rate(self.dag, kind)

    def parts(self) -> tuple[Part, ...]:
        """The parts of the best split, first to last."""
        used, at, parts = self.last, len(self.ideals.names) - 1, []
        while used is not None and at:
            kind, before = map(int, self.choices[used][at])
            units = self.ideals.names[at] & ~self.ideals.names[before]
            members = (unit for unit in range(len(self.dag.before)) if units >> unit & 1)
            parts.append(Part(kind, frozenset(members)))
            used = tuple(count - (k == kind) for k, count in enumerate(used))
            at = before
        return tuple(reversed(parts))


def _rate(dag: Dag, kind: int) -> float:
    pairs = zip(dag.devices[0].seconds, dag.devices[kind].seconds, strict=True)
    return max(
        (_most(own, other) for own, other in pairs if own < _NEVER),
        default=0.0,
    )


def _most(own: float, other: float) -> float:
    return own / other if other else (_NEVER if own else 0.0)


def _work_bound(dag: Dag) -> float:
    """All devices busy all the time, or the unit that takes longest wherever it runs."""
    work = sum(seconds for seconds in dag.devices[0].seconds if seconds < _NEVER)
    rate = sum(device.count * _rate(dag, kind) for kind, device in enumerate(dag.devices))
    units = range(len(dag.before))
    slowest = max(min(device.seconds[unit] for device in dag.devices) for unit in units)
    return max(work / rate if rate else 0.0, slowest)
