"""What runs of layers cost by the rules of the Sailor artefact (RULES.md of its facts), as chains for
the planner's search over stages.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sailor_profiles import FLOAT_BYTES, End, Network, Profiles, rows

from planner.partition.chain import Chain, Run, Way

__all__ = ["Costs", "Kind", "cells_of", "chain_of", "kinds_of"]

#: Bytes a parameter by the rules: weights, gradients, Adam's two states, two copies.
BYTES_PER_PARAMETER = 24
#: Bytes beside tensors, without and with tensor parallelism.
RESERVED = (2e9, 3e9)
BUCKET = 500_000_000


@dataclass(frozen=True)
class Kind:
    """GPUs of one kind: how many there are, how many a node has, bytes of each."""

    name: str
    count: int
    per_node: int
    limit: int


@dataclass(frozen=True)
class Cell:
    """What a tensor group of a kind of GPU takes, from the first layer to each: prefix sums."""

    kind: Kind
    tp: int
    seconds: tuple[float, ...]
    state: tuple[float, ...]
    kept: tuple[float, ...]
    update: float

    def most_in_flight(self, start: int, end: int) -> int:
        """Microbatches of which the kept bytes fit beside the state of the layers."""
        free = self.kind.limit - RESERVED[self.tp > 1] - (self.state[end] - self.state[start])
        return int(free / (self.kept[end] - self.kept[start]))

    @property
    def end(self) -> End:
        """The group as a side of a message."""
        return End(self.kind.name, min(self.tp, self.kind.per_node))


def kinds_of(cluster: str) -> tuple[Kind, ...]:
    """The kinds of a cluster such as `32*A100-40;96*V100-16`."""
    known = {row["gpu"]: row for row in rows("gpus.csv")}
    kinds = []
    for part in cluster.split(";"):
        count, _, name = part.partition("*")
        row = known[name]
        kinds.append(
            Kind(name, int(count), int(row["gpus_per_node"]), int(row["referee_limit_bytes"]))
        )
    return tuple(kinds)


def cells_of(profiles: Profiles, kinds: tuple[Kind, ...], microbatch: int) -> tuple[Cell, ...]:
    """The profiled groups that fit into a node, for one size of a microbatch."""
    cells = []
    for kind in kinds:
        for (gpu, size, tp), layers in profiles.times.items():
            if gpu == kind.name and size == microbatch and tp <= kind.per_node:
                held = profiles.held.get(tp)
                if held is None:
                    continue
                cells.append(
                    Cell(
                        kind,
                        tp,
                        _sums(layer.forward + layer.backward for layer in layers),
                        _sums(BYTES_PER_PARAMETER * layer.parameters for layer in held),
                        _sums(FLOAT_BYTES * microbatch * layer.kept for layer in held),
                        layers[0].update,
                    )
                )
    return tuple(cells)


def _sums(values: Iterator[float]) -> tuple[float, ...]:
    return tuple(itertools.accumulate(values, initial=0.0))


@dataclass
class Costs:
    """The costs of runs of layers, for one size of a microbatch and one number of replicas, by the
    rules. A way is a tuple of cells: one for every kind of GPU that its replicas may be of."""

    profiles: Profiles
    network: Network
    microbatch: int
    replicas: int
    ways: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        held = self.profiles.held[min(self.profiles.held)]
        self.parameters = _sums(float(FLOAT_BYTES * layer.parameters) for layer in held)
        self.outputs = [FLOAT_BYTES * self.microbatch * layer.output for layer in held]
        self.run = functools.cache(self._run)
        self.after = functools.cache(self._after)
        self.transfer = functools.cache(self._transfer)
        self._bucket = functools.cache(self._bucket_seconds)
        self._sent = functools.cache(self._sent_seconds)

    def _run(self, way: int, start: int, end: int) -> Run:
        cells = self.ways[way]
        if len(cells) == 1:
            cell = cells[0]
            return Run(cell.seconds[end] - cell.seconds[start], cell.most_in_flight(start, end))
        return Run(
            max(cell.seconds[end] - cell.seconds[start] for cell in cells),
            min(cell.most_in_flight(start, end) for cell in cells),
        )

    def _after(self, way: int, start: int, end: int) -> tuple[float, float]:
        cells = self.ways[way]
        return max(cell.update for cell in cells), self._sync(cells, start, end)

    def _sync(self, cells: tuple[Cell, ...], start: int, end: int) -> float:
        """A ring in buckets between neighbouring replicas, after the last microbatch."""
        if self.replicas == 1:
            return 0.0
        shards = min(4, *(cell.tp for cell in cells), 4)
        full, rest = divmod((self.parameters[end] - self.parameters[start]) / shards, BUCKET)
        ends = [End(cell.kind.name, 1) for cell in cells]
        pairs = [*zip(ends, ends, strict=True), *itertools.pairwise(ends)]
        return max(
            (full * self._bucket(BUCKET, a, b) if full else 0.0)
            + (self._bucket(rest, a, b) if rest else 0.0)
            for a, b in pairs
        )

    def _bucket_seconds(self, nbytes: float, source: End, target: End) -> float:
        each = self.network.seconds(nbytes / self.replicas, source, target)
        return 2 * (self.replicas - 1) * each

    def least_after(self) -> tuple[tuple[float, float], ...]:
        """(update, sync) of the first layers at the least: a ring at the best rate of any fit, of
        the layer with the most parameters. (A fit that is not positive where a message is small
        makes a run of a few parameters impossible that is possible as part of another.)"""
        update = min(cell.update for cells in self.ways for cell in cells)
        rate = max(self.network.best_rate(BUCKET / self.replicas), 1.0)
        factor = 2 * (self.replicas - 1) / self.replicas / 4 / rate
        sizes = [b - a for a, b in itertools.pairwise(self.parameters)]
        most = itertools.accumulate(sizes, max, initial=0.0)
        return tuple((update if end else 0.0, factor * size) for end, size in enumerate(most))

    def least_hops(self) -> list[tuple[float, float]]:
        """What each way sends and returns at the least. A mixture is as slow as its slowest."""
        pure = [number for number, cells in enumerate(self.ways) if len(cells) == 1]
        sizes = {*self.outputs}
        alone = {
            self.ways[way][0]: min(self._sent(size, way, to) for size in sizes for to in pure)
            for way in pure
        }
        return [(max(alone[cell] for cell in cells),) * 2 for cells in self.ways]

    def _transfer(self, before: int, after: int, cut: int) -> tuple[float, float]:
        """The output of the last layer before the cut goes forth; the rules let the output of the
        first layer after it come back."""
        return (
            self._sent(self.outputs[cut - 1], before, after),
            self._sent(self.outputs[cut], after, before),
        )

    def _sent_seconds(self, nbytes: float, source: int, target: int) -> float:
        ends = ((a.end, b.end) for a in self.ways[source] for b in self.ways[target])
        return max(self.network.seconds(nbytes, a, b) for a, b in ends)


def chain_of(
    profiles: Profiles,
    network: Network,
    kinds: tuple[Kind, ...],
    batch: int,
    replicas: int,
    microbatch: int,
    cells: tuple[Cell, ...],
) -> tuple[Chain, Costs]:
    """The chain for one size of a microbatch and one number of replicas."""
    of_kind = [[cell for cell in cells if cell.kind == kind] for kind in kinds]
    choices = itertools.product(*([None, *group] for group in of_kind))
    mixtures = [tuple(cell for cell in choice if cell is not None) for choice in choices]
    ways = tuple(way for way in mixtures if way and (len(way) == 1 or replicas > 1))
    costs = Costs(profiles, network, microbatch, replicas, ways)
    fastest = [
        min(cell.seconds[i + 1] - cell.seconds[i] for cell in cells) for i in range(profiles.layers)
    ]
    chain = Chain(
        units=profiles.layers,
        ways=tuple(
            Way(name=str(number), devices=_devices(kinds, way), replicas=replicas)
            for number, way in enumerate(ways)
        ),
        devices=tuple(kind.count for kind in kinds),
        microbatches=batch // (microbatch * replicas),
        run=costs.run,
        after=costs.after,
        transfer=costs.transfer,
        first_sends=lambda stages: 1.0 if stages <= 3 else 2.0,
        last_returns=2.0,
        least=_sums(iter(fastest)),
        least_after=costs.least_after(),
        least_hops=costs.least_hops(),
    )
    return chain, costs


def _devices(kinds: tuple[Kind, ...], way: tuple[Cell, ...]) -> tuple[int, ...]:
    """GPUs of each kind that a replica takes: its share of a node that holds as many groups as
    fit into it."""
    return tuple(
        next((kind.per_node // (kind.per_node // cell.tp) for cell in way if cell.kind == kind), 0)
        for kind in kinds
    )
