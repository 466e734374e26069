"""The best split of a chain, or of the best of several chains (one for each number of replicas and
size of a microbatch), proved.

The programme is run for splits that take a little more than a lower bound: what it finds is the
optimum of the chain; if it finds nothing, the bound rises. So bounds are never far too loose, and
no first guess at a split is needed. Of several chains the one with the least bound is run next, and
those are left out whose bound is above the best split so far.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from planner.partition.chain import Chain, Split
from planner.partition.cover import Floors, cover, floors_of, possible
from planner.partition.labels import best_split

__all__ = ["best_of", "lower_bound", "split_chain"]

#: How much more than the bound the splits of the first, second, ... run may take: a run for far too
#: much costs more than all runs for too little.
_MORE = (1.01, 1.02, 1.03, 1.04, *(1.05,) * 8, 1.2, 2.0, 8.0, float("inf"))
_NEVER = float("inf")
#: Labels of one number of stages that are kept at most: more take minutes. Two kinds of devices
#: need some thousands.
MOST_LABELS = 30_000
#: Relative width at which the search for the least possible bottleneck ends.
_CLOSE = 4e-3
#: A stage that takes longer than all units at their fastest by this factor is no stage.
_SLOWEST = 1e3


def split_chain(chain: Chain, most_labels: int = MOST_LABELS) -> Split | None:
    """The split of the fewest seconds, None if nothing fits."""
    best = best_of([chain], most_labels)
    return None if best is None else best[1]


def best_of(chains: Sequence[Chain], most_labels: int = MOST_LABELS) -> tuple[int, Split] | None:
    """(number of the chain, split) of the fewest seconds over all chains, None if nothing fits. Its
    bound is lower than its seconds only if there were more than `most_labels` labels of a number of
    stages."""
    search = _Search([floors_of(chain) for chain in chains], most_labels)
    work = [_work(floors) for floors in search.floors]
    queue: list[tuple[float, int, int]] = []
    for number in sorted(range(len(chains)), key=work.__getitem__):
        bound = max(work[number], _bound(search.floors[number], search.seconds))
        heapq.heappush(queue, (bound, number, 0))
        while search.best is None and queue:
            search.run_next(queue)
    while queue and queue[0][0] < search.seconds:
        search.run_next(queue)
    if search.best is None:
        return None
    number, split = search.best
    return number, Split(split.stages, split.seconds, min(search.unproved, split.seconds))


@dataclass(slots=True)
class _Search:
    """The best split so far, and the least bound of the chains that were not searched in full."""

    floors: list[Floors]
    most_labels: int
    best: tuple[int, Split] | None = None
    unproved: float = _NEVER

    @property
    def seconds(self) -> float:
        """Of the best split."""
        return _NEVER if self.best is None else self.best[1].seconds

    def run_next(self, queue: list[tuple[float, int, int]]) -> None:
        """Runs the programme for the chain with the least bound. The chain goes back to the queue
        if nothing was found and more may be tried."""
        bound, number, runs = heapq.heappop(queue)
        if bound == _NEVER:
            return
        floors, below = self.floors[number], min(bound * _MORE[runs], self.seconds)
        limit = _longest_stage(floors, below)
        needs = cover(floors, limit)
        split, proved = best_split(floors, needs, limit, below, self.most_labels)
        if not proved:
            self.unproved = min(self.unproved, bound)
        if split is not None:
            self.best = number, split
        elif runs + 1 < len(_MORE) and below < self.seconds:
            heapq.heappush(queue, (below, number, runs + 1))


def lower_bound(chain: Chain) -> float:
    """Seconds that no split is faster than."""
    return _bound(floors_of(chain), _NEVER)


def _work(floors: Floors) -> float:
    """A bound that takes no search: all devices busy all the time, or the slowest unit."""
    runs = [
        [floors.chain.run(way, unit, unit + 1) for way in range(len(floors.chain.ways))]
        for unit in range(floors.chain.units)
    ]
    if any(run is None for unit in runs for run in unit):
        slowest = 0.0
    else:
        work = (
            sum(
                min(cost * run.seconds for cost, run in zip(costs, unit, strict=True) if run)
                for unit in runs
            )
            for costs in floors.costs
        )
        slowest = max(*work, *(min(run.seconds for run in unit if run) for unit in runs))
    return _unavoidable(floors) + (floors.chain.microbatches - 1) * slowest


def _bound(floors: Floors, below: float) -> float:
    """No split is faster than this; `below` if none is faster than that."""
    least = _unavoidable(floors)
    most = _SLOWEST * floors.chain.least[-1]
    if below < _NEVER:
        most = min(most, _longest_stage(floors, below))
    low, high = 0.0, min(most, floors.chain.least[-1])
    while not possible(floors, high):
        if high >= most:
            return below
        low, high = high, min(2 * high, most)
    while high - low > _CLOSE * high and floors.chain.microbatches > 1:
        middle = (low + high) / 2
        low, high = (low, middle) if possible(floors, middle) else (middle, high)
    return least + (floors.chain.microbatches - 1) * low


def _unavoidable(floors: Floors) -> float:
    """Seconds of every split beside those of the slowest stage's other microbatches."""
    return floors.chain.least[-1] + sum(floors.after[-1])


def _longest_stage(floors: Floors, incumbent: float) -> float:
    """The seconds that the slowest stage may take if the step is to stay below the incumbent."""
    if floors.chain.microbatches == 1:
        return incumbent
    return (incumbent - _unavoidable(floors)) / (floors.chain.microbatches - 1)
