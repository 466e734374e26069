"""A padded vocabulary: the model with another size is the model traced at that size, and only
what is faster is offered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_plans import ask_for, mesh_of, table_of, traced

from cost_models.cluster import load_cluster
from cost_models.device import GemmRow
from cost_models.machine import Cluster
from planner.lowering.lower import lower
from planner.plans.plan_file import plan_text
from planner.predict.predict import memory_by_category
from planner.report.report import report
from planner.search.padding import cheaper_sizes, resized, vocabulary
from planner.search.search import Found, search
from planner.solver.exact.ilp import solve
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import read_choices
from planner.strategy.costing import Costing
from planner.strategy.pinned import pins_for
from planner.strategy.problem import problem_of
from planner.strategy.update_costs import total_gradient_bytes


@pytest.mark.parametrize(("name", "sizes"), [("gpt", {}), ("gpt", {"tied": "false"}), ("lstm", {})])
def test_a_resized_model_costs_what_the_traced_one_does(
    name: str, sizes: dict[str, int | str]
) -> None:
    small, workload = traced(ask_for(name, vocab=33, **sizes))
    wanted = table_of(ask_for(name, vocab=64, **sizes), "a=2,b=2")
    found = vocabulary(small, workload)
    assert found is not None and found[0] == "vocab"
    large = resized(small, found[1], 64)
    assert large.dims.shapes == wanted.model.dims.shapes
    assert [v.shape for v in large.graph.values] == [v.shape for v in wanted.model.graph.values]
    assert total_gradient_bytes(large.graph) == total_gradient_bytes(wanted.model.graph)
    ours = build_cost_table(large, wanted.costing, pins_for(large, mesh_of("a=2,b=2"), ()))
    assert all(np.array_equal(a, b) for a, b in zip(ours.costs, wanted.costs, strict=True))
    assert ours.pairs.keys() == wanted.pairs.keys()
    assert all(np.array_equal(ours.pairs[key], wanted.pairs[key]) for key in ours.pairs)
    choices = read_choices(ours, solve(problem_of(ours)).choice)
    programs = [
        lower(m, mesh_of("a=2,b=2"), choices, wanted.costing) for m in (large, wanted.model)
    ]
    assert memory_by_category(programs[0]) == memory_by_category(programs[1])
    assert [(i.id, i.time) for i in programs[0].instructions] == [
        (i.id, i.time) for i in programs[1].instructions
    ]


def test_models_without_a_vocabulary_have_none_to_pad() -> None:
    assert vocabulary(*traced(ask_for("mlp"))) is None
    assert vocabulary(*traced(ask_for("cnn"))) is None


def measured(slow: float) -> Cluster:
    """Two devices on which products with a side of 33 were measured, and take `slow` times what
    those with 64 do."""
    cluster = load_cluster("cpu", num_devices=2)
    costing = Costing(cluster, (2,), "adam", 1.0)
    assert costing.sizes == (2,)
    rows = []
    for side, times in ((33, slow), (64, 1.0), (17, slow), (32, 1.0)):
        for m, n, k in (
            (32, side, 16),
            (32, 16, side),
            (side, 16, 32),
            (64, side, 16),
            (64, 16, side),
            (side, 16, 64),
        ):
            rows.append(GemmRow(batch=1, m=m, n=n, k=k, dtype="float64", seconds=1e-3 * times))
    return replace(cluster, device=replace(cluster.device, gemm_table=tuple(rows)))


def planned_on(cluster: Cluster) -> Found:
    return search(ask_for("gpt", 2, vocab=33), cluster, mesh=mesh_of("dp=2"))


def test_what_pays_is_offered_and_is_what_planning_it_gives() -> None:
    cluster = measured(slow=20.0)
    found = planned_on(cluster)
    offered = found.plan.summary["padding"]
    assert offered["setting"] == "vocab=64"
    really = search(ask_for("gpt", 2, vocab=64), cluster, mesh=mesh_of("dp=2")).plan.summary[
        "step_time_s"
    ]
    assert offered["step_time_s"] == pytest.approx(really, rel=1e-9)
    assert really < found.plan.summary["step_time_s"]
    text = str(report(found.plan, {}))
    assert "--set vocab=64 would make the step" in text
    assert '"padding"' in plan_text(found.plan)


def test_what_does_not_pay_is_not_offered() -> None:
    """Costs never fall with a size, but where measurements say so."""
    found = planned_on(load_cluster("cpu", num_devices=2))
    assert "padding" not in found.plan.summary
    assert "would make the step" not in str(report(found.plan, {}))
    model, workload = traced(ask_for("gpt", 2, vocab=33))
    atom = vocabulary(model, workload)
    assert atom is not None
    costing = found.candidates[0].proposal.table.costing
    assert list(cheaper_sizes(found.model, atom[1], found.candidates[0].choices, costing)) == []
