"""A pipeline's plan file: read back it is the plan written; with any of its values gone, of another
type or of another value it is used as before, or refused in one line."""

from __future__ import annotations

import copy
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from small_plans import ask_for
from test_damage import FILES, GONE, damaged, others, places, read_plan_of

from cost_models.cluster import load_cluster
from cost_models.errors import BadPlan, UserError
from planner.graph.layout import Mesh
from planner.lowering.pipeline import ChosenStage, lower_pipeline
from planner.plans.pipeline_replay import clusters_of, models_of, schedule_of, stage_plans
from planner.plans.plan import Plan
from planner.plans.plan_file import plan_text
from planner.plans.replay import choices_of, costing_of, traced_of
from planner.plans.stage_models import StageModels
from planner.report.records import plan_record
from planner.report.report import report
from planner.report.sections import markdown
from planner.search.pipelines import Spec
from planner.search.typed_pipelines import typed_pipeline
from planner.trace.traced import Traced

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")


@pytest.fixture(scope="module")
def plan() -> Plan:
    spec = Spec(places=2, mesh=Mesh(("a",), (2,)), microbatches=4, schedule="zbh1")
    ask, cluster = ask_for("mlp", 4, clip_norm=1.0), load_cluster("cpu", num_devices=4)
    return typed_pipeline(ask, cluster, spec).plan


def test_a_plan_read_back_is_the_plan_written(plan: Plan, tmp_path: Path) -> None:
    assert plan.pipeline is not None and plan.pipeline.schedule == "zbh1"
    assert read_plan_of(json.loads(plan_text(plan)), tmp_path / "plan.json") == plan


def use(plan: Plan, traced: Traced, whole: StageModels, first: Plan) -> None:
    """What the verbs do with a plan, on the model that was traced."""
    if plan.pipeline is None or plan.pipeline == first.pipeline:
        markdown(report(plan, FILES))
        json.dumps(plan_record(plan, FILES))
        return
    same = [(s.begins, s.at) for s in plan.pipeline.stages] == [
        (s.begins, s.at)
        for s in first.pipeline.stages  # type: ignore[union-attr]
    ]
    models = whole if same else models_of(plan, traced)
    parts = zip(models.models, stage_plans(plan), clusters_of(plan), strict=True)
    chosen = [
        ChosenStage(
            model=model,
            mesh=own.mesh,
            choices=choices_of(own, model),
            costing=costing_of(own, model, devices),
        )
        for model, own, devices in parts
    ]
    lower_pipeline(chosen, models.crossings, schedule_of(plan.pipeline))


def test_no_damage_of_a_pipeline_is_a_traceback(plan: Plan, tmp_path: Path) -> None:
    body, path = json.loads(plan_text(plan)), tmp_path / "plan.json"
    traced = traced_of(plan)
    whole = models_of(plan, traced)
    refused = kept = 0
    wanted = [p for p in places(body) if p[0] == "pipeline" or p[:2] == ("summary", "stages")]
    wanted += [("mesh", "sizes", 0), ("summary", "bubble"), ("summary", "groups", 0, "ops", 0)]
    for number, place in enumerate(wanted):
        value = body
        for key in place:
            value = value[key]
        for to in islice(others(value), number % 5, None, 5):
            if to is not GONE and type(to) is type(value) and to == value:
                continue
            try:
                use(read_plan_of(damaged(body, place, to), path), traced, whole, plan)
                kept += 1
            except UserError as error:
                assert "\n" not in str(error), (place, to)
                refused += 1
            except Exception as error:
                raise AssertionError(
                    f"{place} as {to!r}: {type(error).__name__}: {error}"
                ) from error
    assert refused > 200 and kept < refused, (refused, kept)


@pytest.mark.parametrize(
    ("at", "to", "message"),
    [
        (("stages", 1, "begins"), 10**6, "the plan has a stage that begins at"),
        (("stages", 1, "begins"), 0, "stages begin with unit 0 and follow each other"),
        (("orders",), "0F0,0B0\n1B0,1F0\n", "pipeline.orders: schedule 'zbh1' cannot run"),
        (("orders",), "0F0,0B0\n1F0,1B0\n", "ask.microbatches is 4: the schedule has 1"),
        (("stages", 0, "mesh", "sizes"), [1], "mesh is 4: the stages have 3 devices"),
    ],
)
def test_parts_that_contradict_each_other(
    plan: Plan, tmp_path: Path, at: tuple[Any, ...], to: Any, message: str
) -> None:
    body = copy.deepcopy(json.loads(plan_text(plan)))
    with pytest.raises(BadPlan, match=re.escape(message)):
        read = read_plan_of(damaged(body, ("pipeline", *at), to), tmp_path / "plan.json")
        models_of(read, traced_of(read))
