"""The exact dynamic programme over splits of a chain, from the last stage to the first.

A label is a split of the last units: what it has taken so far (devices, the sum of stages, the
slowest of them, updates, syncs). A label is left out if another one before the same unit, with the
same way in its first stage and no more stages, has taken no more of anything, or if the bounds of
`cover` say that it cannot end below the incumbent.

In-flight microbatches count from the end, which is why the programme begins there. At most one
stage mixes kinds of devices: with two kinds, devices moved between two mixed stages at their rate
of exchange make one of them pure and need no more devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from planner.partition.chain import Chain, Split, Stage
from planner.partition.cover import Cover, Floors

__all__ = ["best_split"]

_NONE = -1


@dataclass(slots=True)
class _Label:
    """A split of units `start` on, never changed. `open`, the seconds of its first stage, and
    `total` lack what that stage returns to the stage before it. `used` lacks the devices of the
    stage whose way, `mixed`, mixes kinds; `spent` is the price of all under each of the prices."""

    total: float
    slowest: float
    open: float
    update: float
    sync: float
    used: tuple[int, ...]
    spent: tuple[float, ...]
    mixed: int
    start: int
    way: int
    after: _Label | None

    def takes_no_less(self, other: _Label) -> bool:
        """Whether the other one has taken no more of anything."""
        return (
            other.total <= self.total
            and other.slowest <= self.slowest
            and other.open <= self.open
            and other.update <= self.update
            and other.sync <= self.sync
            and all(map(int.__le__, other.used, self.used))
        )


def best_split(
    floors: Floors, needs: Cover, limit: float, incumbent: float, most_labels: int
) -> tuple[Split | None, bool]:
    """The split that takes the fewest seconds, if that is below `incumbent`, which asks that no
    stage takes longer than `limit`, the limit of `needs`; and whether that is proved. It is not if
    there were more than `most_labels` of one number of stages: those that could be the fastest were
    kept."""
    chain = floors.chain
    search = _Search(chain, floors, needs, limit, incumbent)
    unused, unspent = (0,) * len(chain.devices), (0.0,) * len(floors.costs)
    labels = [_Label(0.0, 0.0, 0.0, 0.0, 0.0, unused, unspent, _NONE, chain.units, _NONE, None)]
    stages, proved = 0, True
    while labels:
        stages += 1
        if len(labels) > most_labels:
            labels, proved = sorted(labels, key=search.least_seconds)[:most_labels], False
        labels.sort(key=lambda label: label.total)
        labels = [new for label in labels for new in search.extended(label, stages)]
    if search.best is None:
        return None, proved
    return Split(_stages(chain, search.best), search.incumbent, 0.0), proved


@dataclass(slots=True)
class _Search:
    chain: Chain
    floors: Floors
    needs: Cover
    limit: float
    incumbent: float
    best: _Label | None = None
    #: Labels worth extending by start and way.
    front: dict[tuple[int, int], list[_Label]] = field(default_factory=dict)
    #: By mixed way, the others that can do with any devices that it can do with; none can best.
    no_worse: dict[int, set[int]] = field(default_factory=dict)
    #: Each way and its price under each of the prices, those that mix kinds last.
    ways: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)
    pure: int = 0

    def __post_init__(self) -> None:
        mixes = [way.mixes for way in self.chain.ways]
        self.pure = mixes.count(False)
        order = sorted(range(len(mixes)), key=mixes.__getitem__)
        costs = list(zip(*self.floors.costs, strict=True))
        self.ways = [(way, costs[way]) for way in order]
        self.no_worse = _no_worse(self.chain)

    def extended(self, after: _Label, stages: int) -> Iterator[_Label]:
        """The labels with one stage more, the `stages`-th from the end, that are worth keeping."""
        cut, starts = after.start, self.needs.starts
        for way, costs in self.ways[: self.pure if after.mixed != _NONE else None]:
            first = starts[way][cut]
            if first == cut:
                continue
            taken = _taken(self.chain, after, way)
            if taken is None:
                continue
            spent = tuple(map(float.__add__, after.spent, costs))
            last = min(self.needs.last_start(spent, stages), cut - 1)
            if first <= last:
                yield from self._extended(after, way, taken, spent, stages, range(first, last + 1))

    def _extended(
        self,
        after: _Label,
        way: int,
        taken: tuple[tuple[int, ...], int],
        spent: tuple[float, ...],
        stages: int,
        starts: range,
    ) -> Iterator[_Label]:
        chain, cut = self.chain, after.start
        used, mixed = taken
        sent = returned = 0.0
        if after.after is not None:
            sent, returned = chain.transfer(way, after.way, cut)
            returned *= chain.last_returns if stages == 2 else 1.0
        slowest = max(after.slowest, after.open + returned)
        if slowest > self.limit:
            return
        held = chain.in_flight(stages)
        for start in starts:
            run = chain.run(way, start, cut)
            if run is None or run.most_in_flight < held:
                continue
            now = run.seconds + sent * (chain.first_sends(stages) if start == 0 else 1.0)
            if now > self.limit:
                continue
            update, sync = chain.after(way, start, cut)
            new = _Label(
                after.total + returned + now,
                slowest,
                now,
                max(after.update, update),
                max(after.sync, sync),
                used,
                spent,
                mixed,
                start,
                way,
                after,
            )
            if self._worth(new):
                yield new

    def least_seconds(self, label: _Label) -> float:
        """The fewest seconds of any split that ends as the label says."""
        update, sync = self.floors.after[label.start]
        return (
            label.total
            + self.chain.least[label.start]
            + (self.chain.microbatches - 1) * max(label.slowest, label.open)
            + max(label.update, update)
            + max(label.sync, sync)
        )

    def _worth(self, new: _Label) -> bool:
        """Whether a label may lead to a better split. A whole split becomes the best instead."""
        seconds = self.least_seconds(new)
        if seconds >= self.incumbent:
            return False
        if new.start == 0:
            self.best, self.incumbent = new, seconds
            return False
        rivals = self.front.setdefault((new.start, new.way), [])
        no_worse = self.no_worse[new.mixed]
        if any(rival.mixed in no_worse and new.takes_no_less(rival) for rival in rivals):
            return False
        rivals.append(new)
        return True


def _no_worse(chain: Chain) -> dict[int, set[int]]:
    mixed = [number for number, way in enumerate(chain.ways) if way.mixes]
    sizes = {number: chain.ways[number].devices for number in mixed}
    no_worse = {_NONE: {_NONE}}
    for number in mixed:
        no_worse[number] = {_NONE} | {
            other
            for other in mixed
            if all(
                0 < less <= size
                for size, less in zip(sizes[number], sizes[other], strict=True)
                if size
            )
        }
    return no_worse


def _taken(chain: Chain, after: _Label, way: int) -> tuple[tuple[int, ...], int] | None:
    """Devices in use and the mixed way with one stage more; None if there are not enough."""
    more, used, mixed = chain.ways[way], after.used, after.mixed
    if more.mixes:
        mixed = way
    else:
        used = tuple(
            u + d * share for u, d, share in zip(used, more.devices, more.split, strict=True)
        )
    return None if _shares(chain, used, mixed) is None else (used, mixed)


def _shares(chain: Chain, used: tuple[int, ...], mixed: int) -> tuple[int, ...] | None:
    """How many replicas of the mixed way are of which kind, the first kinds as many as there are
    devices for beside those in use; None if the devices do not suffice."""
    left = tuple(map(int.__sub__, chain.devices, used))
    if min(left) < 0:
        return None
    if mixed == _NONE:
        return ()
    way = chain.ways[mixed]
    missing, shares = way.replicas, []
    for free, each in zip(left, way.devices, strict=True):
        shares.append(min(missing, free // each) if each else 0)
        missing -= shares[-1]
    return None if missing else tuple(shares)


def _stages(chain: Chain, label: _Label) -> tuple[Stage, ...]:
    """The stages of a label of the whole chain, first to last."""
    mixture = _shares(chain, label.used, label.mixed) or ()
    stages, at = [], label
    while at.after is not None:
        way = chain.ways[at.way]
        replicas = mixture if way.mixes else way.split
        stages.append(Stage(at.start, at.after.start, at.way, replicas))
        at = at.after
    return tuple(stages)
