"""The plan's file: a round trip, the same choices on every rank, and damaged files named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_plans import ask_for

import planner.search.proposals
from cost_models.cluster import load_cluster
from cost_models.errors import BadPlan, UnknownName
from planner.plans.plan import Plan
from planner.plans.plan_file import plan_text, read_plan, write_plan
from planner.plans.replay import choices_of, model_of, program_of
from planner.predict.predict import predict
from planner.search.search import Found, search
from planner.strategy.strategies import Option
from planner.workload.ask import Ask


@pytest.fixture(scope="module")
def found() -> Found:
    return search(ask_for("gpt"), load_cluster("cpu", num_devices=4))


@pytest.fixture()
def path(found: Found, tmp_path: Path) -> Path:
    out = tmp_path / "plan.json"
    write_plan(found.plan, out)
    return out


@pytest.mark.parametrize("model", ["gpt", "lstm", "mlp", "cnn"])
def test_a_round_trip_is_the_identity(model: str, tmp_path: Path) -> None:
    plan = search(ask_for(model), load_cluster("dgx-h100", num_devices=4)).plan
    write_plan(plan, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again == plan
    assert plan_text(again) == plan_text(plan)


def test_ranks_make_the_same_program_without_solving(
    found: Found, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise AssertionError("solved again")

    monkeypatch.setattr(planner.search.proposals, "solve", refuse)
    plan = read_plan(path)
    program = program_of(plan)
    assert program.instructions == found.program.instructions
    assert replace(program, mesh=found.program.mesh) == found.program


def test_the_reported_figures_are_those_of_the_file(found: Found, path: Path) -> None:
    """The step time is the program's."""
    plan = read_plan(path)
    assert (
        predict(program_of(plan), plan.hardware.cluster()).step_time_s
        == plan.summary["step_time_s"]
    )


def test_the_hardware_travels_with_the_plan(path: Path) -> None:
    assert read_plan(path).hardware.cluster() == load_cluster("cpu", num_devices=4)


def test_modes_are_written_only_if_some_op_is_not_kept(found: Found, path: Path) -> None:
    assert "modes" not in json.loads(path.read_text())
    model = model_of(found.plan)
    ops = [n for n in model.graph.nodes if n.phase == "forward" and "ln_1" in n.path]
    modes = {ops[0].index: "again", ops[1].index: "once", 2: "across"}
    plan = replace(found.plan, modes=modes | dict.fromkeys(range(5, 8), "once"))
    write_plan(plan, path)
    shown = json.loads(path.read_text())["modes"]
    assert shown == {"again": f"{ops[0].index}", "once": f"5-7,{ops[1].index}", "across": "2"}
    assert read_plan(path) == plan


def test_modes_are_those_of_the_choices(found: Found) -> None:
    model = model_of(found.plan)
    node = next(n for n in model.graph.nodes if n.op == "aten.native_layer_norm.default")
    plan = replace(found.plan, modes={node.index: "again"})
    chosen = choices_of(plan, model).strategies
    assert {n for n, s in chosen.items() if s.mode != "kept"} == {node.index}
    with pytest.raises(BadPlan, match=r"contradict each other \(.* whose mode is once\)"):
        choices_of(replace(plan, modes={node.index: "once"}), model)
    with pytest.raises(BadPlan, match="a mode for op 99999, which has no choice"):
        choices_of(replace(plan, modes={99999: "once"}), model)


# ------------------------------------------------------------------------------------ damaged files


def damaged(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    return path


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        BadPlan,
        match=r"no\.json: cannot be read \(No such file or directory\); make a plan with: plan --model NAME",
    ):
        read_plan(tmp_path / "no.json")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated(path: Path, share: float) -> None:
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(BadPlan, match=r"plan\.json: not a complete plan file \(.*\); plan again"):
        read_plan(path)


def test_not_text(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(BadPlan, match="not a complete plan file"):
        read_plan(path)


@pytest.mark.parametrize("body", ["[]", "3", "{}", '{"format": "other"}'])
def test_not_a_plan(path: Path, body: str) -> None:
    path.write_text(body)
    with pytest.raises(
        BadPlan, match=r"plan\.json: not a plan file \(no format 'shardwright-plan'\)"
    ):
        read_plan(path)


@pytest.mark.parametrize("version", [0, 1, 99, None, "2"])
def test_another_version(path: Path, version: Any) -> None:
    with pytest.raises(
        BadPlan, match=rf"a plan of version {version}, but this program reads version 2; plan again"
    ):
        read_plan(damaged(path, lambda body: body.update(version=version)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda body: body.pop("mesh"), "mesh is missing"),
        (lambda body: body.pop("solver"), "solver is missing"),
        (lambda body: body["ask"].pop("dtype"), "ask: Object missing required field `dtype`"),
        (lambda body: body["ask"].update(colour="red"), "ask has an unknown key 'colour'"),
        (
            lambda body: body["ask"].update(compute="bfloat61"),
            "ask.compute is 'bfloat61': empty or one of float32",
        ),
        (
            lambda body: body["ask"].update(formats={"master": "bfloat61"}),
            "ask.formats.master is 'bfloat61': empty or one of float32",
        ),
        (
            lambda body: body["ask"].update(formats={"colour": "red"}),
            "ask.formats has an unknown key 'colour'",
        ),
        (lambda body: body["training"].update(optimizer="lion"), "training.optimizer is 'lion'"),
        (
            lambda body: body["mesh"].update(names=["a", "b", "c"]),
            "mesh: a mesh needs one distinct name per axis",
        ),
        (lambda body: body["mesh"].update(sizes=[2] * len(body["mesh"]["sizes"]) + [9]), "mesh: "),
        (
            lambda body: body["hardware"].update(num_devices=5),
            "hardware.num_devices is 5: the mesh has 4",
        ),
        (lambda body: body.update(options=5), "options: Expected `array`, got `int`"),
        (lambda body: body["parameters"].__setitem__(0, ["melted"]), "unknown option 'melted'"),
        (
            lambda body: body["parameters"].__setitem__(0, ["split:x"]),
            "option 'split:x' has no number",
        ),
        (lambda body: body["hubs"].append({"phase": "forward"}), "Object missing required field"),
        (lambda body: body.update(modes={"twice": "1"}), r"modes is \['twice'\]: only ops that"),
        (lambda body: body.update(modes={"again": "0", "once": "0-3"}), "an op has one mode"),
        (lambda body: body.update(modes={"once": "4-2"}), "modes is '4-2': a range of ops"),
        (lambda body: body.update(modes={"once": "1,"}), "modes: '' is no range of ops"),
        (lambda body: body["summary"].pop("mfu"), "summary: Object missing required field `mfu`"),
        (
            lambda body: body["summary"]["memory_bytes"].pop("inputs"),
            "not the categories of memory",
        ),
        (
            lambda body: body["summary"].update(step_time_s=0),
            "summary.step_time_s: Expected `float` > 0",
        ),
    ],
)
def test_damaged_parts_are_named(
    path: Path, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    with pytest.raises(
        BadPlan, match=rf"plan\.json: the plan file is damaged \(.*({named}).*\); plan again"
    ):
        read_plan(damaged(path, change))


def test_made_for_another_graph(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Planning and running have the same hash seed, so no process with another one is asked.
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    plan = read_plan(damaged(path, lambda body: body.update(graph_hash="0" * 64, hash_seed="7")))
    now = (
        r"made for another graph of 'gpt' \(hash 000000000000, now [0-9a-f]{12}\): the model's "
        r"code or torch has changed; plan again"
    )
    with pytest.raises(BadPlan, match=now):
        model_of(plan)
    other = read_plan(damaged(path, lambda body: body["ask"].update(batch=16)))
    with pytest.raises(BadPlan, match="made for another graph"):
        program_of(other)


def test_a_model_that_is_gone(path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown model 'gtp'"):
        program_of(read_plan(damaged(path, lambda body: body["ask"].update(model="gtp"))))


def tampered(found: Found, **parts: Any) -> Plan:
    return replace(found.plan, **parts)


@pytest.mark.parametrize("part", ["options", "parameters"])
def test_choices_for_another_number_of_ops(found: Found, part: str) -> None:
    short = tampered(found, **{part: getattr(found.plan, part)[:-1]})
    with pytest.raises(
        BadPlan, match="choices for a different number of ops than the model has; plan again"
    ):
        choices_of(short, found.model)


def test_a_choice_that_does_not_exist(found: Found) -> None:
    wrong = (Option("split", 40),) * len(found.plan.mesh.sizes)
    at = next(i for i, o in enumerate(found.plan.options) if o is not None)
    options = (*found.plan.options[:at], wrong, *found.plan.options[at + 1 :])
    with pytest.raises(
        BadPlan, match=r"the plan's choice \['split:40'.*\] does not exist for aten\."
    ):
        choices_of(tampered(found, options=options), found.model)
    with pytest.raises(
        BadPlan,
        match=r"the plan's choice \['split:40'.*\] does not exist for parameter 'wte\.weight'",
    ):
        choices_of(tampered(found, parameters=(wrong, *found.plan.parameters[1:])), found.model)


def test_too_few_axes_in_a_choice(found: Found) -> None:
    """A choice of one axis too few, or none where an op needs one, is a damaged plan and no
    crash."""
    at = next(i for i, o in enumerate(found.plan.options) if o is not None)
    for wrong in ((), None):
        options = (*found.plan.options[:at], wrong, *found.plan.options[at + 1 :])
        with pytest.raises(BadPlan, match=r"does not exist for|has no choice for"):
            choices_of(tampered(found, options=options), found.model)


def test_a_layout_that_does_not_divide(found: Found) -> None:
    axes = len(found.plan.mesh.sizes)
    value = next(v.id for v in found.model.graph.values if v.kind == "activation" and v.shape == ())
    for hubs in (((value, "forward", (0,) * axes),), ((10**6, "forward", (-1,) * axes),)):
        with pytest.raises(BadPlan, match=r"the plan's layout .* value \d+; plan again"):
            choices_of(tampered(found, hubs=hubs), found.model)


def test_writing_is_whole_or_not_at_all(
    found: Found, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_text()

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((OSError, ValueError)):
        write_plan(tampered(found, graph_hash="x"), path)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


ORDERED = """
import random, torch
from torch import nn
PIECES = [0]
class Towers(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.towers = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
    def forward(self, x):
        return sum(tower(x) for tower in self.towers.values())
def made(names):
    return Towers(names), (torch.randn(4, 4), torch.randn(4, 4)), nn.functional.mse_loss
def of_a_set():
    return made({"user", "item", "query", "context", "place"})
def by_chance():
    return made(["a"] * 1 + random.sample(["b", "c", "d", "e"], 2))
def each_time_another():
    PIECES.append(0)
    return made([str(number) for number in range(len(PIECES))])
"""


@pytest.fixture()
def ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """The plan of a function of ORDERED, made under the hash seed 0 as far as it says."""
    (tmp_path / "planned_anew.py").write_text(ORDERED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "0")

    def planned(name: str) -> Plan:
        ask = Ask(
            model=f"planned_anew:{name}",
            batch=None,
            seq=None,
            settings={},
            dtype="float32",
            num_devices=1,
        )
        return search(ask, load_cluster("cpu", num_devices=1)).plan

    return planned


def test_a_model_that_goes_through_a_set_is_told(
    ordered: Callable[[str], Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ordered("of_a_set")
    assert plan.hash_seed == "0"
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    with pytest.raises(
        BadPlan, match="iterates over a set, whose order differs between processes: sort it"
    ):
        model_of(replace(plan, graph_hash="0" * 64))


def test_a_model_that_the_seed_decides_is_told(ordered: Callable[[str], Plan]) -> None:
    plan = ordered("by_chance")
    assert model_of(plan).graph.digest() == plan.graph_hash
    with pytest.raises(
        BadPlan,
        match="random numbers that decide what it computes; it was planned with seed 0 and run with 5",
    ):
        model_of(plan, seed=5)


def test_a_model_that_is_another_each_time_is_told(ordered: Callable[[str], Plan]) -> None:
    with pytest.raises(BadPlan, match="the model computes something else each time it is built"):
        model_of(ordered("each_time_another"))
