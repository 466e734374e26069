"""Second runs that lead across layers: the best modes are those of trying all, and what one layer
leaves to another need not be held."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from small_plans import ask_for, mesh_of
from torch import Tensor, nn

import planner.search.bounds_in_memory as bounds_in_memory
from cost_models.cluster import load_cluster
from planner.plans.models import modelled
from planner.search.fitting import by_layer, fitting, rank
from planner.search.proposals import Proposer
from planner.solver.exact.ilp import solve
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import read_choices, recost
from planner.strategy.cost_table import CostTable
from planner.strategy.costing import Costing
from planner.strategy.modes import mode_faults
from planner.strategy.recompute import Recompute
from planner.strategy.strategies import ACROSS, SECOND, Option
from planner.strategy.traced_model import Pins
from planner.strategy.untied import Untied, untied
from planner.strategy.update_costs import total_gradient_bytes
from planner.trace.trace import trace
from planner.workload.ask import Ask, build


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(x @ self.weight)


class Stack(nn.Module):
    """Layers, each of which adds to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def stack(batch: int = 4) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Stack(), (torch.randn(batch, 8), torch.randn(batch, 8)), nn.functional.mse_loss


def table_of(ask: Ask, *, across: bool = False) -> CostTable:
    """The table with modes on one device, where every op is whole."""
    model = modelled(trace(partial(build, ask), ask.model))
    cluster, sizes = load_cluster("cpu", num_devices=1), mesh_of("a=1").sizes
    costing = Costing(cluster, sizes, "adamw", total_gradient_bytes(model.graph))
    whole = Pins(op=lambda node, axis, option: option == Option("whole"))
    return build_cost_table(model, costing, whole, recompute=Recompute(model, across=across))


@cache
def own(across: bool) -> tuple[CostTable, tuple[int, ...], Untied]:
    """The problem by layer of a plan in which nothing runs again."""
    table = table_of(replace(ask_for("mlp", 1), model=f"{__file__}:stack", settings={}))
    tied = tuple(0 for _ in table.costs)
    return table, tied, untied(table, tied, 1e18, across=across)


def test_the_best_modes_are_those_of_trying_all() -> None:
    table, tied, found = own(True)
    choices = read_choices(table, tied)
    free = recost(table.model, table.costing, choices)
    legal: list[tuple[float, float]] = []
    for choice in itertools.product(*(range(len(costs)) for costs in found.problem.costs)):
        modes = {**choices.strategies, **found.strategies(choice)}
        cost = found.problem.cost(choice)
        if [*mode_faults(table.model, modes)]:
            assert cost == float("inf")
        else:
            walked = recost(table.model, table.costing, replace(choices, strategies=modes))
            assert walked - free == pytest.approx(cost, rel=1e-9, abs=1e-15)
            legal.append((cost, float(found.problem.peak(choice))))
    peaks = sorted({peak for _, peak in legal})
    assert len(legal) > 100 and len(peaks) > 4
    for peak in peaks[:: len(peaks) // 5]:
        best = min(cost for cost, other in legal if other <= peak)
        solution = solve(replace(found.problem, limit=peak))
        assert solution.objective == pytest.approx(best, rel=1e-9, abs=1e-15)


def test_only_with_modes_across_layers_are_their_sums_made_again() -> None:
    """Without them the sum of every layer stays; with them the first alone, or its operands."""
    modes = [
        {s.mode for _, options in own(across)[2].options for s in options}
        for across in (False, True)
    ]
    assert ACROSS not in modes[0] and ACROSS in modes[1]
    least = []
    for across in (False, True):
        found = own(across)[2].problem
        turn = next(n.index for n in own(across)[0].model.graph.nodes if n.phase == "backward")
        choices = itertools.product(*(range(len(costs)) for costs in found.costs))
        legal = (choice for choice in choices if found.cost(choice) < float("inf"))
        least.append(min(float(found.memory(choice)[turn]) for choice in legal))
    one_sum = 8 * 8 * 8  # batch, width, bytes of a float64
    assert least[0] - least[1] == 3 * one_sum


@pytest.mark.parametrize("name", ["gpt", "bert", "t5"])
def test_a_tied_choice_holds_and_costs_what_it_does_without_modes_across(name: str) -> None:
    table = table_of(ask_for(name, 1))
    tied = tuple(0 for _ in table.costs)
    plain, wide = (untied(table, tied, 1e18, across=across) for across in (False, True))
    assert wide.problem.peak(wide.tied) == pytest.approx(plain.problem.peak(plain.tied))
    assert wide.problem.cost(wide.tied) == plain.problem.cost(plain.tied) == 0.0
    assert all(s.mode not in SECOND for s in wide.strategies(wide.tied).values())


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_the_bound_knows_of_second_runs_across_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the turn, what choices of its table hold at the least is no more than plans by layer do."""
    monkeypatch.setattr(bounds_in_memory, "SMALL", 0)
    ask = ask_for(name, 1)
    table, wide = table_of(ask), table_of(ask, across=True)
    least = [
        sum(float(nbytes.min()) for nbytes in bounds_in_memory.held_at_turn(one).values())
        for one in (wide, table)
    ]
    assert least[0] < least[1]
    found = untied(table, tuple(0 for _ in table.costs), 1e18, across=True).problem
    turn = next(n.index for n in table.model.graph.nodes if n.phase == "backward")
    lean = solve(replace(found, limit=0.0)).choice
    assert least[0] <= found.memory(lean)[turn]


@pytest.mark.parametrize(("share", "expected"), [(1.0, False), (0.82, True)])
def test_layers_run_again_across_only_if_that_is_faster(share: float, expected: bool) -> None:
    sizes = {"layers": 4, "width": 768, "heads": 12, "vocab": 32768, "positions": 1024, "seq": 1024}
    ask = ask_for("gpt", 1, batch=8, dtype="float32", compute="bfloat16", **sizes)
    found = trace(partial(build, ask), ask.model)
    cluster = load_cluster("dgx-h100", num_devices=1)
    proposer = Proposer(ask, modelled(found), found.workload, cluster, ())
    free = proposer.candidate(proposer.proposals(mesh_of("a=1"))[0], whole=True)
    proposer.capacity = share * free.prediction.total_memory_bytes
    tied = fitting(proposer, free)
    made = by_layer(proposer, tied)
    across = [s for s in made.choices.strategies.values() if s.mode == ACROSS]
    assert made.fits(proposer.capacity) and bool(across) == expected
    if expected:
        assert made.prediction.step_time_s < tied.prediction.step_time_s


def test_a_plan_that_cannot_fit_is_never_given_for_one_that_holds_more() -> None:
    """What is missing is what the leanest plan needs, however slow it is."""
    ask = ask_for("gpt", 1, dtype="float32")
    found = trace(partial(build, ask), ask.model)
    cluster = load_cluster("dgx-h100", num_devices=1)
    proposer = Proposer(ask, modelled(found), found.workload, cluster, ())
    slow = proposer.candidate(proposer.proposals(mesh_of("a=1"))[0], whole=True)
    held, step = slow.prediction.total_memory_bytes, slow.prediction.step_time_s
    proposer.capacity = 0.5 * held
    memory = {**slow.prediction.memory_bytes, "temporaries": held}
    fast = replace(
        slow, prediction=replace(slow.prediction, step_time_s=step / 2, memory_bytes=memory)
    )
    assert min(slow, fast, key=partial(rank, proposer)) is slow
    proposer.capacity = 4.0 * held
    assert min(slow, fast, key=partial(rank, proposer)) is fast
