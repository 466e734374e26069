"""A lower bound on the step of every schedule of a task, whatever its order, whole or in two.

With f, i, w the seconds of forward and of the two halves of backward (i no more than the whole, and
both halves together no more than it), and a microbatch k in 0 .. m-1:

    head[s]    earliest start of F at stage s             longest path of forwards to it
    round[s,b] from the start of F at s to the end of I at stage b, longest path; round[s] at s
    tail[s]    from the end of I at s to the step's end   longest path of I, W and what runs after

    a path        head[s] + round[s] + tail[s], and m - 1 more F of stage s before it, or I after it
    a place       least head + all work of its stages + after
    up to its I   least head + all F and I of its stages + least tail
    in flight     a place keeps K for a microbatch that has run F at its stages s .. b, until I at b, and
                  kept[s] for each that follows: k + c starts at s after I of k at b, c the first with
                  K + c * kept[s] > limit
    held          limit * (step - head - after) >= m * (kept * round + kept after I * w)

A place also waits, however its actions are ordered: before its first I, for which all forwards that
fit its memory may be too short; and between its last F and the I of that microbatch, for which the
backwards of all else that it holds may be. If not all microbatches fit, the last F comes after the
first I, and the two waits add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.schedules.find.task import Floats, Task

__all__ = ["least_step"]


def least_step(task: Task) -> float:
    """Seconds that no schedule of the task is below."""
    path = _Paths(task)
    places = (_of_place(task, path, place) for place in range(task.num_places))
    return max(*map(path.of_stage, range(len(task.places))), *places)


class _Paths:
    """The longest paths of a task, with seconds by stage."""

    def __init__(self, task: Task) -> None:
        self.task, stages, costs = task, task.costs.stages, task.costs
        self.forward = np.array([s.forward for s in stages])
        backward = np.array([s.backward for s in stages])
        self.input, self.weight = backward, np.zeros(len(stages))
        if task.in_two:
            self.input = np.minimum(backward, [s.input for s in stages])
            self.weight = np.minimum([s.weight for s in stages], backward - self.input)
        self.before = np.array(costs.before or (0.0,) * task.num_places)
        after = np.array(costs.after or (0.0,) * task.num_places)
        self.after = np.full_like(after, after.max()) if costs.together else after
        self.sends = np.zeros((2, len(stages))) if costs.overlapped else _sends(task)
        self.head, self.tail = self._head(), self._tail()
        self.rounds = np.array([self._rounds(s) for s in range(len(stages))])
        self.round = self.rounds.diagonal()

    def _head(self) -> Floats:
        task = self.task
        head: Floats = self.before[list(task.places)].copy()
        for u, v in sorted(task.arrows.forward):
            head[v] = max(head[v], head[u] + self.forward[u] + task.transfer(u, v))
        return head

    def _tail(self) -> Floats:
        task = self.task
        tail: Floats = self.weight + self.after[list(task.places)]
        for v, u in sorted(task.arrows.backward, key=lambda pair: pair[1]):
            tail[v] = max(tail[v], task.transfer(v, u) + self.input[u] + tail[u])
        return tail

    def _rounds(self, stage: int) -> Floats:
        """From the start of F at a stage to the end of I at each stage that it leads to."""
        task = self.task
        at: Floats = np.full(len(task.places), -np.inf)  # end of F
        at[stage] = self.forward[stage]
        for u, v in sorted(task.arrows.forward):
            at[v] = max(at[v], at[u] + task.transfer(u, v) + self.forward[v])
        back: Floats = at + self.input  # end of I
        for v, u in sorted(task.arrows.backward, reverse=True):
            back[u] = max(back[u], back[v] + task.transfer(v, u) + self.input[u])
        return back

    def of_stage(self, s: int) -> float:
        """The bound of the path through a stage, and of its microbatches in flight."""
        each = max(self.forward[s] + self.sends[0, s], self.input[s] + self.sends[1, s])
        path = self.head[s] + self.rounds[s, s] + self.tail[s]
        return float(path + max((self.task.microbatches - 1) * each, self._in_flight(s)))

    def _in_flight(self, s: int) -> float:
        """Seconds from the first F of a stage to its last, at least, for want of memory."""
        task = self.task
        limit, each = _limit(task, task.places[s]), task.kept[s].after_forward
        most, held = 0.0, 0.0
        for b in (b for b in range(s, len(task.places)) if task.places[b] == task.places[s]):
            held += task.kept[b].after_forward * (self.rounds[s, b] > 0)
            if held + each * task.microbatches > limit and self.rounds[s, b] > 0:
                hop = 1 + int(max(0.0, limit - held) / each)
                most = max(most, (task.microbatches - 1) // hop * self.rounds[s, b])
        return most


def _of_place(task: Task, path: _Paths, place: int) -> float:
    """The bound of the work of a place and of its waits, and of what it holds."""
    stages, m = [s for s, at in enumerate(task.places) if at == place], task.microbatches
    head = path.head[stages].min()
    to_input = (path.forward + path.input + path.sends.sum(0))[stages].sum()
    weights = path.weight[stages].sum()
    busy = head + m * (to_input + weights) + path.after[place]
    tailed = head + m * to_input + min(path.tail[s] - path.sends[1, s] for s in stages)
    whole = max(
        busy + _waits(task, path, stages, with_weights=True),
        tailed + _waits(task, path, stages, with_weights=False),
    )
    return float(max(whole, _held(task, path, stages, head + path.after[place])))


def _waits(task: Task, path: _Paths, stages: Sequence[int], with_weights: bool) -> float:
    """Seconds in which a place neither runs F nor I, nor W if they count, before its last I."""
    m, limit = task.microbatches, _limit(task, task.places[stages[0]])
    forward, backward = path.forward + path.sends[0], path.input + path.sends[1]
    kept = np.array([k.after_forward for k in task.kept])
    stashed = np.array([k.after_input if task.in_two else 0.0 for k in task.kept])
    start = path.head[stages].min()
    first_input = min(path.head[s] + path.round[s] - path.input[s] - start for s in stages)
    first = first_input - _most([(forward[s], kept[s]) for s in stages], m, limit)
    weights = path.weight * with_weights
    work = [((backward + weights)[s], kept[s]) for s in stages]
    work += [(weights[s], stashed[s]) for s in stages]
    last = min(
        path.round[s] - forward[s] - path.input[s] - _most(work, m, limit - kept[s]) for s in stages
    )
    both = (max(0.0, first), max(0.0, last))
    return float(sum(both) if m * kept[stages].sum() > limit else max(both))


def _most(work: Sequence[tuple[float, float]], times: int, room: float) -> float:
    """The most seconds of work in a room: of each (seconds, bytes) up to so many times; parts count
    unless there is only one kind."""
    if len(work) == 1 and work[0][1] > 0:
        fit = min(times, int(room / work[0][1]) if room < np.inf else times)
        return fit * work[0][0]
    seconds = 0.0
    for each, nbytes in sorted(work, key=lambda w: w[1] / w[0] if w[0] else np.inf):
        part = min(float(times), room / nbytes) if nbytes > 0 else float(times)
        seconds += max(0.0, part) * each
        room -= max(0.0, part) * nbytes
    return seconds


def _held(task: Task, path: _Paths, stages: Sequence[int], fixed: float) -> float:
    """The bound of bytes times seconds."""
    limit = _limit(task, task.places[stages[0]])
    if not 0 < limit < np.inf:
        return 0.0
    kept = task.kept  # a whole backward keeps what forward left until it ends
    area = sum(
        kept[s].after_forward * path.round[s]
        + min(kept[s].after_input, kept[s].after_forward) * path.weight[s] * task.in_two
        for s in stages
    )
    return float(fixed + task.microbatches * area / limit)


def _limit(task: Task, place: int) -> float:
    """The limit of a place, with room for rounding where its bytes are added up."""
    return task.limits[place] * (1 + 1e-9)


def _sends(task: Task) -> Floats:
    """Seconds that F and I of every stage block their place while they send."""
    channels: dict[tuple[int, int, int], float] = {}
    for k, pairs in enumerate((task.arrows.forward, task.arrows.backward)):
        for u, v in pairs:
            key = (k, u, task.places[v])
            channels[key] = channels.get(key, 0.0) + task.transfer(u, v)
    out = np.zeros((2, len(task.places)))
    for (k, u, _), seconds in channels.items():
        out[k, u] = max(out[k, u], seconds)
    return out
