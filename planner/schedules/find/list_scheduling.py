"""List scheduling, compiled: whenever a place is free it runs the action that comes first by given
ranks among those that are ready and fit its memory.

A place may also wait for an action of a lower rank whose arrival is known, if that is less than a
`patience` of the time of what it would run meanwhile.

Memory cannot lock it up. Let `o` be the oldest microbatch that has forwards left at a place. A
forward starts only if it fits beside all that is held, and if what microbatches from `o` on hold then
leaves room for all the other forwards of `o`. Of all places, the oldest such microbatch is never
without room for long: all older ones have run forward everywhere, so their backwards come and free
what they hold.
"""

from __future__ import annotations

import numba
import numpy as np

from planner.schedules.find.task import Floats, Ints, Lanes

__all__ = ["list_schedule"]


@numba.njit(cache=True, nogil=True)
def list_schedule(
    lanes: Lanes,
    microbatches: int,
    begin: Floats,
    limits: Floats,
    windows: Ints,
    overlapped: bool,
    ranks: Floats,
    alternate: bool,
    patience: float,
    strict: bool,
    turned: bool,
) -> tuple[Floats, Ints]:
    """When each place is free after its last action, `inf` if it never is; and the lanes that the
    places run in turn, the places one after another.

    begin, limits, windows: by place: its first second, its bytes, and how many microbatches may have
    begun there that have not ended, or if `turned`, not begun their backward there. ranks: by (lane,
    microbatch), the lowest runs first. alternate: whether a backward comes before all forwards after
    a forward, and behind them after a backward. strict: whether a place waits for its action of the
    lowest rank whatever else it could run; it may then wait for ever.
    """
    num_lanes, num_places = len(lanes.place), len(begin)
    missing = np.empty((num_lanes, microbatches), np.int64)
    for lane in range(num_lanes):
        missing[lane, :] = lanes.needs[lane]
    arrived = np.zeros((num_lanes, microbatches))
    done = np.zeros(num_lanes, np.int64)
    free, wake, last = begin.copy(), begin.copy(), np.zeros(num_places, np.int64)
    # The bytes that each place holds: all, those of microbatches older than `oldest`, by microbatch.
    held, old, each = (
        np.zeros(num_places),
        np.zeros(num_places),
        np.zeros((num_places, microbatches)),
    )
    oldest = np.zeros(num_places, np.int64)
    channels = np.zeros(num_places * num_places)
    turns = np.empty(num_lanes * microbatches, np.int64)
    fill = lanes.at[:num_places] * microbatches
    for _ in range(4 * num_lanes * microbatches * (1 + num_places)):
        place = int(np.argmin(wake))
        now = wake[place]
        if now == np.inf:
            break
        lane, until = _next(
            lanes, place, now, done, missing, arrived, held[place], old[place], oldest[place],
            limits[place], windows[place], ranks, alternate and last[place] > 0,
            alternate and last[place] == 0, patience, strict, turned,
        )  # fmt: skip
        if lane < 0:
            wake[place] = until
            continue
        k, kind = done[lane], lanes.kind[lane]
        done[lane] += 1
        turns[fill[place]] = lane
        fill[place] += 1
        change = lanes.takes[lane] - lanes.gives[lane]
        held[place] += change
        each[place, k] += change
        if k < oldest[place]:
            old[place] += change
        if kind == 0:
            _age(lanes, place, done, oldest, old, each)
        if kind < 2:
            last[place] = kind
        end = now + lanes.seconds[lane]
        left = end
        for e in range(lanes.first[lane], lanes.first[lane + 1]):
            reader, arrival = lanes.readers[e], end
            if lanes.channel[e] >= 0:
                arrival = max(end, channels[lanes.channel[e]]) + lanes.delay[e]
                channels[lanes.channel[e]] = arrival
                left = max(left, arrival)
            arrived[reader, k] = max(arrived[reader, k], arrival)
            missing[reader, k] -= 1
            there = lanes.place[reader]
            if there != place and missing[reader, k] == 0:
                wake[there] = min(wake[there], max(free[there], arrived[reader, k]))
        free[place] = end if overlapped else left
        wake[place] = free[place]
    for lane in range(num_lanes):
        if done[lane] < microbatches:
            free[lanes.place[lane]] = np.inf
    return free, turns


@numba.njit(cache=True, nogil=True)
def _age(lanes: Lanes, place: int, done: Ints, oldest: Ints, old: Floats, each: Floats) -> None:
    """Counts the microbatches that have no forward left at a place as old."""
    least = each.shape[1]
    for j in range(lanes.at[place], lanes.at[place + 1]):
        if lanes.kind[lanes.lanes[j]] == 0:
            least = min(least, done[lanes.lanes[j]])
    while oldest[place] < least:
        old[place] += each[place, oldest[place]]
        oldest[place] += 1


@numba.njit(cache=True, nogil=True)
def _next(
    lanes: Lanes,
    place: int,
    now: float,
    done: Ints,
    missing: Ints,
    arrived: Floats,
    held: float,
    old: float,
    oldest: int,
    limit: float,
    window: int,
    ranks: Floats,
    late_backwards: bool,
    late_forwards: bool,
    patience: float,
    strict: bool,
    turned: bool,
) -> tuple[int, float]:
    """(the lane that a place runs now, -1 for none; if none, until when it waits)."""
    microbatches = ranks.shape[1]
    room, ended, most = 0.0, microbatches, 0  # for the other forwards of the oldest microbatch
    for j in range(lanes.at[place], lanes.at[place + 1]):
        lane = lanes.lanes[j]
        if lanes.kind[lane] == 0 and done[lane] == oldest:
            room += lanes.takes[lane]
        if lanes.kind[lane] == 1:
            ended, most = min(ended, done[lane]), max(most, done[lane])
    if turned:
        ended = most
    # Rounding of sums must not keep out what fits exactly.
    limit = limit * (1 + 1e-12)
    best, lowest, soon, sooner = -1, np.inf, np.inf, np.inf
    for turn in range(2):
        for j in range(lanes.at[place], lanes.at[place + 1]):
            lane = lanes.lanes[j]
            k, kind = done[lane], lanes.kind[lane]
            if k == microbatches or (kind > 0 and k == done[lane - 1]):
                continue
            if missing[lane, k] > 0 and not strict:
                continue
            if kind == 0 and not strict:
                takes = lanes.takes[lane]
                others = room if k > oldest else room - takes
                if held + takes > limit or held - old + takes + others > limit:
                    continue
                if k >= ended + window:
                    continue
            rank = ranks[lane, k]
            if (kind == 0 and late_forwards) or (kind == 1 and late_backwards):
                rank += 1e12
            if turn == 0:
                if arrived[lane, k] <= now or strict:
                    if rank < lowest:
                        best, lowest = lane, rank
                else:
                    soon = min(soon, arrived[lane, k])
            elif arrived[lane, k] > now and rank < lowest:
                sooner = min(sooner, arrived[lane, k])
        if strict:
            return _in_order(lanes, best, now, done, missing, arrived, held, limit)
        if best < 0:
            return -1, soon
    if sooner < now + patience * lanes.seconds[best]:
        return -1, sooner
    return best, now


@numba.njit(cache=True, nogil=True)
def _in_order(
    lanes: Lanes,
    lane: int,
    now: float,
    done: Ints,
    missing: Ints,
    arrived: Floats,
    held: float,
    limit: float,
) -> tuple[int, float]:
    """As `_next`, if only this lane may run."""
    if lane < 0 or missing[lane, done[lane]] > 0 or held + lanes.takes[lane] > limit:
        return -1, np.inf
    if arrived[lane, done[lane]] > now:
        return -1, arrived[lane, done[lane]]
    return lane, now
