"""The bound on the step time: below every choice there is, near the best, and told as it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_plans import ask_for, chosen_at_random, mesh_of, table_of
from torch import Tensor, nn

from cost_models.cluster import load_cluster
from cost_models.machine import Cluster
from planner.graph.layout import PARTIAL_SUM, REPLICATE
from planner.lowering.lower import lower
from planner.predict.predict import predict
from planner.search.bounds import bound_problem, bounded
from planner.search.least import Least, Weights, weights_of
from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Problem
from planner.strategy.choices import read_choices
from planner.strategy.cost_table import CostTable
from planner.strategy.problem import problem_of
from planner.workload.ask import Ask


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def tiny(batch: int = 4) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    """A user's model of one product: this file is named as `FILE:tiny`."""
    return Tiny(), (torch.ones(batch, 4), torch.ones(batch)), lambda out, target: out.sum()


def every_choice(problem: Problem) -> Iterator[tuple[int, ...]]:
    """All choices of finite cost, node by node."""
    earlier: dict[int, list[tuple[int, np.ndarray]]] = {n: [] for n in range(len(problem.costs))}
    for edge in problem.edges:
        u, v = sorted((edge.u, edge.v))
        earlier[v].append((u, edge.cost if edge.u < edge.v else edge.cost.T))

    def extend(chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        node = len(chosen)
        if node == len(problem.costs):
            yield chosen
            return
        for index, cost in enumerate(problem.costs[node]):
            if np.isfinite(cost) and all(
                np.isfinite(table[chosen[u], index]) for u, table in earlier[node]
            ):
                yield from extend((*chosen, index))

    return extend(())


def step_of(table: CostTable, choice: tuple[int, ...], cluster: Cluster, mesh: str) -> float:
    program = lower(table.model, mesh_of(mesh), read_choices(table, choice), table.costing)
    return predict(program, cluster).step_time_s


def least_of(table: CostTable, choice: tuple[int, ...], weights: Weights) -> float:
    """The bound on the steps of all choices that differ from `choice` in their hubs alone."""
    problem, hubs = (
        bound_problem(table, Least(table.model, table.costing, weights)),
        set(table.hub_of.values()),
    )
    costs = []
    for node, cost in enumerate(problem.costs):
        others = np.arange(len(cost)) != choice[node]
        costs.append(cost if node in hubs else np.where(others, np.inf, cost))
    return solve(replace(problem, costs=tuple(costs))).bound


@pytest.mark.parametrize(
    ("hardware", "num_nodes", "batch"), [("dgx-h100", 2, 65536), ("cpu", 1, 64)]
)
def test_no_choice_of_a_small_model_is_below_the_bound(
    hardware: str, num_nodes: int, batch: int
) -> None:
    """All choices on two devices, lowered and simulated. Each costs at most its step in the
    bound's problem."""
    asked = Ask(
        model=f"{__file__}:tiny", batch=batch, seq=None, settings={}, dtype="float32", num_devices=2
    )
    cluster = load_cluster(hardware, num_devices=2, num_nodes=num_nodes)
    table = table_of(asked, "a=2", cluster=cluster)
    assert not table.hub_of
    problems = [
        bound_problem(table, Least(table.model, table.costing, weights))
        for weights in weights_of(table.costing)
    ]
    assert len(problems) == (1 if hardware == "cpu" else 2)
    steps = {}
    for choice in every_choice(problem_of(table)):
        steps[choice] = step_of(table, choice, cluster, "a=2")
        assert all(problem.cost(choice) <= steps[choice] * (1 + 1e-9) for problem in problems), (
            choice
        )
    assert len(steps) > 300
    best, worst = min(steps, key=steps.__getitem__), max(steps, key=steps.__getitem__)
    assert 0.3 * steps[best] < bounded([(table, best)], steps[best]) <= steps[best]
    assert bounded([(table, worst)], steps[worst]) <= steps[best], "whatever plan is told"


@pytest.mark.parametrize(
    ("model", "mesh", "hardware", "batch"),
    [
        ("gpt", "a=8,b=2", "dgx-h100", 256),
        ("lstm", "a=2,b=2", "cpu", 8),
        ("dropped", "a=4", "p3.16xlarge", 8),
    ],
)
def test_choices_at_random_are_not_below_the_bound(
    model: str, mesh: str, hardware: str, batch: int
) -> None:
    """The best choices under random costs, and the best by sum and bound: with whatever hubs,
    none costs more than its step."""
    num_devices = mesh_of(mesh).num_devices
    cluster = load_cluster(hardware, num_devices=num_devices)
    table = table_of(
        ask_for(model, num_devices, batch=batch, dtype="float32"), mesh, cluster=cluster
    )
    every = weights_of(table.costing)
    best = solve(problem_of(table)).choice
    choices = [best, *(chosen_at_random(problem_of(table), seed) for seed in range(2))]
    choices += [
        solve(bound_problem(table, Least(table.model, table.costing, weights))).choice
        for weights in every
    ]
    steps = {choice: step_of(table, choice, cluster, mesh) for choice in dict.fromkeys(choices)}
    for choice, step in steps.items():
        assert all(least_of(table, choice, weights) <= step * (1 + 1e-9) for weights in every), (
            choice
        )
    assert bounded([(table, best)], min(steps.values())) <= min(steps.values())


def test_what_may_be_merged_costs_the_less_of_alone_and_merged() -> None:
    """A gradient's reduction, of every size, against what a bucket of it and others takes; a
    large gather against itself alone."""
    cluster = load_cluster("dgx-h100", num_devices=8)
    costing = table_of(ask_for("mlp", 8), "a=8", cluster=cluster).costing
    model = table_of(ask_for("mlp", 8), "a=8", cluster=cluster).model
    least = Least(model, costing, Weights(1.0, (("node", 1.0),), (("node", 0.5),)))
    least.most = 2.0**33
    for numel in (2**10, 2**20, 2**26):
        nbytes, reduced = (
            4.0 * numel,
            least.layouts((numel,), 4, "reduced").cost((PARTIAL_SUM,), (REPLICATE,)),
        )
        alone = 0.5 * costing.messages.communication("all_reduce", (0,), nbytes)
        assert 0 < reduced <= alone
        for others in (nbytes, 2.0**28):
            bucket = nbytes + others
            whole = 0.5 * costing.messages.communication(
                "all_reduce", (0,), bucket
            ) + costing.messages.copying(bucket, 1)
            assert reduced <= whole * nbytes / bucket
    assert reduced > 0.5 * costing.messages.merged("all_reduce", (0,), nbytes, least.most) * (
        1 + 1e-3
    ), "copies count"
    large = least.layouts((2**26,), 4, "gathered").cost((0,), (REPLICATE,))
    assert large == 0.5 * costing.messages.communication("all_gather", (0,), 4.0 * 2**26)


def test_the_weights_count_no_moment_twice() -> None:
    """Of every set of streams that may be busy together, at the rates that the simulator gives
    them."""
    costing = table_of(
        ask_for("mlp", 16, batch=64), "a=2,b=8", cluster=load_cluster("dgx-h100", num_devices=16)
    ).costing
    overlap = costing.cluster.device.overlap
    assert len(weights_of(costing)) == 4 and 0 < overlap < 1
    for weights in weights_of(costing):
        waited, beside = dict(weights.waited), dict(weights.beside)
        assert set(waited) == set(beside) == {"node", "network"}
        for busy in itertools.chain.from_iterable(
            itertools.combinations(beside, k) for k in range(3)
        ):
            sent = sum(beside[link] for link in busy)
            assert sent <= 1 + 1e-12
            assert (weights.compute + sent) / ((2 - overlap) if busy else 1) <= 1 + 1e-12
            for link in waited:
                own = (waited[link] + beside[link]) / 2 if link in busy else waited[link]
                assert own + sum(beside[other] for other in busy if other != link) <= 1 + 1e-12


def test_a_bound_that_is_near_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(ask_for("mlp", 4), "a=4", cluster=load_cluster("dgx-h100", num_devices=4))
    best = solve(problem_of(table)).choice
    solved: list[Problem] = []
    monkeypatch.setattr(
        "planner.search.bounds.solve",
        lambda problem, **more: (solved.append(problem), solve(problem, **more))[1],
    )
    first = bounded([(table, best)], 1e-9)
    assert len(solved) == 1
    assert bounded([(table, best)], math.inf) >= first and len(solved) == 3
