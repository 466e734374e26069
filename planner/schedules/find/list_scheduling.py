"""List scheduling, compiled: whenever a place is free it runs the action that comes first by given
ranks among those that are ready and fit its memory.

A place may also wait for an action of a lower rank whose arrival is known, if that is less than a
`patience` of the time of what it would run meanwhile.

Memory cannot lock it up: a forward starts only if the forwards of the oldest microbatch that has any
left at the place fit too. All older ones have run forward, so their backwards come and free what
they hold; nothing else that is held was taken from the room of the oldest.
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
    caps: Ints,
    overlapped: bool,
    ranks: Floats,
    alternate: bool,
    patience: float,
) -> tuple[Floats, Ints]:
    """When each place is free after its last action, `inf` if it never is; and the lanes that the
    places run in turn, the places one after another.

    begin, limits, caps: by place: its first second, its bytes, and how many microbatches of its
    stages may be in flight. ranks: by (lane, microbatch), the lowest runs first. alternate: whether
    a backward comes before all forwards after a forward, and behind them after a backward.
    """
    num_lanes, num_places = len(lanes.place), len(begin)
    missing = np.empty((num_lanes, microbatches), np.int64)
    for lane in range(num_lanes):
        missing[lane, :] = lanes.needs[lane]
    arrived = np.zeros((num_lanes, microbatches))
    done = np.zeros(num_lanes, np.int64)
    free, wake, held = begin.copy(), begin.copy(), np.zeros(num_places)
    flying, last = np.zeros(num_places, np.int64), np.zeros(num_places, np.int64)
    channels = np.zeros(num_places * num_places)
    turns = np.empty(num_lanes * microbatches, np.int64)
    fill = lanes.at[:num_places] * microbatches
    for _ in range(4 * num_lanes * microbatches * (1 + num_places)):
        place = int(np.argmin(wake))
        now = wake[place]
        if now == np.inf:
            break
        lane, until = _next(
            lanes, place, now, done, missing, arrived, held[place], flying[place], limits[place],
            caps[place], ranks, alternate and last[place] > 0, alternate and last[place] == 0,
            patience,
        )  # fmt: skip
        if lane < 0:
            wake[place] = until
            continue
        k, kind = done[lane], lanes.kind[lane]
        done[lane] += 1
        turns[fill[place]] = lane
        fill[place] += 1
        held[place] += lanes.takes[lane] - lanes.gives[lane]
        flying[place] += 1 if kind == 0 else -1 if kind == 1 else 0
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
def _next(
    lanes: Lanes,
    place: int,
    now: float,
    done: Ints,
    missing: Ints,
    arrived: Floats,
    held: float,
    flying: int,
    limit: float,
    cap: int,
    ranks: Floats,
    late_backwards: bool,
    late_forwards: bool,
    patience: float,
) -> tuple[int, float]:
    """(the lane that a place runs now, -1 for none; if none, until when it waits)."""
    microbatches = ranks.shape[1]
    oldest, room, stages = microbatches, 0.0, 0
    for j in range(lanes.at[place], lanes.at[place + 1]):
        lane = lanes.lanes[j]
        if lanes.kind[lane] == 0 and done[lane] < oldest:
            oldest, room, stages = done[lane], 0.0, 0
        if lanes.kind[lane] == 0 and done[lane] == oldest:
            room += lanes.takes[lane]
            stages += 1
    best, lowest, soon, sooner = -1, np.inf, np.inf, np.inf
    for turn in range(2):
        for j in range(lanes.at[place], lanes.at[place + 1]):
            lane = lanes.lanes[j]
            k, kind = done[lane], lanes.kind[lane]
            if k == microbatches or missing[lane, k] > 0:
                continue
            if kind == 0:
                own = k == oldest
                more = room if own else room + lanes.takes[lane]
                count = stages if own else stages + 1
                # Rounding of sums must not keep out what fits exactly.
                if held + more > limit * (1 + 1e-12) or flying + count > cap:
                    continue
            rank = ranks[lane, k]
            if (kind == 0 and late_forwards) or (kind == 1 and late_backwards):
                rank += 1e12
            if turn == 0:
                if arrived[lane, k] <= now:
                    if rank < lowest:
                        best, lowest = lane, rank
                else:
                    soon = min(soon, arrived[lane, k])
            elif arrived[lane, k] > now and rank < lowest:
                sooner = min(sooner, arrived[lane, k])
        if best < 0:
            return -1, soon
    if sooner < now + patience * lanes.seconds[best]:
        return -1, sooner
    return best, now
