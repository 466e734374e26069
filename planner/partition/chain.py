"""Units in a row that are to be split into pipeline stages, what a run of them costs, and the split.

A step under 1F1B, with x_i the seconds that a microbatch occupies stage i (forward, backward and
transfers), m microbatches and stages of unlike times, takes

    sum_i x_i + (m - 1) max_i x_i + max_i update_i + max_i sync_i

(a microbatch passes all stages once, the slowest stage sets the pace of the others; updates and
syncs that nothing hides end the step).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cost_models.errors import BadValue

__all__ = ["Chain", "Run", "Split", "Stage", "Way", "in_flight_1f1b", "price"]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of units costs as one stage: seconds of forward and backward of a microbatch, and
    the most microbatches in flight that fit the memory."""

    seconds: float
    most_in_flight: int = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to give devices to a stage: `replicas` groups, each of `devices[k]` devices of kind
    k. If more than one entry is above zero, each replica is of one of these kinds: `shares` says
    how many are of which; without it the way mixes kinds, and the split says so."""

    name: str
    devices: tuple[int, ...]
    replicas: int = 1
    shares: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.replicas < 1 or min(self.devices) < 0 or not any(self.devices):
            raise BadValue(
                f"{self.name}: {self.replicas} replicas of {self.devices} devices: give a replica "
                "at least one device of one kind"
            )
        if self.shares and sum(self.shares) != self.replicas:
            raise BadValue(
                f"{self.name}: shares {self.shares} of {self.replicas} replicas: they must add up"
            )

    @property
    def mixes(self) -> bool:
        """Whether replicas may be of more than one kind, in any proportion."""
        return not self.shares and sum(count > 0 for count in self.devices) > 1

    @property
    def split(self) -> tuple[int, ...]:
        """Replicas of each kind, if the way does not mix kinds."""
        return self.shares or tuple(self.replicas if count else 0 for count in self.devices)


def in_flight_1f1b(microbatches: int) -> Callable[[int], int]:
    """Microbatches that stage j from the end (1 = the last) holds at once under 1F1B."""
    return lambda from_end: min(microbatches, from_end)


def _none_after(way: int, start: int, end: int) -> tuple[float, float]:
    return 0.0, 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """`units` in a row, the `ways` to give devices to a run of them, and the `devices` of each kind
    that there are.

    `run(way, start, end)` is the cost of units start to end (exclusive), None if the way cannot run
    them. `after(way, start, end)` are its seconds of (update, sync) after the last microbatch. The
    search relies on this: a run takes no fewer seconds than its parts together, and its parts fit
    wherever it fits.
    `transfer(before, after, cut)` are the seconds (sent, returned) that a microbatch's values take
    over the cut between unit cut - 1 and unit cut, charged to the stage before and to the stage
    after; `first_sends(stages)` and `last_returns`, not below 1, weigh them at the two ends.
    Of units 0 to end, in any split, `least[end]` is no more than the seconds of all, and
    `least_after[end]`, if given, no more than the (update, sync) of the stage with the most;
    `least_hops[way]`, if given, is no more than what a stage sends to the next one and returns to
    the one before."""

    units: int
    ways: tuple[Way, ...]
    devices: tuple[int, ...]
    microbatches: int
    run: Callable[[int, int, int], Run | None]
    after: Callable[[int, int, int], tuple[float, float]] = _none_after
    transfer: Callable[[int, int, int], tuple[float, float]] = _none_after
    in_flight: Callable[[int], int] = field(default=lambda from_end: from_end)
    first_sends: Callable[[int], float] = field(default=lambda stages: 1.0)
    last_returns: float = 1.0
    least: Sequence[float]
    least_after: Sequence[tuple[float, float]] = ()
    least_hops: Sequence[tuple[float, float]] = ()

    def __post_init__(self) -> None:
        if self.units < 1 or self.microbatches < 1 or not self.ways:
            raise BadValue(
                f"{self.units} units, {self.microbatches} microbatches, {len(self.ways)} ways: "
                "there must be at least one of each"
            )
        unlike = [way.name for way in self.ways if len(way.devices) != len(self.devices)]
        if unlike or min(self.devices) < 1:
            raise BadValue(
                f"devices {self.devices}: name those of each kind, at least one, in every way "
                f"(unlike: {', '.join(unlike) or 'none'})"
            )


@dataclass(frozen=True, slots=True)
class Stage:
    """Units start to end (exclusive), the number of the way, and how many replicas are of each
    kind."""

    start: int
    end: int
    way: int
    replicas: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """The stages, first to last, the seconds of a step by the formula above, and a bound: no split
    of the chains that were searched takes fewer seconds."""

    stages: tuple[Stage, ...]
    seconds: float
    bound: float


def price(chain: Chain, stages: Sequence[Stage]) -> float:
    """The seconds of a step by the formula above, from the costs of the chain alone: what the
    search claims is checked against it."""
    occupied, update, sync = [], 0.0, 0.0
    for index, stage in enumerate(stages):
        run = chain.run(stage.way, stage.start, stage.end)
        assert run is not None
        sent = returned = 0.0
        if index + 1 < len(stages):
            sent, _ = chain.transfer(stage.way, stages[index + 1].way, stage.end)
            sent *= chain.first_sends(len(stages)) if index == 0 else 1.0
        if index > 0:
            _, returned = chain.transfer(stages[index - 1].way, stage.way, stage.start)
            returned *= chain.last_returns if index + 1 == len(stages) else 1.0
        occupied.append(run.seconds + sent + returned)
        own_update, own_sync = chain.after(stage.way, stage.start, stage.end)
        update, sync = max(update, own_update), max(sync, own_sync)
    return sum(occupied) + (chain.microbatches - 1) * max(occupied) + update + sync
