"""A plan's file with any of its values gone, of another type or of another value: read and used
as before, or refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from small_plans import ask_for

from cost_models.cluster import load_cluster
from cost_models.errors import UserError
from planner.lowering.lower import lower
from planner.plans.plan import Plan
from planner.plans.plan_file import plan_text, read_plan
from planner.plans.replay import choices_of, costing_of
from planner.report.records import plan_record
from planner.report.report import report
from planner.report.sections import markdown
from planner.search.search import Found, search
from planner.torch_private.fake_tensors import FakeTensorMode
from planner.workload.ask import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")
FILES = {"plan": "a", "report": "b", "timeline": "c"}
GONE = object()
MISTYPED = (GONE, None, True, "x", "", [], ["x"], [1], {}, {"x": 1}, [[None]])
NUMBERS = (7, -1, -2, -3, 0, 10**30, 0.5, float("nan"), float("inf"))
Place = tuple[Any, ...]


@pytest.fixture(scope="module")
def found() -> Found:
    return search(ask_for("mlp", 2, clip_norm=1.0), load_cluster("cpu", num_devices=2))


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every key and every item below; of lists the first and the last."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
        items = items if len(items) < 2 else [items[0], items[-1]]
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def others(value: Any) -> Iterator[Any]:
    """Nothing, values of other types, and other values of the same type."""
    yield from (*MISTYPED, *NUMBERS)
    if isinstance(value, str):
        yield value + "1"
        yield value[:-1]
        yield value.replace("0", "00").replace("1", "-1")
    if isinstance(value, list) and value:
        yield value[:-1]
        yield [*value, value[-1]]
    if isinstance(value, dict):
        yield {**value, "another": 1}


def damaged(body: Any, at: Place, to: Any) -> Any:
    body = copy.deepcopy(body)
    place = body
    for key in at[:-1]:
        place = place[key]
    if to is GONE:
        del place[at[-1]]
    else:
        place[at[-1]] = to
    return body


def use(plan: Plan, found: Found) -> None:
    """What the verbs do with a plan, on the model that was traced; a plan of another model or
    other sizes is built, without memory."""
    if (plan.summary, plan.solver, plan.alternatives) != (
        found.plan.summary,
        found.plan.solver,
        found.plan.alternatives,
    ):
        markdown(report(plan, FILES))
        json.dumps(plan_record(plan, FILES))
        return  # nothing is lowered from these
    if plan.ask != found.plan.ask:
        with FakeTensorMode(), torch.random.fork_rng(devices=[]):
            build(plan.ask)
    costing = costing_of(plan, found.model)
    lower(found.model, plan.mesh, choices_of(plan, found.model), costing)


def small(place: Place, to: Any) -> bool:
    """Not sizes so large that building the model is a matter of patience."""
    return not (place[:1] == ("ask",) and to == 10**30)


def test_no_damage_is_a_traceback(found: Found, tmp_path: Path) -> None:
    body, path = json.loads(plan_text(found.plan)), tmp_path / "plan.json"
    use(read_plan_of(body, path), found)
    refused = kept = 0
    for number, place in enumerate(places(body)):
        value = body
        for key in place:
            value = value[key]
        # Each value is put in many places, if not in every one.
        for to in islice(others(value), number % 4, None, 4):
            if not small(place, to) or (to is not GONE and type(to) is type(value) and to == value):
                continue
            try:
                use(read_plan_of(damaged(body, place, to), path), found)
                kept += 1
            except UserError as error:
                assert "\n" not in str(error), (place, to)
                refused += 1
            except Exception as error:
                raise AssertionError(
                    f"{place} as {to!r}: {type(error).__name__}: {error}"
                ) from error
    assert refused > 300 and kept < refused / 2, (refused, kept)


def read_plan_of(body: Any, path: Path) -> Plan:
    path.write_text(json.dumps(body))
    return read_plan(path)
