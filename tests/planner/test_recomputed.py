"""What a plan says of what it holds for backward, and of what it computes again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from small_plans import Planned, ask_for, planned

from cost_models.cluster import load_cluster
from cost_models.memory import dtype_bytes
from planner.lowering.lower import lower
from planner.plans.kept import held_for_backward, kept_rows
from planner.plans.plan import Plan
from planner.plans.plan_file import read_plan, write_plan
from planner.plans.recomputed import recomputed, second_runs
from planner.program.program import Compute, Program, Update, runs_again, writes
from planner.report.explain import explain, explanation
from planner.report.report import report
from planner.report.sections import Table
from planner.search.search import search
from planner.strategy.pins import Pin, recompute_pins


def held_at_the_turn(program: Program) -> int:
    """Bytes of results of ops of forward that are alive when backward begins: a plain count over
    the instructions, by their frees."""
    alive: dict[int, int] = {}
    for instruction in program.instructions:
        if isinstance(instruction, Compute) and instruction.phase == "backward":
            break
        if isinstance(instruction, Compute):
            for value in writes(instruction):
                alive[value] = program.value_bytes[value]
        for value in instruction.frees:
            alive.pop(value, None)
    return sum(alive.values())


@pytest.mark.parametrize("way", ["none", "selective", "full"])
@pytest.mark.parametrize("model", ["gpt", "lstm", "cnn", "dropped"])
def test_what_is_said_to_be_held_is_what_the_program_holds(model: str, way: str) -> None:
    pins = tuple(f"{pin.pattern}={pin.choice}" for pin in recompute_pins(way))
    plan = planned(ask_for(model, 1), "a=1", pins)
    said = held_for_backward(plan.model, plan.choices, plan.table.costing)
    loss = 8  # read after backward
    assert 0 <= held_at_the_turn(plan.program) - sum(said.values()) <= loss
    rows = kept_rows(plan.model, plan.choices, plan.table.costing)
    assert sum(row.nbytes for row in rows) == sum(said.values())


def made(way: str, model: str = "gpt") -> Planned:
    return planned(ask_for(model, 2), "tp=2", ("*=tensor", f"*={way}"))


def test_what_is_held_less_is_the_difference_to_keeping_all() -> None:
    held = {}
    for way in ("keep", "recompute"):
        plan = made(way)
        held[way] = sum(held_for_backward(plan.model, plan.choices, plan.table.costing).values())
    plan = made("recompute")
    found = recomputed(plan.program, plan.model, plan.choices, plan.table.costing)
    assert found["held_less_bytes"] == held["keep"] - held["recompute"] > 0
    (group,) = found["groups"]
    assert (group["group"], group["count"]) == ("h.*", 2)
    assert group["ops"]["native_layer_norm"] == 2
    assert group["held_less_bytes"] == found["held_less_bytes"]


def test_the_seconds_are_those_of_ops_and_of_messages_that_only_they_need() -> None:
    """Without what runs again, the instructions are those of the plan that keeps all."""
    plain, again = made("keep").program, made("recompute").program
    alone = {i.id for i in second_runs(again)}
    rest = [i for i in again.instructions if i.id not in alone]

    def busy(instructions: object) -> float:
        return math.fsum(i.time for i in instructions if i.kind != "view")  # type: ignore[attr-defined]

    assert busy(rest) == pytest.approx(busy(plain.instructions), rel=1e-9)
    plan = made("recompute")
    found = recomputed(again, plan.model, plan.choices, plan.table.costing)
    assert found["time_s"] == pytest.approx(math.fsum(i.time for i in second_runs(again)))
    assert 0 < found["messages_time_s"] < found["time_s"]
    assert not any(isinstance(i, Update) for i in second_runs(again))


@pytest.mark.parametrize(
    ("mesh", "pin"), [("dp=2", "*=ddp"), ("dp=2", "*=zero3"), ("tp=2", "*=tensor")]
)
def test_casts_of_parameters_do_not_count_as_recomputed(mesh: str, pin: str) -> None:
    plan = planned(
        ask_for("gpt", 2, dtype="float32", compute="bfloat16"), mesh, (pin, "*=recompute")
    )
    costing = plan.table.costing
    found = []
    for recast in (False, True):
        choices = replace(plan.choices, recast=recast)
        program = lower(plan.model, plan.mesh, choices, costing)
        found.append(recomputed(program, plan.model, choices, costing))
    kept, again = found
    assert again["groups"] == [
        {**group, "time_s": pytest.approx(group["time_s"])} for group in kept["groups"]
    ]
    for name in ("time_s", "messages_time_s", "held_less_bytes"):
        assert again[name] == pytest.approx(kept[name])


def test_nothing_is_said_if_nothing_runs_again() -> None:
    plan = made("keep")
    assert recomputed(plan.program, plan.model, plan.choices, plan.table.costing) == {}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of two layers, of which the second runs again, read back from its file."""
    pins = (Pin("h.1", "recompute"),)
    found = search(
        ask_for("gpt", 1, dtype="float32"), load_cluster("cpu", num_devices=1), pins=pins
    )
    assert any(runs_again(i.id) for i in found.program.instructions)
    path = Path(tmp_path_factory.mktemp("plan")) / "plan.json"
    write_plan(found.plan, path)
    assert read_plan(path) == found.plan
    return read_plan(path)


def test_the_report_says_what_runs_again(plan: Plan) -> None:
    (section,) = (s for s in report(plan, {}) if s.title == "Recomputed in backward")
    table, total = section.body
    assert isinstance(table, Table) and table.rows[0][0] == "h.* (x1)"
    assert "mm x" in table.rows[0][1] and "less is held from forward to backward" in str(total)


def test_explain_says_what_is_kept_and_which_ops_run_again(plan: Plan) -> None:
    record = explain(plan)
    rows = {(row["group"], row["op"]): row for row in record["kept"]}
    itemsize = dtype_bytes("float32")
    # The product before GELU, kept by one layer of two.
    assert rows["h.*.mlp.fc", "add"]["nbytes"] == 8 * 8 * 64 * itemsize
    assert rows["h.*.mlp.fc", "add"]["count"] == 1
    assert [r["nbytes"] for r in record["kept"]] == sorted(
        (r["nbytes"] for r in record["kept"]), reverse=True
    )
    gelu = next(row for row in record["ops"] if row["op"] == "gelu")
    assert (gelu["count"], gelu["again"]) == (2, 1)
    shown = [
        cell
        for s in explanation(plan, record)
        for t in s.body
        if isinstance(t, Table)
        for row in t.rows
        for cell in row
    ]
    assert "gelu (forward, 1 of them again)" in shown


def test_the_report_names_the_models_own_checkpoints() -> None:
    ask = ask_for("checkpointed", 1, dtype="float32", layers=1)
    cluster = load_cluster("cpu", num_devices=1)
    found = search(ask, cluster).plan
    assert found.summary["checkpoints"] == ["h.*"] and found.summary["recomputed"]
    (section,) = (s for s in report(found, {}) if s.title == "Recomputed in backward")
    assert section.body[-1] == "the model has h.* under torch.utils.checkpoint"
    kept = search(ask, cluster, pins=recompute_pins("none")).plan
    (section,) = (s for s in report(kept, {}) if s.title == "Recomputed in backward")
    assert section.body == (
        "the model has h.* under torch.utils.checkpoint; --recompute or pins keep it",
    )
