"""The join of a simulated and a recorded step: closed forms, and one real plan on two ranks end
to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cost_models.cluster import load_cluster
from cost_models.errors import BadHardware, BadPlan, BadValue
from cost_models.timeline import Event, Timeline
from planner.plans.plan_file import write_plan
from planner.search.search import search
from planner.workload.ask import Ask
from runtime.compare.compare import compare, write_comparison
from runtime.compare.comparison import Comparison
from runtime.compare.join import BETWEEN, WAITING, join_events


def event(
    name: str, start: float, end: float, *, device: int = 0, stream: str = "compute"
) -> Event:
    kind = "gemm" if stream == "compute" else "all_reduce"
    return Event(
        id=name, kind=kind, phase="forward", device=device, stream=stream, start=start, end=end
    )


def timeline(*events: Event) -> Timeline:
    return Timeline(events=events, step_time=max(e.end for e in events))


def two_ranks(compute: tuple[float, float], talk: tuple[float, float]) -> list[Timeline]:
    """Two ranks that compute, then meet: seconds of either on each."""
    return [
        timeline(
            event("mm", 0, c, device=rank),
            event("sum", c, c + t, device=rank, stream="communication"),
        )
        for rank, (c, t) in enumerate(zip(compute, talk, strict=True))
    ]


SIMULATED = timeline(event("mm", 0, 2.0), event("sum", 2.0, 3.0, stream="communication"))


def test_compute_is_the_mean_over_ranks_and_a_collective_the_least() -> None:
    events, waiting = join_events(SIMULATED, [two_ranks((1.0, 3.0), (2.5, 0.5))])
    rows = events.set_index("id")
    assert rows.loc["mm", ["predicted_s", "measured_s"]].tolist() == [2.0, 2.0]
    assert rows.loc["sum", ["predicted_s", "measured_s"]].tolist() == [1.0, 0.5]
    assert waiting == pytest.approx(1.0)  # the mean 1.5, less the 0.5 of the rank that came last


def test_an_instruction_is_summed_over_the_microbatches_that_run_it() -> None:
    """Ranks wait for each other in each of them: one that is late in the first and early in the
    second has not waited for nothing."""

    def ranks(first: float, second: float) -> list[Event]:
        talks = [event("sum", 0, s, stream="communication") for s in (first, second)]
        return [replace(one, microbatch=number) for number, one in enumerate(talks)]

    simulated = timeline(*ranks(1.0, 1.0), event("once", 0, 3.0))
    recorded = [
        timeline(*(replace(e, device=rank) for e in (*ranks(*s), event("once", 0, 2.0))))
        for rank, s in enumerate(((1.0, 3.0), (2.0, 1.0)))
    ]
    events, waiting = join_events(simulated, [recorded])
    rows = events.set_index("id")
    columns = ["count", "predicted_s", "measured_s"]
    assert rows.loc["sum", columns].tolist() == [2, 2.0, 2.0]
    assert rows.loc["once", columns].tolist() == [1, 3.0, 2.0]
    assert waiting == pytest.approx(0.5 + 1.0)


def test_several_recorded_steps_count_by_their_median() -> None:
    steps = [two_ranks((c, c), (1.0, 1.0)) for c in (2.0, 9.0, 3.0)]
    assert join_events(SIMULATED, steps)[0].set_index("id").loc["mm", "measured_s"] == 3.0


def test_of_unlike_ranks_the_one_with_the_largest_shards_is_compared() -> None:
    events, _ = join_events(SIMULATED, [two_ranks((3.0, 1.0), (2.5, 0.5))], uneven=True)
    assert events.set_index("id").loc["mm", "measured_s"] == 3.0


def test_an_event_that_only_one_side_has_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="sum"):
        join_events(SIMULATED, [[timeline(event("mm", 0, 1))]])
    with pytest.raises(AssertionError, match="1 of 2 ranks"):
        join_events(
            SIMULATED,
            [[*two_ranks((1.0, 1.0), (1.0, 1.0))[:1], timeline(event("mm", 0, 1, device=1))]],
        )


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"inputs": "16", "hidden": "32", "layers": "2", "outputs": "8"}
    ask = Ask(model="mlp", batch=8, seq=None, settings=settings, dtype="float32", num_devices=2)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    write_plan(search(ask, load_cluster("cpu", num_devices=2)).plan, path)
    return path


@pytest.fixture(scope="module")
def compared(plan: Path) -> Comparison:
    return compare(plan, hardware="cpu", num_steps=3)


def test_every_event_is_compared(compared: Comparison) -> None:
    assert compared.num_ranks == 2
    assert compared.events["id"].is_unique
    assert {"gemm", "elementwise", "optimizer"} <= set(compared.events["kind"])
    assert (compared.events["measured_s"] >= 0).all()
    assert compared.predicted_step_time_s > 0
    assert compared.measured_step_time_s in compared.step_times_s
    assert len(compared.step_times_s) == 3


def test_rows_add_up(compared: Comparison) -> None:
    by_phase = sum(row.measured_s for row in compared.by_phase)
    by_kind = sum(row.measured_s for row in compared.by_kind if row.kind not in (WAITING, BETWEEN))
    assert (
        by_kind
        == pytest.approx(by_phase)
        == pytest.approx(float(compared.events["measured_s"].sum()))
    )
    assert compared.error == pytest.approx(
        compared.predicted_step_time_s / compared.measured_step_time_s - 1
    )
    assert set(compared.table()["group"]) >= {"kind", "phase"}


def test_the_files(compared: Comparison, tmp_path: Path) -> None:
    files = write_comparison(compared, tmp_path / "out")
    assert Path(files["png"]).read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path(files["json"]).read_text())
    assert found == json.loads(json.dumps(compared.as_json()))
    assert found.keys() >= {
        "predicted_step_time_s",
        "measured_step_time_s",
        "error",
        "predicted_peak_memory_bytes",
        "measured_peak_memory_bytes",
        "by_kind",
    }
    assert found["by_kind"][0].keys() == {"kind", "count", "predicted_s", "measured_s", "error"}
    (tmp_path / "file").write_text("")
    with pytest.raises(BadValue, match="cannot be made"):
        write_comparison(compared, tmp_path / "file" / "out")


def test_what_cannot_be_compared(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadHardware, match="run `plan calibrate` first"):
        compare(plan)
    with pytest.raises(BadValue, match="a median needs at least 3"):
        compare(plan, num_steps=2)
    with pytest.raises(BadPlan, match="cannot be read"):
        compare(tmp_path / "none.json")
