"""Plans with stages on real ranks: their steps, against one process; their memory and messages; and
ranks that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cost_models.cluster import load_cluster
from cost_models.errors import RunFailed
from planner.graph.layout import Mesh
from planner.plans.pipeline_replay import pipeline_of
from planner.plans.plan import Plan
from planner.plans.plan_file import write_plan
from planner.search.pipelines import Spec
from planner.search.typed_pipelines import typed_pipeline
from planner.strategy.pins import parse_pin
from planner.workload.ask import Ask
from planner.workload.precision import precision_of
from runtime.compare.comparison import Ran as Measured
from runtime.compare.stages import STAGES, compare_pipelines
from runtime.launcher import launch
from runtime.worker import RunResult


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pipeline: its model, places, meshes (of all places, or of each), microbatches and
    schedule."""

    model: str
    settings: dict[str, str]
    places: int
    dp: int = 1
    meshes: tuple[Mesh, ...] = ()
    microbatches: int = 4
    schedule: str = "1f1b"
    chunks: int | None = None
    precision: str = "float64"
    pins: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> Plan:
        """The plan on CPU ranks."""
        formats = precision_of(self.precision).fields()
        spec = Spec(
            places=self.places,
            mesh=self.meshes or Mesh(("dp",), (self.dp,)),
            microbatches=self.microbatches,
            schedule=self.schedule,
            chunks=self.chunks,
        )
        ask = Ask(
            model=self.model,
            batch=8,
            seq=None if "inputs" in self.settings else 6,
            settings=self.settings,
            num_devices=spec.num_devices,
            **formats,
            **self.more,
        )
        cluster = load_cluster("cpu", num_devices=spec.num_devices)
        return typed_pipeline(ask, cluster, spec, tuple(map(parse_pin, self.pins))).plan


GPT = {"layers": "2", "width": "16", "heads": "2", "vocab": "32"}
MLP = {"inputs": "16", "hidden": "32", "layers": "4", "outputs": "8"}
LSTM = {"layers": "2", "hidden": "8", "vocab": "16"}
ONE = Mesh(("dp",), (1,))

CASES = {
    "tied weights, clipped, with data": Case(
        model="gpt", settings=GPT, places=2, dp=2, more={"clip_norm": 0.1}
    ),
    "zero-bubble V, values that cross several stages": Case(
        model="seq2seq-lstm",
        settings={"hidden": "8", "vocab": "16"},
        places=2,
        dp=2,
        schedule="zbv",
    ),
    "unlike places, tied weights, clipped": Case(
        model="gpt",
        settings=GPT,
        places=3,
        meshes=(Mesh(("dp",), (2,)), ONE, ONE),
        more={"clip_norm": 0.1},
    ),
    "unlike places, two stages each": Case(
        model="gpt",
        settings=GPT,
        places=2,
        meshes=(ONE, Mesh(("tp",), (3,))),
        schedule="zbv",
    ),
    "interleaved": Case(
        model="mlp", settings=MLP | {"layers": "7"}, places=4, schedule="interleaved", chunks=2
    ),
    "zero-bubble H1": Case(model="lstm", settings=LSTM, places=2, dp=2, schedule="zbh1"),
    "scaled loss, master copies": Case(
        model="mlp", settings=MLP, places=4, schedule="gpipe", precision="fp16-mixed"
    ),
}


@dataclass(frozen=True)
class Ran:
    plan: Plan
    result: RunResult


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """All cases, in one launch of four ranks."""
    folder = tmp_path_factory.mktemp("pipelines")
    plans = {name: case.plan() for name, case in CASES.items()}
    paths = [str(folder / f"{number}.json") for number in range(len(plans))]
    for path, plan in zip(paths, plans.values(), strict=True):
        write_plan(plan, Path(path))
    results: Sequence[RunResult] = launch("pipeline_ranks:runs", 4, paths)[0]
    return {
        name: Ran(plan, result) for (name, plan), result in zip(plans.items(), results, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_trains_like_one_process(ran: dict[str, Ran], name: str) -> None:
    verification = ran[name].result.verification
    assert verification is not None
    assert verification.verdict in ("equal", "equal to rounding"), verification
    if CASES[name].precision == "float64":
        assert verification.limit == 1e-9
    assert verification.num_elements > 100


@pytest.mark.parametrize("name", CASES)
def test_all_that_crosses_is_in_the_recorded_step(ran: dict[str, Ran], name: str) -> None:
    """Every value that is sent is received, by another rank, in every microbatch."""
    timeline = ran[name].result.timeline
    assert timeline is not None
    passing = [event for event in timeline.events if event.channel == "stages"]
    found = {
        kind: Counter((e.id.split(".")[1], e.microbatch) for e in passing if e.kind == kind)
        for kind in ("send", "receive")
    }
    assert found["send"].keys() == found["receive"].keys()
    assert {m for _, m in found["send"]} == set(range(CASES[name].microbatches))
    assert {event.device for event in timeline.events} == set(range(4))
    assert all(event.end >= event.start for event in timeline.events)


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_holds_what_is_predicted(ran: dict[str, Ran], name: str) -> None:
    """Rank by rank; small steps have much in scalars, which the allocator rounds up."""
    plan, timeline = ran[name].plan, ran[name].result.timeline
    assert timeline is not None
    predicted = plan.summary["memory_bytes"]["total"]
    measured = ran[name].result.peak_memory_bytes
    assert predicted == pytest.approx(measured, rel=0.03), (predicted, measured)
    assert predicted >= 0.99 * measured


def test_bodies_of_stages_are_compared(ran: dict[str, Ran]) -> None:
    """Every instruction that was recorded was predicted (`join_events` checks it), stage by stage;
    peaks are those of the plan."""
    one = ran["zero-bubble V, values that cross several stages"]
    timeline = one.result.timeline
    assert timeline is not None
    ranks = tuple(replace(timeline, events=timeline.on(rank)) for rank in range(4))
    measured = Measured(
        step_times_s=one.result.step_times_s,
        timelines=(ranks,),
        peak_memory_bytes=one.result.peak_memory_bytes,
    )
    cluster = load_cluster("cpu", num_devices=4)
    found = compare_pipelines(one.plan, cluster, pipeline_of(one.plan, cluster), measured)
    counts = {row.kind: row.count for row in found.by_body}
    assert [counts[f"stage {stage} F"] for stage in range(4)] == [4] * 4
    assert all(row.measured_s > 0 for row in found.by_body)
    assert all(row.predicted_s > 0 for row in found.by_body if row.count == 4)
    assert found.predicted_step_time_s == pytest.approx(one.plan.summary["step_time_s"])
    assert found.predicted_peak_memory_bytes == one.plan.summary["memory_bytes"]["total"]
    assert {row.kind for row in found.by_kind} >= {STAGES, "gemm"}


@pytest.mark.parametrize("killed", [False, True])
def test_a_rank_that_fails_is_named_with_its_action(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "plan.json"
    write_plan(Case(model="mlp", settings=MLP, places=2).plan(), path)
    how = "ended by SIGKILL" if killed else r"instruction \S+ \(\S+, \S+\): "
    with pytest.raises(RunFailed, match=f"^rank 1: stage 1, action 1F1: {how}"):
        launch("pipeline_ranks:failing", 2, (str(path), killed))
