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
    """order: F, I and W, the most urgent first. ties: of several stages of a place, that with the
    fewest behind it (deep), that with the most, or in rounds of microbatches as in interleaved
    schedules. The rest as in `list_schedule`."""

    order: str
    ties: str
    window: str
    patience: float
    alternate: bool = False
    turned: bool = False


#: Of 336 policies on 220 drawn tasks (2 to 8 places, 2 to 33 microbatches, one or two stages a
#: place, various limits) each of these was added for making the best of those above it shorter: by
#: 2.5 % of the best of all with the first alone, by 0.015 % with all of these.
_POLICIES = (
    _Policy("IFW", "deep", "whole", 0.0, turned=True),
    _Policy("FIW", "rounds", "whole + 1", 0.0),
    _Policy("IFW", "shallow", "whole + 1", 0.5),
    _Policy("FIW", "deep", "whole", 0.0, turned=True),
    _Policy("IFW", "rounds", "whole", 0.0, alternate=True, turned=True),
    _Policy("FIW", "deep", "whole", 1.0, turned=True),
    _Policy("IFW", "rounds", "whole", 0.0, turned=True),
    _Policy("IFW", "deep", "whole", 0.5, turned=True),
    _Policy("IFW", "deep", "deep", 0.0),
    _Policy("FIW", "deep", "whole", 0.5, turned=True),
    _Policy("IFW", "shallow", "whole", 0.5, alternate=True, turned=True),
    _Policy("IWF", "deep", "deep", 0.5),
    _Policy("IFW", "deep", "whole", 1.0, turned=True),
    _Policy("IFW", "shallow", "whole + 1", 0.0),
    _Policy("FIW", "shallow", "whole", 0.0, turned=True),
    _Policy("IFW", "deep", "whole + 1", 0.0, alternate=True, turned=True),
    _Policy("IFW", "rounds", "deep", 0.0, alternate=True),
    _Policy("IFW", "rounds", "whole + 1", 0.5, alternate=True),
    _Policy("FIW", "rounds", "whole + 1", 0.0, turned=True),
    _Policy("FIW", "deep", "whole + 1", 0.0, turned=True),
    _Policy("IFW", "shallow", "whole", 0.0, turned=True),
    _Policy("IFW", "deep", "deep", 0.5, alternate=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """What `list_schedule` is called with beside the task."""

    windows: Ints
    ranks: Floats
    alternate: bool
    patience: float
    strict: bool = False
    turned: bool = False


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
            self.lanes, self.task.microbatches, self.begin, self.limits, attempt.windows,
            costs.overlapped, attempt.ranks, attempt.alternate, attempt.patience, attempt.strict,
            attempt.turned,
        )  # fmt: skip
        after = np.array(costs.after or (0.0,) * len(free))
        return float(((free.max() if costs.together else free) + after).max()), turns


def _arrays(task: Task, in_two: bool) -> _Arrays:
    begin = np.array(task.costs.before or (0.0,) * task.num_places)
    return _Arrays(task, lanes_of(task, in_two), begin, np.array(task.limits))


def by_policies(task: Task, in_two: bool, few: int) -> list[Schedule]:
    """The few shortest schedules of all policies, of unlike step times, the shortest first."""
    arrays = _arrays(task, in_two)
    by_step = dict(map(arrays.run, _tries(task, arrays.lanes)))
    return [
        schedule_of(task, arrays.lanes, _split(arrays, by_step[step]))
        for step in sorted(by_step)[:few]
        if step < np.inf
    ]


def improved(task: Task, schedule: Schedule, in_two: bool, actions: int, seed: int = 0) -> Schedule:
    """The shortest of many schedules near one, by the model of `list_schedule`; each try is drawn
    around the best so far. About so many actions are scheduled in all."""
    arrays, draw = _arrays(task, in_two), np.random.default_rng(seed)
    ranks = _ranks_of(schedule, arrays.lanes, task.microbatches)
    step, best, windows = np.inf, None, _windows(task, "none")
    for number in range(actions // ranks.size):
        drawn = ranks + (_noise(draw, ranks.shape) if number else 0.0)
        attempt = _Try(
            windows=windows,
            ranks=drawn,
            alternate=False,
            patience=(0.0, 0.5, 1.0, 4.0)[number % 4],
            strict=bool(number // 4 % 2),
        )
        seconds, turns = arrays.run(attempt)
        if seconds <= step and seconds < np.inf:
            if seconds < step:
                best = turns
            step, ranks = seconds, _places_of(arrays, turns)
    return schedule if best is None else schedule_of(task, arrays.lanes, _split(arrays, best))


def _noise(draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Changes of ranks: of all or of few actions, by half a place to a dozen."""
    noise: Floats = draw.normal(size=shape) * 2.0 ** draw.integers(-1, 5)
    share = 2.0 ** -draw.integers(0, 1 + int(np.log2(np.prod(shape))))
    return noise * (draw.random(shape) < share)


def _places_of(arrays: _Arrays, turns: Ints) -> Floats:
    """The place of every action in its order, by (lane, microbatch)."""
    ranks: Floats = np.empty((len(arrays.lanes.place), arrays.task.microbatches))
    for row in _split(arrays, turns):
        array = np.array(row)
        for lane in np.unique(array):
            ranks[lane] = np.flatnonzero(array == lane)
    return ranks


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
                windows=_windows(task, policy.window),
                ranks=_ranks(task, lanes, policy.order, policy.ties),
                alternate=policy.alternate,
                patience=policy.patience,
                turned=policy.turned,
            )


def _ranks(task: Task, lanes: Lanes, order: str, ties: str) -> Floats:
    """The ranks of a policy: by class, then by stage or microbatch."""
    stages, m = len(task.places), task.microbatches
    stage = (np.arange(len(lanes.place)) // lanes.width)[:, None]
    microbatch = np.arange(m)[None, :]
    ahead = np.where((lanes.kind == 0)[:, None], stages - stage, stage)  # stages that follow
    if ties == "deep":
        rank = ahead * m + microbatch
    elif ties == "shallow":
        rank = (stages - ahead) * m + microbatch
    else:
        group = microbatch // task.num_places
        rank = (group * (stages + 1) + (stages - ahead)) * m + microbatch
    classes = np.array([order.index("FIW"[kind]) for kind in lanes.kind])
    return rank + _CLASS * classes[:, None]


def _windows(task: Task, window: str) -> Ints:
    """How many microbatches may have begun and not ended at each place: any number; half as many again
    as at the first place of 1F1B; as many as fit whole; or one more than fit."""
    p = task.num_places
    if window == "none":
        return np.full(p, task.microbatches)
    if window == "deep":
        return np.full(p, p * 3 // 2)
    whole = np.zeros(p)
    for stage, place in enumerate(task.places):
        whole[place] += task.most(stage)
    limits = np.minimum(np.array(task.limits), whole * task.microbatches)
    fit: Ints = (limits / np.maximum(whole, 1e-300) * (1 + 1e-9)).astype(np.int64)
    return np.maximum(fit, 1) + (window == "whole + 1")


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
