"""Rings and chains over direct links: how many NCCL-like rings a set of devices in a hybrid mesh
can run at once.

A ring uses one brick per hop in one direction, so an undirected Hamiltonian cycle carries two
rings, one each way. The number of rings is twice the most cycles that can be packed into the
bricks, found by exact search for at most eight devices (more: 0, so they are costed as a chain).
"""

from __future__ import annotations

from functools import lru_cache

from cost_models.machine import Intra

__all__ = ["num_chains", "num_rings"]

Bricks = tuple[tuple[int, ...], ...]
#: The search is exponential; no machine that we know links more than eight devices directly.
_LARGEST = 8


def _matrix(intra: Intra, members: tuple[int, ...]) -> Bricks:
    return tuple(tuple(intra.bricks(a, b) if a != b else 0 for b in members) for a in members)


def num_rings(intra: Intra, members: tuple[int, ...]) -> int:
    """The number of directed rings over local devices `members` that use no brick twice in a
    direction; 0 if there is no cycle.

    Two devices have as many rings as bricks. Agrees with the bus bandwidths of vTrain's V100 table:
    1, 2, 4, 0, 2, 4, 6 rings of 22.5 GB/s for the first 2..8 devices of the hybrid cube mesh.
    """
    if len(members) == 2:
        return intra.bricks(*members)
    if len(members) > _LARGEST:
        return 0
    return 2 * _packed_cycles(_matrix(intra, members))


def num_chains(intra: Intra, members: tuple[int, ...]) -> int:
    """1 if the direct links connect `members` (a spanning tree of one brick per link), else 0."""
    bricks = _matrix(intra, members)
    reached, frontier = {0}, [0]
    while frontier:
        at = frontier.pop()
        for other, count in enumerate(bricks[at]):
            if count and other not in reached:
                reached.add(other)
                frontier.append(other)
    return int(len(reached) == len(members))


@lru_cache(maxsize=4096)
def _packed_cycles(bricks: Bricks) -> int:
    """The most Hamiltonian cycles that fit into `bricks` together."""
    most = min(sum(row) for row in bricks) // 2
    cycles = _cycles(bricks)
    return _pack(bricks, cycles, 0, most)


def _cycles(bricks: Bricks) -> list[tuple[int, ...]]:
    """All Hamiltonian cycles, each once, from device 0."""
    found: list[tuple[int, ...]] = []

    def extend(path: tuple[int, ...]) -> None:
        if len(path) == len(bricks):
            if bricks[path[-1]][0] and path[1] < path[-1]:
                found.append(path)
            return
        for other, count in enumerate(bricks[path[-1]]):
            if count and other not in path:
                extend((*path, other))

    extend((0,))
    return found


def _pack(bricks: Bricks, cycles: list[tuple[int, ...]], first: int, most: int) -> int:
    """The most of `cycles[first:]` (each any number of times) that fit, at most `most`: depth
    first with early exit."""
    best = 0
    for index in range(first, len(cycles)):
        if best == most:
            break
        left = _take(bricks, cycles[index])
        if left is not None:
            best = max(best, 1 + _pack(left, cycles, index, most - 1))
    return best


def _take(bricks: Bricks, cycle: tuple[int, ...]) -> Bricks | None:
    left = [list(row) for row in bricks]
    for a, b in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
        if not left[a][b]:
            return None
        left[a][b] -= 1
        left[b][a] -= 1
    return tuple(tuple(row) for row in left)
