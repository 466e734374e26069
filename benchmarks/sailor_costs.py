"""What runs of layers cost by the rules of the Sailor artefact (RULES.md of its facts), as chains for
the planner's search over stages.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sailor_profiles import FLOAT_BYTES, ZONE, End, Network, Profiles, rows

from planner.partition.chain import Chain, Run, Way

__all__ = ["Costs", "Kind", "all_costs", "chain_of", "kinds_of"]

#: Bytes a parameter by the rules: weights, gradients, Adam's two states, two copies.
BYTES_PER_PARAMETER = 24
#: Bytes beside tensors, without and with tensor parallelism.
RESERVED = (2e9, 3e9)
BUCKET = 500_000_000
#: Proportions of two kinds are tried in eighths of the replicas, of more in quarters.
_PARTS, _PARTS_OF_MORE = 8, 4
#: By so much slower than within a kind a link between kinds must be for proportions to matter.
_SLOWER = 1.05


@dataclass(frozen=True)
class Kind:
    """GPUs of one kind in one zone: how many there are, how many a node has, bytes of each."""

    name: str
    zone: str
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
        return End(self.kind.name, min(self.tp, self.kind.per_node), self.kind.zone)


def kinds_of(cluster: str) -> tuple[Kind, ...]:
    """The kinds of a cluster such as `32*A100-40;96*V100-16` or `16*A100-40@us-west1-b`."""
    known = {row["gpu"]: row for row in rows("gpus.csv")}
    kinds = []
    for part in cluster.split(";"):
        count, _, text = part.strip().partition("*")
        name, _, zone = text.partition("@")
        row = known[name]
        per_node, limit = int(row["gpus_per_node"]), int(row["referee_limit_bytes"])
        kinds.append(Kind(name, zone or ZONE, int(count), per_node, limit))
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


def _sums(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(itertools.accumulate(values, initial=0.0))


@dataclass
class Costs:
    """The costs of runs of layers by the rules, for one size of a microbatch and one number of
    replicas. A way is a tuple of cells: one for every kind of GPU that its replicas may be of. With
    `shares`, replicas of each kind in all stages, a replica sends to one of its own kind."""

    profiles: Profiles
    network: Network
    kinds: tuple[Kind, ...]
    microbatch: int
    replicas: int
    shares: tuple[int, ...]
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
        return max(
            (full * self._bucket(BUCKET, a, b) if full else 0.0)
            + (self._bucket(rest, a, b) if rest else 0.0)
            for a, b in self._neighbours(cells)
        )

    def _neighbours(self, cells: tuple[Cell, ...]) -> list[tuple[End, End]]:
        """The unlike pairs of neighbouring replicas, which stand in the order of kinds."""
        ends = [End(cell.kind.name, 1, cell.kind.zone) for cell in cells]
        alone = [share == 1 for share in self.shares if share] or [False] * len(ends)
        same = [(a, a) for a, one in zip(ends, alone, strict=True) if not one]
        return [*same, *itertools.pairwise(ends)]

    def _bucket_seconds(self, nbytes: float, source: End, target: End) -> float:
        each = self.network.seconds(nbytes / self.replicas, source, target)
        return 2 * (self.replicas - 1) * each

    def least_after(self) -> tuple[tuple[float, float], ...]:
        """(update, sync) of the first layers at the least: a ring at the best rate of a fit, of the
        layer with the most parameters. (A fit that is not positive where a message is small
        makes a run of a few parameters impossible that is possible as part of another.)"""
        update = min(cell.update for cells in self.ways for cell in cells)
        rates = [
            self.network.best_rate(BUCKET / self.replicas, pair)
            for pair in self._neighbours(self.ways[0] if self.shares else self._one_of_each())
        ]
        rate = max(min(rates) if self.shares else max(rates), 1.0)
        factor = 2 * (self.replicas - 1) / self.replicas / 4 / rate
        sizes = [b - a for a, b in itertools.pairwise(self.parameters)]
        most = itertools.accumulate(sizes, max, initial=0.0)
        return tuple((update if end else 0.0, factor * size) for end, size in enumerate(most))

    def _one_of_each(self) -> tuple[Cell, ...]:
        return tuple({cell.kind: cell for cells in self.ways for cell in cells}.values())

    def least_hops(self) -> list[tuple[float, float]]:
        """What each way sends and returns at the least. A mixture is as slow as its slowest."""
        cells = sorted({cell for cells in self.ways for cell in cells}, key=id)
        alone = {
            cell: min(
                self.network.seconds(size, cell.end, to.end)
                for size in {*self.outputs}
                for to in cells
                if to.kind == cell.kind or not self.shares
            )
            for cell in cells
        }
        return [(max(alone[cell] for cell in cells),) * 2 for cells in self.ways]

    def least(self) -> tuple[float, ...]:
        """Seconds of the first layers at the least."""
        layers = range(self.profiles.layers)
        single = [
            [max(cell.seconds[i + 1] - cell.seconds[i] for cell in cells) for i in layers]
            for cells in self.ways
        ]
        return _sums(map(min, zip(*single, strict=True)))

    def _transfer(self, before: int, after: int, cut: int) -> tuple[float, float]:
        """The output of the last layer before the cut goes forth; the rules let the output of the
        first layer after it come back."""
        return (
            self._sent(self.outputs[cut - 1], before, after),
            self._sent(self.outputs[cut], after, before),
        )

    def _sent_seconds(self, nbytes: float, source: int, target: int) -> float:
        sides = self.ways[source], self.ways[target]
        pairs = zip(*sides, strict=True) if self.shares else itertools.product(*sides)
        return max(self.network.seconds(nbytes, a.end, b.end) for a, b in pairs)


def chain_of(costs: Costs, batch: int) -> Chain:
    """The chain of some costs."""
    return Chain(
        units=costs.profiles.layers,
        ways=tuple(
            Way(
                name=str(number),
                devices=_devices(costs.kinds, way),
                replicas=costs.replicas,
                shares=costs.shares,
            )
            for number, way in enumerate(costs.ways)
        ),
        devices=tuple(kind.count for kind in costs.kinds),
        microbatches=batch // (costs.microbatch * costs.replicas),
        run=costs.run,
        after=costs.after,
        transfer=costs.transfer,
        first_sends=lambda stages: 1.0 if stages <= 3 else 2.0,
        last_returns=2.0,
        least=costs.least(),
        least_after=costs.least_after(),
        least_hops=costs.least_hops(),
    )


def _devices(kinds: tuple[Kind, ...], way: tuple[Cell, ...]) -> tuple[int, ...]:
    """GPUs of each kind that a replica takes: its share of a node that holds as many groups as
    fit into it."""
    return tuple(
        next((kind.per_node // (kind.per_node // cell.tp) for cell in way if cell.kind == kind), 0)
        for kind in kinds
    )


def all_costs(
    profiles: Profiles, network: Network, kinds: tuple[Kind, ...], batch: int
) -> Iterator[Costs]:
    """Every size of a microbatch and number of replicas: stages of one kind, or mixed in any
    proportion; and where links between kinds are slower than within them, all stages mixed in one
    proportion."""
    sizes = sorted({size for _, size, _ in profiles.times if batch % size == 0})
    most = sum(kind.count for kind in kinds)
    for size in sizes:
        of_kind = [cells_of(profiles, (kind,), size) for kind in kinds]
        some: list[list[tuple[Cell, ...]]] = [[(), *((c,) for c in cells)] for cells in of_kind]
        mixtures = [sum(choice, ()) for choice in itertools.product(*some)]
        for replicas in range(1, min(most, batch // size) + 1):
            if batch % (size * replicas):
                continue
            ways = tuple(
                way for way in mixtures if 1 <= len(way) <= min(replicas, _kinds_mixed(kinds))
            )
            if ways:
                yield Costs(profiles, network, kinds, size, replicas, (), ways)
            for shares in _proportions(profiles, network, kinds, replicas):
                chosen = [cells for cells, share in zip(of_kind, shares, strict=True) if share]
                ways = tuple(itertools.product(*chosen))
                if ways:
                    yield Costs(profiles, network, kinds, size, replicas, shares, ways)


def _kinds_mixed(kinds: tuple[Kind, ...]) -> int:
    """Of how many kinds a stage may be: more than two of many kinds would be too many ways."""
    return len(kinds) if len(kinds) <= 3 else 2


def _proportions(
    profiles: Profiles, network: Network, kinds: tuple[Kind, ...], replicas: int
) -> Iterator[tuple[int, ...]]:
    """Replicas of each kind, of two or more, if sending to another kind is slower than both."""
    nbytes = FLOAT_BYTES * profiles.held[min(profiles.held)][1].output
    ends = [End(kind.name, 1, kind.zone) for kind in kinds]
    own = {end: network.seconds(nbytes, end, end) for end in ends}
    if all(
        network.seconds(nbytes, a, b) <= _SLOWER * max(own[a], own[b])
        for a, b in itertools.permutations(ends, 2)
    ):
        return
    step = max(1, replicas // (_PARTS if len(kinds) == 2 else _PARTS_OF_MORE))
    counts = (range(0, min(replicas, kind.count) + 1, step) for kind in kinds)
    for shares in itertools.product(*counts):
        if sum(shares) == replicas and sum(share > 0 for share in shares) > 1:
            yield shares
