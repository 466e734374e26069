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

from planner.partition.chain import Chain, Split
from planner.partition.cover import Floors, cover, floors_of, possible
from planner.partition.labels import best_split

__all__ = ["best_of", "lower_bound", "split_chain"]

#: How much more than the bound the splits of the first, second, ... run may take: a run for far too
#: much costs more than all runs for too little.
_MORE = (1.01, 1.02, 1.03, 1.04, *(1.05,) * 8, 1.2, 2.0, 8.0, float("inf"))
_NEVER = float("inf")
#: Relative width at which the search for the least possible bottleneck ends.
_CLOSE = 4e-3
#: A stage that takes longer than all units at their fastest by this factor is no stage.
_SLOWEST = 1e3


def split_chain(chain: Chain) -> Split | None:
    """The split of the fewest seconds, None if nothing fits."""
    best = best_of([chain])
    return None if best is None else best[1]


def best_of(chains: Sequence[Chain]) -> tuple[int, Split] | None:
    """(number of the chain, split) of the fewest seconds over all chains, None if nothing fits."""
    floors = [floors_of(chain) for chain in chains]
    work = [_work(chain, floor) for chain, floor in zip(chains, floors, strict=True)]
    best: tuple[int, Split] | None = None
    queue: list[tuple[float, int, int]] = []
    for number in sorted(range(len(chains)), key=work.__getitem__):
        bound = max(work[number], _bound(chains[number], floors[number], _seconds(best)))
        queue.append((bound, number, 0))
        while best is None and queue:
            best = _run_next(chains, floors, queue, None)
    heapq.heapify(queue)
    while queue and queue[0][0] < _seconds(best):
        best = _run_next(chains, floors, queue, best)
    return best


def _seconds(best: tuple[int, Split] | None) -> float:
    return _NEVER if best is None else best[1].seconds


def _run_next(
    chains: Sequence[Chain],
    floors: Sequence[Floors],
    queue: list[tuple[float, int, int]],
    best: tuple[int, Split] | None,
) -> tuple[int, Split] | None:
    """The best split after one more run of the programme, for the chain with the least bound. The
    chain goes back to the queue if nothing was found and more may be tried."""
    bound, number, runs = heapq.heappop(queue)
    below = min(bound * _MORE[runs], _seconds(best)) if bound < _NEVER else 0.0
    chain, floor = chains[number], floors[number]
    if below > bound:
        limit = _longest_stage(chain, floor, below)
        split = best_split(chain, floor, cover(floor, limit), limit, below)
        if split is not None:
            return number, split
        if runs + 1 < len(_MORE) and below < _seconds(best):
            heapq.heappush(queue, (below, number, runs + 1))
    return best


def lower_bound(chain: Chain) -> float:
    """Seconds that no split is faster than."""
    return _bound(chain, floors_of(chain), _NEVER)


def _work(chain: Chain, floors: Floors) -> float:
    """A bound that takes no search: all devices busy all the time, or the slowest unit."""
    runs = [
        [chain.run(way, unit, unit + 1) for way in range(len(chain.ways))]
        for unit in range(chain.units)
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
    return _unavoidable(chain, floors) + (chain.microbatches - 1) * slowest


def _bound(chain: Chain, floors: Floors, below: float) -> float:
    """No split is faster than this; `below` if none is faster than that."""
    least = _unavoidable(chain, floors)
    most = _SLOWEST * chain.least[-1]
    if below < _NEVER:
        most = min(most, _longest_stage(chain, floors, below))
    low, high = 0.0, min(most, chain.least[-1])
    while not possible(floors, high):
        if high >= most:
            return below
        low, high = high, min(2 * high, most)
    while high - low > _CLOSE * high and chain.microbatches > 1:
        middle = (low + high) / 2
        low, high = (low, middle) if possible(floors, middle) else (middle, high)
    return least + (chain.microbatches - 1) * low


def _unavoidable(chain: Chain, floors: Floors) -> float:
    """Seconds of every split beside those of the slowest stage's other microbatches."""
    return chain.least[-1] + sum(floors.after[-1])


def _longest_stage(chain: Chain, floors: Floors, incumbent: float) -> float:
    """The seconds that the slowest stage may take if the step is to stay below the incumbent."""
    if chain.microbatches == 1:
        return incumbent
    return (incumbent - _unavoidable(chain, floors)) / (chain.microbatches - 1)
