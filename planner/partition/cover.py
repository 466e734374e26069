"""What the first units of a chain need at the least, if no stage may take longer than a limit.

With prices on the devices of each kind, the cheapest cover of units 0 to end by runs within the
limit is a lower bound on the price of the devices of any split: a split that costs more than all
devices there are is impossible. Longer runs cover more, so the longest run of each way that ends
at a unit is enough, and the cover is linear in the units.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.partition.chain import Chain, Way

__all__ = ["Cover", "Floors", "cover", "floors_of", "possible"]

#: Prices of one device of each kind, such that all devices together cost 1.
Prices = tuple[float, ...]
_ROUNDING = 1e-9
_NEVER = float("inf")
#: `starts[way][end]`: where the longest run of the way begins that ends there; at the end itself if
#: there is none.
Starts = tuple[tuple[int, ...], ...]
#: `needs[price][end]`: the least price of units 0 to end.
Needs = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Floors:
    """What no split can avoid: `hops[way]`, the fewest seconds (sent, returned) of a stage that is
    not alone; `after[end]`, seconds of update and of sync of units 0 to end; and for each of some
    prices on devices the price of each way, `costs[price][way]`, the cheapest of its kinds if it
    mixes kinds."""

    chain: Chain
    hops: tuple[tuple[float, float], ...]
    after: tuple[tuple[float, float], ...]
    costs: tuple[tuple[float, ...], ...]

    @cached_property
    def fits(self) -> tuple[Starts, ...]:
        """What memory allows: `fits[j - 1]` of stage j from the end, the last of them for more.
        There is one if all are the same, and none for more stages than there are devices for."""
        most = int((1 + _ROUNDING) / max(map(min, self.costs)))
        return _fits(self.chain, max(min(self.chain.units, most), 1))

    @cached_property
    def fits_last(self) -> Starts:
        """What memory allows in the last stage, which holds the fewest microbatches."""
        held = self.chain.in_flight(1)
        return tuple(_fit(self.chain, way, held) for way in range(len(self.chain.ways)))


def floors_of(chain: Chain) -> Floors:
    """The floors of a chain, which depend on no limit."""
    hops = tuple(chain.least_hops) or ((0.0, 0.0),) * len(chain.ways)
    after = tuple(chain.least_after) or ((0.0, 0.0),) * (chain.units + 1)
    return Floors(
        chain, hops, after, tuple(_costs(chain, prices) for prices in _prices(chain.devices))
    )


def _fits(chain: Chain, most: int) -> tuple[Starts, ...]:
    """The starts by memory of stages 1 to `most` from the end; of one if they are all the same."""
    ways = range(len(chain.ways))
    levels: dict[int, Starts] = {}
    for held in sorted({chain.in_flight(j) for j in (1, most)}, reverse=True):
        levels[held] = tuple(_fit(chain, way, held) for way in ways)
    if len({*levels.values()}) == 1:
        return (levels[chain.in_flight(1)],)
    for held in {chain.in_flight(j) for j in range(1, most + 1)} - {*levels}:
        levels[held] = tuple(_fit(chain, way, held) for way in ways)
    return tuple(levels[chain.in_flight(j)] for j in range(1, most + 1))


def _fit(chain: Chain, way: int, held: int) -> tuple[int, ...]:
    """The starts of the longest runs that hold so many microbatches: none lies before that of the
    end before."""
    starts, start = [0], 0
    for end in range(1, chain.units + 1):
        while start < end:
            run = chain.run(way, start, end)
            if run is not None and run.most_in_flight >= held:
                break
            start += 1
        starts.append(start)
    return tuple(starts)


def _prices(devices: Sequence[int]) -> tuple[Prices, ...]:
    """All devices at the same share of the whole, and mixtures of prices on one kind alone: in
    quarters of up to three kinds, in halves of more."""
    steps = 4 if len(devices) <= 3 else 2
    mixtures = {
        tuple(share / steps for share in shares)
        for shares in itertools.product(range(steps + 1), repeat=len(devices))
        if sum(shares) == steps
    }
    even = (1 / len(devices),) * len(devices)
    return tuple(
        tuple(share / count for share, count in zip(shares, devices, strict=True))
        for shares in (even, *sorted(mixtures - {even}))
    )


def _costs(chain: Chain, prices: Prices) -> tuple[float, ...]:
    return tuple(_cost(way, prices) for way in chain.ways)


def _cost(way: Way, prices: Prices) -> float:
    counted = list(zip(prices, way.devices, strict=True))
    if way.mixes:
        return way.replicas * min(price * count for price, count in counted if count)
    return sum(
        price * count * share for (price, count), share in zip(counted, way.split, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Cover:
    """At one limit: the starts of last stages, and `needs[stages][price][end]`, the least price of
    devices for units 0 to end before that many other stages (before the last, for more)."""

    starts: Starts
    needs: tuple[Needs, ...]

    def last_start(self, spent: Sequence[float], stages: int) -> int:
        """The last unit up to which, not with it, units can be covered, before `stages` stages, by
        what is left if `spent` is the price, under each of the prices, of what is taken; -1 if
        none can."""
        last = len(self.needs[0][0]) - 2
        needs = self.needs[min(stages, len(self.needs) - 1)]
        for need, taken in zip(needs, spent, strict=True):
            last = bisect_right(need, 1.0 + _ROUNDING - taken, 0, last + 1) - 1
        return last


def cover(floors: Floors, limit: float) -> Cover:
    """The cover at a limit on the seconds of a stage. Where memory binds, stages further from the
    end hold more microbatches: their longest runs are shorter."""
    within = _all_within(floors, limit)
    return Cover(_shorter(within, floors.fits[0]), _levels(floors, within))


def possible(floors: Floors, limit: float) -> bool:
    """Whether the bounds leave a split whose slowest stage is within the limit."""
    within = _all_within(floors, limit)
    simple = _level(floors, _shorter(within, floors.fits_last), None)
    if any(need[-1] > 1.0 + _ROUNDING for need in simple):
        return False
    return all(need[-1] <= 1.0 + _ROUNDING for need in _levels(floors, within)[0])


def _all_within(floors: Floors, limit: float) -> Starts:
    ways = range(len(floors.chain.ways))
    return tuple(_within(floors.chain, way, floors.hops[way], limit) for way in ways)


def _shorter(within: Starts, fits: Starts) -> Starts:
    """The starts by time and by memory: both allow all shorter runs."""
    return tuple(tuple(map(max, a, b)) for a, b in zip(within, fits, strict=True))


def _levels(floors: Floors, within: Starts) -> tuple[Needs, ...]:
    """The needs before 0, 1, 2, ... stages."""
    if len(floors.fits) == 1:
        return (_level(floors, _shorter(within, floors.fits[0]), None),)
    needs: list[Needs] = [tuple((0.0, *[_NEVER] * floors.chain.units) for _ in floors.costs)]
    for fits in reversed(floors.fits):
        needs.append(_level(floors, _shorter(within, fits), needs[-1]))
    return tuple(reversed(needs))


def _level(floors: Floors, starts: Starts, rests: Needs | None) -> Needs:
    """The needs of units whose last stage has these starts, the stages before it the needs `rests`
    (or the same again). A way that mixes kinds covers no more, for no less, than one of them."""
    pure = [number for number, way in enumerate(floors.chain.ways) if not way.mixes]
    chosen = [starts[way] for way in pure]
    return tuple(
        _needs(
            floors.chain.units,
            chosen,
            [costs[way] for way in pure],
            None if rests is None else rests[index],
        )
        for index, costs in enumerate(floors.costs)
    )


def _needs(
    units: int,
    starts: Sequence[tuple[int, ...]],
    costs: Sequence[float],
    rest: Sequence[float] | None,
) -> tuple[float, ...]:
    """The least price of units 0 to each end, whose last stage costs what `starts` allow, the
    stages before it what `rest` says (or the same again)."""
    needs = [0.0]
    before = needs if rest is None else rest
    for end in range(1, units + 1):
        least = _NEVER
        for first, cost in zip(starts, costs, strict=True):
            start = first[end]
            if start < end and before[start] + cost < least:
                least = before[start] + cost
        needs.append(least)
    return tuple(needs)


def _within(chain: Chain, way: int, hops: tuple[float, float], limit: float) -> tuple[int, ...]:
    """The starts of the longest runs by time: none lies before that of the end before, but for the
    run that ends last, which sends nothing on."""
    starts, start, run = [0], 0, chain.run
    for end in range(1, chain.units + 1):
        sent, returned = hops
        if end == chain.units:
            start, sent, returned = 0, 0.0, returned * chain.last_returns
        while start < end:
            cost = run(way, start, end)
            if cost is not None and cost.seconds + sent + (returned if start else 0.0) <= limit:
                break
            start += 1
        starts.append(start)
    return tuple(starts)
