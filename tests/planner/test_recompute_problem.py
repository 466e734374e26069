"""Sharding and what runs again in backward as one problem: its optimum is that of trying all
strategies and modes, its objective that of the whole graph, its memory near the program's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from small_plans import ask_for, chosen_at_random, mesh_of, traced
from torch import Tensor, nn

import planner.predict.footprint
import planner.search.bounds_in_memory as bounds_in_memory
from cost_models.cluster import load_cluster
from planner.lowering.lower import lower
from planner.plans.models import modelled
from planner.predict.predict import memory_by_category
from planner.search.bounds import MeshBound
from planner.search.budget import Budget
from planner.search.fitting import by_layer, fitting
from planner.search.proposals import Candidate, Proposer
from planner.solver.exact.ilp import solve
from planner.solver.problem.pairs import completed
from planner.solver.problem.problem import Problem
from planner.solver.problem.solution import Solution
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import read_choices, recost
from planner.strategy.cost_table import CostTable
from planner.strategy.costing import Costing
from planner.strategy.modes import mode_faults
from planner.strategy.pins import recompute_pins
from planner.strategy.problem import problem_of
from planner.strategy.recompute import Recompute
from planner.strategy.strategies import AGAIN, Option, Strategy
from planner.strategy.traced_model import Model, Pins
from planner.strategy.untied import untied
from planner.strategy.update_costs import total_gradient_bytes
from planner.trace.trace import trace
from planner.workload.ask import Ask, build


@pytest.fixture(autouse=True)
def kernels_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner.predict.footprint, "workspace", lambda *_, **__: 0)


WHOLE, SPLIT = Option("whole"), ("aten.tanh.default", "aten.sin.default")


def table_of(model: Model, mesh: str = "a=1", *, pins: Pins | None = None) -> CostTable:
    """The table with modes."""
    sizes = mesh_of(mesh).sizes
    cluster = load_cluster("cpu", num_devices=mesh_of(mesh).num_devices)
    costing = Costing(cluster, sizes, "adamw", total_gradient_bytes(model.graph))
    return build_cost_table(model, costing, pins or Pins(), recompute=Recompute(model))


@cache
def table(name: str, mesh: str) -> CostTable:
    """On one device every op is whole, so that only modes are left."""
    sizes = {"layers": 4} if name in ("gpt", "llama") else {}
    whole = Pins(op=lambda node, axis, option: option == WHOLE)
    return table_of(traced(ask_for(name, **sizes))[0], mesh, pins=whole if mesh == "a=1" else None)


# ------------------------------------------------------------------------------------ random models


class Random(nn.Module):
    """Three random ops, one after another, each on results of those before it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = seed
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(8, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rng, made = random.Random(self.random), [x @ self.weights[0]]
        for _ in range(3):
            a, b = rng.choice(made), rng.choice(made)
            kind = rng.randrange(5)
            made.append(
                (a @ self.weights[1], torch.tanh(a), torch.exp(a), a * b, a + torch.sin(b))[kind]
            )
        out: Tensor = sum(made[1:], made[0]) @ self.weights[2]
        return out


def random_model(seed: int, batch: int = 4) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Random(seed), (torch.randn(batch, 8), torch.randn(batch, 8)), nn.functional.mse_loss


random_0, random_1, random_2, random_3 = (partial(random_model, seed) for seed in range(4))


def random_table(seed: int, mesh: str) -> CostTable:
    """Two kinds of op may be split; all others, and parameters, are whole."""
    ask = Ask(
        model=f"{__file__}:random_{seed}",
        batch=4,
        seq=None,
        settings={},
        dtype="float64",
        num_devices=1,
    )
    pins = Pins(
        op=lambda node, axis, option: (
            option == WHOLE or (mesh != "a=1" and node.op in SPLIT and option == Option("split", 0))
        ),
        parameter=lambda parameter, axis, option: option == WHOLE,
    )
    return table_of(modelled(trace(partial(build, ask), ask.model)), mesh, pins=pins)


def everything(table: CostTable) -> Iterator[tuple[int, ...]]:
    """All choices of strategies and modes, and of the layouts of hubs."""
    yield from itertools.product(*(range(len(costs)) for costs in table.costs))


@pytest.mark.parametrize(("seed", "mesh"), [(0, "a=1"), (1, "a=1"), (2, "a=2"), (3, "a=2")])
def test_the_best_of_all_strategies_and_modes_is_found(seed: int, mesh: str) -> None:
    """All are tried. Their costs are those of walking the graph, and what contradicts itself does
    so by the rules of lowering."""
    table = random_table(seed, mesh)
    problem = problem_of(table, limit=1e18)
    legal: list[tuple[float, float]] = []
    for choice in everything(table):
        choices = read_choices(table, choice)
        if not [*mode_faults(table.model, choices.strategies)]:
            cost = recost(table.model, table.costing, choices)
            legal.append((cost, float(problem.peak(completed(problem, choice)))))
        else:
            assert problem.cost(completed(problem, choice)) == float("inf")
    peaks = sorted({peak for _, peak in legal})
    assert len(legal) > 8 and len(peaks) > 2
    for peak in peaks[:: max(1, len(peaks) // 6)]:
        found = solve(replace(problem, limit=peak))
        best = min(cost for cost, other in legal if other <= peak)
        assert found.objective == pytest.approx(best, rel=1e-9)


# --------------------------------------------------------------------------- objective and memory


@pytest.mark.parametrize(("name", "mesh"), [("gpt", "a=4"), ("lstm", "a=2,b=2"), ("llama", "a=4")])
def test_recost_equals_the_objective(name: str, mesh: str) -> None:
    found = table(name, mesh)
    for overlapped in (0.0, 0.7):
        problem = problem_of(found, overlapped=overlapped)
        for seed in range(3):
            choice = chosen_at_random(problem, seed)
            choices = read_choices(found, choice)
            assert any(s.mode == AGAIN for s in choices.strategies.values())
            assert not [*mode_faults(found.model, choices.strategies)]
            again = recost(found.model, found.costing, choices, overlapped=overlapped)
            assert again == pytest.approx(problem.cost(choice), rel=1e-12)


def program_peak(table: CostTable, strategies: dict[int, Strategy], choice: tuple[int, ...]) -> int:
    choices = replace(read_choices(table, choice), strategies=strategies)
    mesh = mesh_of(",".join(f"{'abc'[i]}={n}" for i, n in enumerate(table.costing.sizes)))
    return sum(memory_by_category(lower(table.model, mesh, choices, table.costing)).values())


@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "moe"])
def test_a_tighter_limit_costs_more_and_its_program_holds_less(name: str) -> None:
    """A loose limit lets nothing run again. The problem's memory is near the program's: the chains
    that an op runs again for others are counted from its own reading on."""
    found = table(name, "a=1")
    free = solve(problem_of(found))
    assert all(s.mode != AGAIN for s in read_choices(found, free.choice).strategies.values())
    wide = problem_of(found, limit=1e18)
    whole = wide.peak(completed(wide, free.choice))
    costs = []
    for share in (1.01, 0.9, 0.8, 0.7):
        problem = replace(wide, limit=share * whole)
        solution = solve(problem)
        costs.append(solution.objective)
        choices = read_choices(found, solution.choice)
        assert not [*mode_faults(found.model, choices.strategies)]
        ratio = program_peak(found, choices.strategies, solution.choice) / problem.peak(
            solution.choice
        )
        assert 0.97 <= ratio <= 1.08, (share, ratio)
    assert costs == sorted(costs) and costs[0] == free.objective < costs[1]


# --------------------------------------------------------------------------------- layer by layer


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_layers_need_not_run_the_same_again(name: str) -> None:
    """Under a limit between those of two tied choices, modes by layer cost less, and what they save
    is what `recost` finds."""
    found = table(name, "a=1")
    wide = problem_of(found, limit=1e18)
    whole = wide.peak(completed(wide, solve(wide).choice))
    limit = 0.91 * whole
    tied = solve(replace(wide, limit=limit)).choice[: len(found.costs)]
    own = untied(found, tied, limit)
    assert own.problem.peak(own.tied) == pytest.approx(wide.peak(completed(wide, tied)))
    better = solve(own.problem, guess=own.tied)
    choices = read_choices(found, tied)
    modes = {**choices.strategies, **own.strategies(better.choice)}
    assert not [*mode_faults(found.model, modes)]
    saved = own.problem.cost(own.tied) - better.objective
    before, after = (
        recost(found.model, found.costing, c) for c in (choices, replace(choices, strategies=modes))
    )
    assert saved > 0 and before - after == pytest.approx(saved, rel=1e-9)
    assert program_peak(found, modes, tied) <= 1.08 * limit


@pytest.mark.parametrize("share", [1.0, 0.75])
def test_a_search_runs_ops_again_only_if_memory_binds(share: float) -> None:
    ask = ask_for("gpt", 1, dtype="float32", layers=6)
    found = trace(partial(build, ask), ask.model)
    cluster = load_cluster("dgx-h100", num_devices=1)
    proposer = Proposer(ask, modelled(found), found.workload, cluster, ())
    free = proposer.candidate(proposer.proposals(mesh_of("a=1"))[0], whole=True)
    proposer.capacity = share * free.prediction.total_memory_bytes
    made = by_layer(proposer, fitting(proposer, free))
    again = [s for s in made.choices.strategies.values() if s.mode == AGAIN]
    assert made.fits(proposer.capacity) and bool(again) == (share < 1.0)
    if share == 1.0:
        assert made == free
    else:
        assert made.prediction.step_time_s > free.prediction.step_time_s
        tied: Candidate = fitting(proposer, free)
        assert made.prediction.step_time_s <= tied.prediction.step_time_s


def test_modes_that_pins_decide_are_not_sought_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program would only be made and simulated once more."""
    ask = ask_for("gpt", 1, dtype="float32")
    found = trace(partial(build, ask), ask.model)
    cluster, pins = load_cluster("dgx-h100", num_devices=1), recompute_pins("full")
    proposer = Proposer(ask, modelled(found), found.workload, cluster, pins)
    made = proposer.candidate(proposer.proposals(mesh_of("a=1"))[0], whole=True)
    assert made.proposal.table.may_run_again
    monkeypatch.delattr(Proposer, "with_choices")
    assert by_layer(proposer, made) is made


# ---------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "moe", "t5"])
def test_what_is_held_at_the_turn_is_no_more_than_the_program_holds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of plans within limits on one device, and of the best plan on four: else the bound of plans
    that fit would be none."""
    monkeypatch.setattr(bounds_in_memory, "SMALL", 0)
    shares = []
    for mesh, limits in (("a=1", (1.0, 0.9, 0.8, 0.7)), ("a=4", (2.0,))):
        found = table(name, mesh)
        wide, held = problem_of(found, limit=1e18), bounds_in_memory.held_at_turn(found)
        whole = wide.peak(completed(wide, solve(problem_of(found)).choice))
        for limit in limits:
            problem = replace(wide, limit=limit * whole) if limit < 2 else problem_of(found)
            choice = solve(problem).choice[: len(found.costs)]
            least = sum(float(nbytes[choice[n]]) for n, nbytes in held.items())
            choices = read_choices(found, choice)
            shares.append(least / program_peak(found, choices.strategies, choice))
    assert max(shares) <= 1.0 and min(shares) > 0.3, shares


def test_the_bound_of_plans_that_fit_is_below_the_best_of_them() -> None:
    """And above that of all plans, if memory binds."""
    ask = ask_for("gpt", 1, dtype="float32", layers=6)
    found = trace(partial(build, ask), ask.model)
    cluster = load_cluster("dgx-h100", num_devices=1)
    proposer = Proposer(ask, modelled(found), found.workload, cluster, ())
    free = proposer.candidate(proposer.proposals(mesh_of("a=1"))[0], whole=True)
    known = {free.mesh: MeshBound(free.proposal.table, free.proposal.solution.choice)}
    bounds = []
    for share in (1.0, 0.8, 0.7):
        proposer.capacity = share * free.prediction.total_memory_bytes
        best = by_layer(proposer, fitting(proposer, free))
        assert best.fits(proposer.capacity)
        bounds.append(bounds_in_memory.bound_of_fitting(proposer, known))
        assert bounds[-1] <= best.prediction.step_time_s
    assert bounds == sorted(bounds)


def test_the_bound_of_plans_that_fit_is_sought_in_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No problem on the way may take more than half of it."""
    ask = ask_for("mlp", 1)
    found = trace(partial(build, ask), ask.model)
    cluster = load_cluster("cpu", num_devices=1)
    budget = Budget.start(6.0, lambda: 0.0)
    proposer = Proposer(ask, modelled(found), found.workload, cluster, (), budget=budget)
    limits = []
    real = bounds_in_memory.solve

    def noted(problem: Problem, **options: Any) -> Solution:
        limits.append(options.get("time_limit"))
        return real(problem, **options)

    monkeypatch.setattr(bounds_in_memory, "solve", noted)
    free = proposer.proposals(mesh_of("a=1"))[0]
    known = {free.mesh: MeshBound(free.table, free.solution.choice)}
    bounds_in_memory.bound_of_fitting(proposer, known)
    assert len(limits) > 1 and set(limits) == {3.0}
