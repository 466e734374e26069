"""The size of the buckets of gradients: chosen by the simulated step, kept by the plan, and the
program's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from small_plans import ask_for, traced

import planner.search.buckets
from cost_models.cluster import load_cluster
from cost_models.errors import BadPlan
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.lowering.lower import lower, lowered
from planner.plans.plan_file import plan_text, read_plan, write_plan
from planner.plans.replay import program_of
from planner.program.program import Communicate
from planner.search.buckets import with_best_bucket
from planner.search.proposals import Candidate, Proposer
from planner.search.search import search
from planner.strategy.costing import Costing
from planner.strategy.message_costs import BUCKET_BYTES, BUCKET_SIZES
from planner.strategy.pins import Pin


def candidate(cluster: Cluster, batch: int = 64) -> tuple[Proposer, Candidate]:
    """Four data-parallel ranks."""
    ask = ask_for("gpt", layers=4, width=64, batch=batch, dtype="float32")
    model, workload = traced(ask)
    proposer = Proposer(ask, model, workload, cluster, ())
    return proposer, proposer.candidate(
        proposer.proposals(Mesh(("dp",), (4,)), (Pin("*", "ddp"),), last=True)[0], whole=True
    )


def with_latency(seconds: float, slower: float = 1.0) -> Cluster:
    """Four devices whose collectives take so long, whatever they send, over links that are so
    many times slower."""
    cluster = load_cluster("dgx-h100", num_devices=4)
    device = replace(cluster.device, overlap=1.0, launch_overhead=0.0)
    intra = replace(cluster.intra, overhead=seconds, bandwidth=cluster.intra.bandwidth / slower)
    return replace(cluster, device=device, intra=intra)


SIZES = (20_000, 80_000, 320_000, 1_280_000)


def test_the_best_size_is_the_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever it climbs it finds a size that is as good as the best of all, tried one by
    one; slow links want it small, slow calls large."""
    monkeypatch.setattr(planner.search.buckets, "BUCKET_SIZES", SIZES)
    best = []
    for cluster in (with_latency(0.0, slower=20_000), with_latency(1e-3)):
        proposer, given = candidate(cluster)
        every = [proposer.bucketed(given, size) for size in SIZES]
        fastest = min(every, key=lambda c: c.prediction.step_time_s)
        for start in every:
            found = with_best_bucket(start, proposer.capacity, partial(proposer.bucketed, start))
            assert found.prediction.step_time_s <= fastest.prediction.step_time_s * 1.01
        best.append(fastest.choices.bucket)
    assert best[0] < best[1]


def test_what_fits_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger bucket holds more gradients at once: one that does not fit is not taken, one that
    is given makes way."""
    monkeypatch.setattr(planner.search.buckets, "BUCKET_SIZES", SIZES)
    proposer, given = candidate(with_latency(1e-4), batch=4)
    small, large = proposer.bucketed(given, SIZES[0]), proposer.bucketed(given, SIZES[-1])
    held = [c.prediction.total_memory_bytes for c in (small, large)]
    assert held[0] < held[1]
    between = (held[0] + held[1]) / 2
    for start in (small, large):
        assert with_best_bucket(start, between, partial(proposer.bucketed, start)).fits(between)


def test_many_ranks_have_larger_buckets() -> None:
    """Messages between 512 devices are bound by latency up to hundreds of MiB."""
    sizes = [
        Costing(load_cluster("dgx-h100", num_devices=n), (n,), "adam", 1e12).messages.bucket_size
        for n in (8, 512)
    ]
    assert sizes[0] == BUCKET_BYTES < sizes[1]
    assert set(sizes) <= set(BUCKET_SIZES)


def test_a_plan_keeps_its_buckets(tmp_path: Path) -> None:
    """Read back, it gives the same program; a size that is none is refused in one line."""
    ask = ask_for("gpt", layers=2, batch=8, dtype="float32")
    found = search(
        replace(ask, num_devices=2),
        load_cluster("dgx-h100", num_devices=2),
        mesh=Mesh(("dp",), (2,)),
        pins=(Pin("*", "ddp"),),
    )
    plan = replace(found.plan, bucket_bytes=10_000)
    write_plan(plan, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again.bucket_bytes == 10_000
    assert program_of(again) == program_of(plan)
    messages = [
        sum(isinstance(i, Communicate) for i in p.instructions)
        for p in (program_of(again), found.program)
    ]
    assert messages[0] > messages[1]
    for damage in ("true", "0", '"25"', "null"):
        (tmp_path / "bad.json").write_text(
            plan_text(plan).replace('"bucket_bytes": 10000', f'"bucket_bytes": {damage}')
        )
        with pytest.raises(BadPlan, match="damaged"):
            read_plan(tmp_path / "bad.json")


def test_programs_of_other_buckets_are_those_lowered_anew() -> None:
    """Instructions in order of need are made once; no program changes those that follow."""
    proposer, given = candidate(with_latency(0.0, slower=20_000))
    known = (proposer.model, given.mesh, given.choices, given.proposal.table.costing)
    programs = lowered(*known)
    made = [programs(size) for size in (*SIZES, *SIZES[::-1])]
    assert made == [
        lower(*known[:2], replace(given.choices, bucket=size), known[3])
        for size in (*SIZES, *SIZES[::-1])
    ]
    assert len({len(program.instructions) for program in made}) > 1
    assert proposer.bucketed(given, SIZES[0]).program == made[0]
