"""Splits of a chain into stages, against every split there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from cost_models.errors import BadValue
from planner.partition.chain import Chain, Run, Stage, Way, in_flight_1f1b, price
from planner.partition.split import best_of, lower_bound, split_chain


def random_chain(seed: int, kinds: int) -> Chain:
    """A chain of up to six units, whose ways are one or two sizes of a group of each kind and a
    mixture of kinds; every other chain has little memory."""
    draw = random.Random(seed)
    units, microbatches = draw.randint(1, 6), draw.choice([1, 2, 3, 8, 40])
    devices = tuple(draw.randint(2, 7) for _ in range(kinds))
    replicas = draw.choice([1, 1, 2])
    sizes = [(kind, size) for kind in range(kinds) for size in (1, 2)[: draw.randint(1, 2)]]
    pure = [tuple(size if k == kind else 0 for k in range(kinds)) for kind, size in sizes]
    mixed = [(1,) * kinds] if kinds > 1 and replicas > 1 else []
    ways = [Way(name=str(d), devices=d, replicas=replicas) for d in [*pure, *mixed]]
    if draw.random() < 0.3 and mixed and kinds == 2:
        ways[-1] = Way(name="one of each", devices=(1, 1), replicas=2, shares=(1, 1))
    seconds = [[draw.uniform(1, 5) / (1 + sum(d)) for _ in range(units)] for d in pure]
    seconds += [[max(s) for s in zip(*seconds, strict=True)] for _ in mixed]
    state = [draw.uniform(1, 4) for _ in range(units)]
    kept = [draw.uniform(0.2, 1) for _ in range(units)]
    room = draw.choice([1e9, sum(state) * draw.uniform(0.4, 1)])
    hops = [[draw.uniform(0, 1) for _ in range(units + 1)] for _ in ways]
    updates = [draw.uniform(0, 2) for _ in ways]

    def run(way: int, start: int, end: int) -> Run | None:
        fits = int((room - sum(state[start:end])) / sum(kept[start:end]))
        return None if fits < 0 else Run(sum(seconds[way][start:end]), fits)

    return Chain(
        units=units,
        ways=tuple(ways),
        devices=devices,
        microbatches=microbatches,
        run=run,
        after=lambda way, start, end: (updates[way], 0.3 * sum(state[start:end]) * (replicas - 1)),
        transfer=lambda before, after, cut: (hops[before][cut], hops[after][cut] / 2),
        in_flight=in_flight_1f1b(microbatches),
        first_sends=lambda stages: 1.0 if stages <= 2 else 1.5,
        last_returns=2.0,
        least_hops=[(min(hop[1:units] or [0]), min(hop[1:units] or [0]) / 2) for hop in hops],
        least=[sum(min(s[u] for s in seconds) for u in range(end)) for end in range(units + 1)],
    )


def every_split(chain: Chain) -> Iterator[tuple[Stage, ...]]:
    """All splits that fit the memory and the devices and in which one stage at most mixes kinds."""
    for count in range(chain.units):
        for cuts in itertools.combinations(range(1, chain.units), count):
            ends = [0, *cuts, chain.units]
            for ways in itertools.product(range(len(chain.ways)), repeat=count + 1):
                spans = [*itertools.pairwise(ends)]
                runs = [chain.run(way, *span) for way, span in zip(ways, spans, strict=True)]
                held = [chain.in_flight(count + 1 - i) for i in range(count + 1)]
                fit = all(r and r.most_in_flight >= h for r, h in zip(runs, held, strict=True))
                if fit and enough(chain, ways):
                    yield tuple(Stage(*s, w, ()) for s, w in zip(spans, ways, strict=True))


def enough(chain: Chain, ways: tuple[int, ...]) -> bool:
    chosen = [chain.ways[way] for way in ways]
    mixed = [way for way in chosen if way.mixes]
    left = list(chain.devices)
    for way in chosen:
        for kind, size in enumerate(way.devices):
            left[kind] -= 0 if way.mixes else size * way.split[kind]
    if min(left) < 0 or len(mixed) > 1:
        return False
    return all(sum(free // 1 for free in left) >= way.replicas for way in mixed)


@pytest.mark.parametrize(
    ("seed", "kinds"),
    [*itertools.product(range(30), (1, 2)), (1, 3), (2, 3), (5, 3), (7, 5), (16, 5)],
)
def test_no_split_is_faster(seed: int, kinds: int) -> None:
    chain = random_chain(seed, kinds)
    least = min((price(chain, stages) for stages in every_split(chain)), default=None)
    split = split_chain(chain)
    if least is None:
        assert split is None
    else:
        assert split is not None
        assert split.seconds == pytest.approx(least, rel=1e-12)
        assert price(chain, split.stages) == pytest.approx(least, rel=1e-12)
        assert split.bound == split.seconds
        assert lower_bound(chain) <= least * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(0, 24, 4))
def test_the_best_of_several_chains(seed: int) -> None:
    chains = [random_chain(seed + i, 1 + i % 2) for i in range(4)]
    alone = [split_chain(chain) for chain in chains]
    least = min((split.seconds for split in alone if split), default=None)
    best = best_of(chains)
    if least is None:
        assert best is None
    else:
        assert best is not None
        assert best[1].seconds == pytest.approx(least, rel=1e-12)
        assert price(chains[best[0]], best[1].stages) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("seed", range(0, 30, 3))
def test_with_few_labels_the_bound_is_no_more_than_the_least_seconds(seed: int) -> None:
    chain = random_chain(seed, 2)
    least, split = split_chain(chain), split_chain(chain, most_labels=1)
    if split is not None:
        assert least is not None
        assert split.bound <= least.seconds * (1 + 1e-9) <= split.seconds * (1 + 2e-9)
        assert price(chain, split.stages) == pytest.approx(split.seconds, rel=1e-12)


def test_replicas_of_a_mixed_stage_are_those_there_are_devices_for() -> None:
    """Three replicas of two kinds with two devices of each: no stage of one kind fits."""
    ways = (
        Way(name="a", devices=(1, 0), replicas=3),
        Way(name="b", devices=(0, 1), replicas=3),
        Way(name="a or b", devices=(1, 1), replicas=3),
    )
    chain = Chain(
        units=2,
        ways=ways,
        devices=(2, 2),
        microbatches=4,
        run=lambda way, start, end: Run(float(end - start)),
        least=(0.0, 1.0, 2.0),
    )
    split = split_chain(chain)
    assert split is not None
    assert [(stage.way, stage.replicas) for stage in split.stages] == [(2, (2, 1))]
    assert split.seconds == 2 + 3 * 2


def test_the_first_stage_takes_the_way_that_holds_less() -> None:
    """Two ways with the same devices, one slower that keeps half as much: under 1F1B only the first
    of two stages, with two microbatches in flight, needs it."""
    ways = (Way(name="keeps", devices=(1,)), Way(name="runs again", devices=(1,)))

    def run(way: int, start: int, end: int) -> Run:
        units = end - start
        return Run(units * (1.0, 1.25)[way], int((8 - units) / (units * (2.0, 1.0)[way])))

    chain = Chain(
        units=4,
        ways=ways,
        devices=(2,),
        microbatches=8,
        run=run,
        in_flight=in_flight_1f1b(8),
        least=(0.0, 1.0, 2.0, 3.0, 4.0),
    )
    split = split_chain(chain)
    assert split is not None
    assert [(s.start, s.end, ways[s.way].name) for s in split.stages] == [
        (0, 2, "runs again"),
        (2, 4, "keeps"),
    ]
    assert split.seconds == 2.5 + 2 + 7 * 2.5


def test_a_chain_that_says_nothing_is_refused() -> None:
    with pytest.raises(BadValue, match="0 replicas"):
        Way(name="none", devices=(1,), replicas=0)
    with pytest.raises(BadValue, match="add up"):
        Way(name="half", devices=(1, 1), replicas=3, shares=(1, 1))
    with pytest.raises(BadValue, match="each kind"):
        Chain(
            units=1,
            ways=(Way(name="a", devices=(1,)),),
            devices=(1, 2),
            microbatches=1,
            run=lambda way, start, end: Run(1.0),
            least=(0.0, 1.0),
        )
