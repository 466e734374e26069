"""Schedules by many policies of list scheduling, and small changes of the best one.

A policy says which of F, I and W comes first, which of several stages of a place, how long a place
may wait for something better, and how many microbatches it may have in flight. The best schedule's
order, with noise, ranks the actions of further tries. Effort is counted in actions, not in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planner.schedules.find.list_scheduling import list_schedule
from planner.schedules.find.task import Floats, Ints, Lanes, Task, lanes_of, schedule_of
from planner.schedules.schedule import Schedule

__all__ = ["by_policies", "improved"]

#: A rank of one class is above all of the class below.
_CLASS = 1e9


@dataclass(frozen=True, slots=True)
class _Policy:
    """order: F, I and W, the most urgent first. ties: of several stages of a place the one with the
    fewest behind it, or in rounds of microbatches as interleaved schedules. The rest as in
    `list_schedule`."""

    order: str
    ties: str
    cap: str
    patience: float
    alternate: bool = False


#: Of 216 policies on 60 drawn tasks (2 to 8 places, 2 to 33 microbatches, one or two stages a
#: place, various limits) each of these was added for making the best of those above it shorter; all
#: of them together are as good as all 216.
_POLICIES = (
    _Policy("IFW", "deep", "none", 0.0),
    _Policy("IFW", "deep", "none", 0.5, True),
    _Policy("IFW", "deep", "deep", 0.5),
    _Policy("IFW", "deep", "none", 1.0, True),
    _Policy("IFW", "rounds", "none", 0.0),
    _Policy("FIW", "deep", "falling", 0.5),
    _Policy("FIW", "rounds", "deep", 0.5),
    _Policy("IFW", "deep", "none", 1.0),
    _Policy("FIW", "deep", "none", 0.0),
    _Policy("IFW", "rounds", "none", 0.5),
    _Policy("FIW", "deep", "falling", 1.0),
    _Policy("FIW", "deep", "none", 0.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """What `list_schedule` is called with beside the task."""

    caps: Ints
    ranks: Floats
    alternate: bool
    patience: float


@dataclass(frozen=True, slots=True)
class _Arrays:
    """A task as `list_schedule` takes it."""

    task: Task
    lanes: Lanes
    begin: Floats
    limits: Floats

    def run(self, attempt: _Try) -> tuple[float, Ints]:
        """The step time, `inf` if the places do not reach their end, and the turns of the lanes."""
        costs = self.task.costs
        free, turns = list_schedule(
            self.lanes, self.task.microbatches, self.begin, self.limits, attempt.caps,
            costs.overlapped, attempt.ranks, attempt.alternate, attempt.patience,
        )  # fmt: skip
        after = np.array(costs.after or (0.0,) * len(free))
        return float(((free.max() if costs.together else free) + after).max()), turns


def _arrays(task: Task, in_two: bool) -> _Arrays:
    begin = np.array(task.costs.before or (0.0,) * task.num_places)
    return _Arrays(task, lanes_of(task, in_two), begin, np.array(task.limits))


def by_policies(task: Task, in_two: bool) -> Schedule | None:
    """The shortest schedule of all policies; None if memory is too short for any microbatch."""
    arrays = _arrays(task, in_two)
    best, turns = min(map(arrays.run, _tries(task, arrays.lanes)), key=lambda pair: pair[0])
    return schedule_of(task, arrays.lanes, _split(arrays, turns)) if best < np.inf else None


def improved(task: Task, schedule: Schedule, in_two: bool, actions: int, seed: int = 0) -> Schedule:
    """The shortest of many schedules near one, by the model of `list_schedule`; each try is drawn
    around the best so far. About so many actions are scheduled in all."""
    arrays, draw = _arrays(task, in_two), np.random.default_rng(seed)
    ranks = _ranks_of(schedule, arrays.lanes, task.microbatches)
    uncapped = np.full(task.num_places, np.iinfo(np.int64).max)
    step, best = np.inf, None
    for number in range(actions // ranks.size):
        noise = draw.normal(size=ranks.shape) * 2.0 ** draw.integers(-1, 5)
        share = 2.0 ** -draw.integers(0, 5)
        drawn = ranks + (noise * (draw.random(ranks.shape) < share) if number else 0.0)
        patience = (0.0, 0.5, 1.0, 4.0)[number % 4]
        attempt = _Try(caps=uncapped, ranks=drawn, alternate=False, patience=patience)
        seconds, turns = arrays.run(attempt)
        if seconds <= step and seconds < np.inf:
            if seconds < step:
                best = turns
            step, ranks = seconds, drawn
    return schedule if best is None else schedule_of(task, arrays.lanes, _split(arrays, best))


def _split(arrays: _Arrays, turns: Ints) -> list[list[int]]:
    """The turns of each place."""
    edges = arrays.lanes.at * arrays.task.microbatches
    return [turns[a:b].tolist() for a, b in pairwise(edges)]


def _tries(task: Task, lanes: Lanes) -> Iterator[_Try]:
    """All policies, without those that cannot differ."""
    several = len(task.places) > task.num_places
    for policy in _POLICIES:
        if several or policy.ties == "deep":
            yield _Try(
                caps=_caps(task, policy.cap),
                ranks=_ranks(task, lanes, policy.order, policy.ties),
                alternate=policy.alternate,
                patience=policy.patience,
            )


def _ranks(task: Task, lanes: Lanes, order: str, ties: str) -> Floats:
    """The ranks of a policy: by class, then by stage or microbatch."""
    stages, m = len(task.places), task.microbatches
    stage = (np.arange(len(lanes.place)) // lanes.width)[:, None]
    microbatch = np.arange(m)[None, :]
    ahead = np.where((lanes.kind == 0)[:, None], stages - stage, stage)  # stages that follow
    if ties == "deep":
        rank = ahead * m + microbatch
    else:
        group = microbatch // task.num_places
        rank = (group * (stages + 1) + (stages - ahead)) * m + microbatch
    classes = np.array([order.index("FIW"[kind]) for kind in lanes.kind])
    return rank + _CLASS * classes[:, None]


def _caps(task: Task, cap: str) -> Ints:
    """How many microbatches of its stages each place may have in flight: any number; half as many
    again as the first place of 1F1B; or as many as its own place in 1F1B."""
    p = task.num_places
    stages: Ints = np.bincount(np.array(task.places), minlength=p)
    if cap == "none":
        return np.full(p, np.iinfo(np.int64).max)
    if cap == "deep":
        return stages * p * 3 // 2
    return stages * (p - np.arange(p))


def _ranks_of(schedule: Schedule, lanes: Lanes, microbatches: int) -> Floats:
    """The place of every action in its order, the first if a body has none."""
    ranks = np.zeros((len(lanes.place), microbatches))
    kinds: dict[str, Sequence[int]] = {"F": (0,), "I": (1,), "W": (2,), "B": (1, 2)}
    for order in schedule.orders:
        for i, action in enumerate(order):
            for kind in kinds[action.body]:
                if kind < lanes.width:
                    ranks[action.stage * lanes.width + kind, action.microbatch] = i
    return ranks
