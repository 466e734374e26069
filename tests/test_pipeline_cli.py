"""Pipelines on the command line: a typed one with its files, every verb on its plan, and one line
for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import documented, fails, keys, plan, stands_for, succeeds

from planner.plans.plan_file import read_plan
from planner.schedules.csv_text import load_schedule
from planner.schedules.registry import scheduled

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]
MLP = ("--model", "mlp", "--batch", "16", "--set", "inputs=16", "--set", "hidden=32")
TYPED = (*MLP, "--gpus", "4", "--hardware", "cpu")
MEGATRON = "pp=2,tp=1,dp=2,microbatch=2,schedule=1f1b,recompute=none,zero=1"


def check_documented(verb: str, record: Any) -> None:
    """All keys are documented, and all that are documented of stages are there."""
    found, listed = set(keys(record)), documented(verb)
    assert {key for key in found if not any(stands_for(d, key) for d in listed)} == set()
    of_stages = {d for d in listed if ".stages" in d and "recomputed." not in d}
    assert len([d for d in of_stages if not any(stands_for(d, key) for key in found)]) == 0


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("plans")
    return folder, succeeds(*TYPED, "--pin", MEGATRON, "--out", str(folder), "--json")


def test_a_pipeline_with_megatrons_names(planned: tuple[Path, Any]) -> None:
    folder, record = planned
    check_documented("", record)
    assert record["mesh"] == {"pp": 2, "dp": 2}
    assert record["microbatches"] == 16 // (2 * 2)
    stages = record["pipeline"]["stages"]
    assert [row["devices"] for row in stages] == [[0, 1], [2, 3]]
    assert [row["in_flight"] for row in stages] == [2, 1]
    assert record["memory_bytes"]["total"] == max(r["memory_bytes"]["total"] for r in stages)
    again = read_plan(folder / "plan.json")
    assert again.summary["stages"][0]["layers"] and not again.options
    assert load_schedule(folder / "schedule.csv").orders == scheduled("1f1b", 2, 4).orders
    assert (folder / "schedule.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "memory.png").read_bytes()[:4] == b"\x89PNG"
    names = [e["name"] for e in json.loads((folder / "timeline.json").read_text())["traceEvents"]]
    assert {"0F0", "0B3", "1F3", "1B0", "after"} <= set(names)


def test_the_same_in_options_of_their_own(planned: tuple[Path, Any], tmp_path: Path) -> None:
    words = ("--pipeline", "2", "--mesh", "dp=2", "--microbatches", "4", "--pin", "*=zero1")
    record = succeeds(*TYPED, *words, "--recompute", "none", "--out", str(tmp_path), "--json")
    different = ("planning_time_s", "files", "solver")
    assert {k: v for k, v in record.items() if k not in different} == {
        k: v for k, v in planned[1].items() if k not in different
    }


def test_every_verb_takes_a_pipelines_plan(planned: tuple[Path, Any], tmp_path: Path) -> None:
    folder, record = planned
    assert succeeds("report", str(folder), "--json") == record
    words = plan("report", str(folder)).output
    assert "2 pipeline ranks of 2 devices each (dp=2), 2 stages; schedule 1f1b, 4 micro" in words
    simulated = succeeds("simulate", str(folder), "--out", str(tmp_path), "--json")
    check_documented("simulate", simulated)
    assert simulated["step_time_s"] == pytest.approx(record["step_time_s"], rel=1e-12)
    assert simulated["memory_bytes"] == record["memory_bytes"]
    assert [r["forward_s"] for r in simulated["pipeline"]["stages"]] == pytest.approx(
        [r["forward_s"] for r in record["pipeline"]["stages"]]
    )
    assert "picture of the schedule" in plan("simulate", str(folder)).output
    explained = succeeds("explain", str(folder), "--json")
    check_documented("explain", explained)
    assert {row["stage"] for row in explained["ops"]} == {0, 1}
    assert "Stage 1: What every op splits" in plan("explain", str(folder)).output
    program = plan("explain", str(folder), "--program").output
    assert "== stage 1 on ranks 2-3: " in program and "-- receives value 0 (forward" in program


def test_ranks_with_unlike_meshes(tmp_path: Path) -> None:
    words = ("--gpus", "3", "--hardware", "cpu", "--mesh", "dp=2+dp=1", "--microbatches", "4")
    record = succeeds(*MLP, *words, "--out", str(tmp_path), "--json")
    assert record["mesh"] == {"devices": 3}
    assert [row["devices"] for row in record["pipeline"]["stages"]] == [[0, 1], [2, 2]]
    assert "unlike devices (dp=2 + dp=1), 2 stages" in (tmp_path / "report.md").read_text()
    told = succeeds("explain", str(tmp_path), "--json")
    assert {tuple(row["splits"]) for row in told["ops"]} == {("dp",)}
    text = plan("explain", str(tmp_path)).stdout
    assert "dp=2" in text and "Stage 1: What every op splits" in text


def test_a_schedule_from_a_file_and_one_that_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n")
    words = (*MLP, "--gpus", "2", "--hardware", "cpu", "--pipeline", "2", "--out", str(tmp_path))
    record = succeeds(*words, "--schedule", str(file), "--json")
    assert record["pipeline"]["schedule"] == "mine" and record["microbatches"] == 2
    found = succeeds(*words, "--schedule", "found", "--microbatches", "2", "--json")
    named = succeeds(*words, "--schedule", "zbh1", "--microbatches", "2", "--json")
    assert found["step_time_s"] <= named["step_time_s"]


def test_one_stage_is_the_plan_without_a_pipeline(tmp_path: Path) -> None:
    words = (*MLP, "--gpus", "2", "--hardware", "cpu", "--out", str(tmp_path), "--json")
    one = succeeds(*words, "--pin", "pp=1,tp=1,dp=2,microbatch=4,zero=0")
    same = succeeds(*words, "--mesh", "dp=2", "--microbatches", "2", "--pin", "*=ddp")
    assert one["pipeline"] is None
    assert {**one, "planning_time_s": 0, "solver": 0} == {
        **same, "planning_time_s": 0, "solver": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pin pp=2,tp=1,dp=4", "pp=2 x tp=1 x dp=4 are 8 devices and --gpus is 4: use --gpus 8, or pp=2,tp=1,dp=2"),
        ("--pin pp=3,dp=1", "pp=3 x tp=1 x dp=1 are 3 devices and --gpus is 4: use --gpus 3, or pp=4,tp=1,dp=1"),
        ("--pin pp=2,microbatch=3", "(3 on each of dp=2): use microbatch=2 or 4, or --batch 12 or 18"),
        ("--pin pp=2,foo=1", "unknown key in --pin pp=2,foo=1 'foo': known: chunks, dp,"),
        ("--pin pp=2,schedule=1f2b", "unknown schedule '1f2b': did you mean '1f1b'?"),
        ("--pin pp=2,zero=2", "zero=2 is not one of 0, 1, 3"),
        ("--pin pp=0", "pp=0 (pipeline ranks): give a whole number of at least 1"),
        ("--pin pp=2,pp=2", "pp is given twice"),
        ("--pin pp=2 --pipeline 4", "--pipeline 4 and --pin pp=2 say two things"),
        ("--pin pp=2,dp=2 --mesh dp=2", "--mesh dp=2 and --pin pp=2,dp=2 say two things"),
        ("--pipeline 3", "--pipeline 3 does not divide 4 devices: use --pipeline 2 or 4, or --gpus 6"),
        ("--pipeline 3", "or say the devices of each rank, as in --mesh dp=2+dp=1+dp=1"),
        ("--mesh dp=2+dp=1", "--mesh dp=2+dp=1 needs 3 devices and --gpus is 4: use --gpus 3, or other meshes"),
        ("--pipeline 3 --mesh dp=2+dp=2", "has 2 meshes and there are 3 pipeline ranks: give one mesh for all"),
        ("--pin microbatch=2 --mesh dp=3+dp=1", "unlike numbers of them: use --microbatches N"),
        ("--pipeline 2 --mesh dp=4", "needs 8 devices and --gpus is 4: use --gpus 8, or a mesh of 2"),
        ("--schedule 1f1b", "--schedule 1f1b is for a pipeline: say of how many ranks, as in --pipeline 2"),
        ("--pipeline 2 --schedule interleave", "unknown schedule 'interleave': did you mean 'interleaved'?"),
        ("--pipeline 4 --schedule interleaved --microbatches 11 --batch 22", "got 11: use 10 or 12"),
        ("--pipeline 2 --schedule 1f1b --chunks 2", "has 1 stage a rank, got 2: use 1 or 'interleaved'"),
        ("--pipeline 2 --schedule none.csv", "schedule file 'none.csv' cannot be read"),
        ("--pipeline 2 --microbatches 5", "16 samples are not cut into 5 equal parts; use --microbatches 4 or 8"),
        ("--pipeline 2 --pin x.*=recompute", "matches nothing in the model"),
        ("--pipeline 4 --mesh dp=1 --schedule interleaved --chunks 40", "the model can be cut into at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*TYPED, *words.split(), again=False)


def test_what_does_not_fit_names_the_stage_and_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (*TYPED, "--batch", "8192", "--pipeline", "2", "--mesh", "dp=2", "--microbatches", "1")
    line = fails(*words, "--memory-headroom", "0.9992", again=False)
    assert "'mlp' does not fit as typed: stage " in line
    assert "allowed (1f1b, 1 microbatch); largest: " in line
    number = line.partition("what fits: --microbatches ")[2]
    again = (*words[:-1], number, "--memory-headroom", "0.9992", "--out", str(tmp_path))
    assert succeeds(*again)["fits"]
