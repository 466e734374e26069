"""Splits of a graph into contiguous parts, against every split there is."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from cost_models.errors import BadValue
from planner.partition.dag import Dag, Device, Net, Part, load_of
from planner.partition.ideals import all_ideals, prefixes
from planner.partition.split_dag import split_dag


def random_dag(seed: int) -> Dag:
    """Up to seven units with branches, two kinds of devices of which the second pays nothing for
    what it sends, nets from unit to readers, and now and then little memory or a unit that the
    first kind cannot run."""
    draw = random.Random(seed)
    units = draw.randint(1, 7)
    before = [
        frozenset(earlier for earlier in range(unit) if draw.random() < 0.35)
        for unit in range(units)
    ]
    readers = [{later for later in range(units) if unit in before[later]} for unit in range(units)]
    nbytes = tuple(draw.uniform(0, 2) for _ in range(units))
    seconds = [draw.choice([0.0, draw.uniform(0, 4)]) for _ in range(units)]
    slow = tuple(second * draw.uniform(2, 5) for second in seconds)
    if draw.random() < 0.3:
        seconds[draw.randrange(units)] = float("inf")
    limit = draw.choice([1e9, 0.7 * sum(nbytes)])
    return Dag(
        before=tuple(before),
        nets=tuple(
            Net(frozenset({unit, *readers[unit]}), draw.uniform(0, 1)) for unit in range(units)
        ),
        devices=(
            Device(count=draw.randint(0, 3), seconds=tuple(seconds), limit=limit),
            Device(count=draw.randint(1, 2), seconds=slow, pays=False),
        ),
        nbytes=nbytes,
    )


def every_split(dag: Dag, done: frozenset[int], left: tuple[int, ...]) -> Iterator[list[Part]]:
    """All ways to put what is not done into contiguous parts, in order."""
    units = range(len(dag.before))
    rest = [unit for unit in units if unit not in done]
    if not rest:
        yield []
        return
    for mask in range(1, 1 << len(rest)):
        part = frozenset(unit for i, unit in enumerate(rest) if mask >> i & 1)
        if any(not dag.before[unit] <= done | part for unit in part):
            continue
        for kind, count in enumerate(left):
            if count:
                fewer = tuple(c - (k == kind) for k, c in enumerate(left))
                for more in every_split(dag, done | part, fewer):
                    yield [Part(kind, part), *more]


@pytest.mark.parametrize("seed", range(60))
def test_no_split_has_a_smaller_load(seed: int) -> None:
    dag = random_dag(seed)
    counts = tuple(device.count for device in dag.devices)
    loads = (
        max(load_of(dag, part) for part in parts) for parts in every_split(dag, frozenset(), counts)
    )
    least = min(loads, default=float("inf"))
    split = split_dag(dag)
    if least == float("inf"):
        assert split is None
        return
    assert split is not None
    assert split.load == pytest.approx(least, rel=1e-9, abs=1e-12)
    assert split.bound == split.load
    assert max(load_of(dag, part) for part in split.parts) == pytest.approx(least, abs=1e-9)
    done: frozenset[int] = frozenset()
    for part in split.parts:
        assert not part.units & done
        done |= part.units
        assert all(dag.before[unit] <= done for unit in part.units)
    assert len(done) == len(dag.before)


@pytest.mark.parametrize("seed", range(0, 60, 5))
def test_with_few_ideals_the_bound_is_no_more_than_the_least_load(seed: int) -> None:
    dag = random_dag(seed)
    least, split = split_dag(dag), split_dag(dag, most_ideals=1)
    if split is not None:
        assert least is not None
        assert split.bound <= least.load * (1 + 1e-9) <= split.load * (1 + 2e-9)


@pytest.mark.parametrize("seed", range(0, 60, 5))
def test_every_ideal_is_made_once(seed: int) -> None:
    dag = random_dag(seed)
    units = range(len(dag.before))
    ideals = all_ideals(dag, 1000)
    assert ideals is not None
    assert sorted(ideals) == [
        mask
        for mask in range(1 << len(units))
        if all(
            mask >> earlier & 1
            for unit in units
            if mask >> unit & 1
            for earlier in dag.before[unit]
        )
    ]
    for deep in (True, False):
        order = prefixes(dag, deep)
        assert len(order) == len(units) + 1
        assert {*order} <= {*ideals}


def test_a_graph_without_devices_is_refused() -> None:
    with pytest.raises(BadValue, match="no device"):
        Dag(
            before=(frozenset(),),
            nets=(),
            devices=(Device(count=0, seconds=(1.0,)),),
            nbytes=(0.0,),
        )
