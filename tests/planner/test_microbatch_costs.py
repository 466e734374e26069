"""Costs and memory of a step in microbatches."""

from __future__ import annotations

import math

import pytest
from small_plans import ask_for, chosen_at_random, table_of

from planner.graph.sections import AFTER, is_accumulate, sections_of
from planner.search.bounds import bound_problem
from planner.search.least import Least, weights_of
from planner.solver.exact.ilp import solve
from planner.solver.problem.pairs import peak_with_pairs
from planner.solver.problem.problem import Choice
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import read_choices, recost
from planner.strategy.cost_table import CostTable
from planner.strategy.problem import problem_of, with_memory
from planner.strategy.recompute import Recompute
from planner.strategy.strategies import AGAIN
from planner.strategy.traced_model import Pins

CASES = [("gpt", "dp=2,tp=2"), ("lstm", "dp=4"), ("moe", "dp=2"), ("nested", "dp=2")]


@pytest.mark.parametrize(("model", "mesh"), CASES)
def test_the_objective_is_that_of_the_walk(model: str, mesh: str) -> None:
    table = table_of(ask_for(model, microbatches=2), mesh)
    problem = problem_of(table)
    for seed in range(4):
        choice = chosen_at_random(problem, seed)
        again = recost(table.model, table.costing, read_choices(table, choice))
        assert again == pytest.approx(problem.cost(choice), rel=1e-12)


def test_the_objective_with_second_runs_is_that_of_the_walk() -> None:
    """Ops may run again in the backward of every microbatch, which some choices have them do."""
    plain = table_of(ask_for("mlp", microbatches=2), "dp=2")
    table = build_cost_table(plain.model, plain.costing, Pins(), recompute=Recompute(plain.model))
    problem, modes = problem_of(table), set()
    for seed in range(4):
        choices = read_choices(table, choice := chosen_at_random(problem, seed))
        modes |= {s.mode for s in choices.strategies.values()}
        again = recost(table.model, table.costing, choices)
        assert again == pytest.approx(problem.cost(choice), rel=1e-12)
    assert AGAIN in modes


@pytest.mark.parametrize(("model", "mesh"), [("gpt", "dp=2,tp=2"), ("lstm", "dp=2")])
def test_what_runs_in_every_microbatch_counts_as_often(model: str, mesh: str) -> None:
    """Without ties and hubs: op by op, with a loop over the microbatches."""
    table = table_of(ask_for(model, microbatches=4), mesh)
    graph, ops = table.model.graph, table.costing.ops
    choices = read_choices(table, chosen_at_random(problem_of(table), 1))
    once = recost(table.model, table.costing, choices) - sum(
        table.model.runs[n] * ops.cost(graph.nodes[n], table.model.dims.ops[n], s)
        for n, s in choices.strategies.items()
    )
    seconds = 0.0
    for microbatch in range(4):
        for node, section in zip(graph.nodes, sections_of(graph), strict=True):
            adds = is_accumulate(node)
            if node.index not in choices.strategies or (adds and microbatch == 0):
                continue
            if section != AFTER or microbatch == 3:
                strategy = choices.strategies[node.index]
                seconds += ops.cost(node, table.model.dims.ops[node.index], strategy)
    assert recost(table.model, table.costing, choices) == pytest.approx(once + seconds, rel=1e-12)


def best(table: CostTable, limit: float = math.inf) -> Choice:
    return solve(problem_of(table, limit=limit)).choice


def test_gradients_are_reduced_once_or_gathered_in_pieces() -> None:
    """Data parallel, the sum of the whole step is reduced; with parameters in pieces (ZeRO-3) the
    sum is a piece, reduced in every microbatch, because the whole would be held."""
    ddp = table_of(ask_for("gpt", 2, microbatches=4), "dp=2", ("*=ddp", "*=data"))
    sums = [n for n in ddp.model.graph.nodes if is_accumulate(n) and n.phase == "update"]
    choices = read_choices(ddp, best(ddp))
    assert all(choices.strategies[n.index].results[0] == (-2,) for n in sums)
    pieces = table_of(ask_for("gpt", 2, microbatches=4), "dp=2", ("*=zero3", "*=data"))
    assert peak(pieces, best(pieces)) < peak(ddp, best(ddp))
    tight = best(pieces, limit=0.9 * peak(pieces, best(pieces)))
    choices = read_choices(pieces, tight)
    assert any(choices.strategies[n.index].results[0][0] >= 0 for n in sums)


def peak(table: CostTable, choice: Choice) -> float:
    problem, pairs = with_memory(table, problem_of(table), 1e12)
    return float(peak_with_pairs(problem, pairs, choice))


def test_a_sum_is_held_for_the_whole_step() -> None:
    """On one device, before the first op of a microbatch, all gradients are held beside the
    parameters and the optimizer's state; still it is less than the whole batch's activations."""
    table = table_of(ask_for("gpt", 1, microbatches=4), "dp=1")
    problem, _ = with_memory(table, problem_of(table), 1e12)
    held = sum(
        times * usage.nbytes[0]
        for usage in problem.usages
        for start, end, times in usage.spans
        if start <= 0 < end
    )
    parameters = 8 * table.model.graph.num_parameters
    assert 4 * parameters <= held < 4.1 * parameters  # two states of Adam
    whole = table_of(ask_for("gpt", 1), "dp=1")
    assert peak(table, best(table)) < peak(whole, best(whole))
    assert table.model.whole is not None
    assert table.model.whole.digest() == whole.model.graph.digest() != table.model.graph.digest()


def test_the_bound_counts_what_runs_in_every_microbatch() -> None:
    """On one device nothing is sent: the bound is the seconds of all ops, views and the update."""
    table = table_of(ask_for("gpt", 1, microbatches=4), "dp=1")
    model, ops = table.model, table.costing.ops
    least = Least(model, table.costing, weights_of(table.costing)[0])
    bound = solve(bound_problem(table, least)).objective
    choices = read_choices(table, best(table))
    seconds = sum(
        model.runs[n] * ops.simulated(model.graph.nodes[n], model.dims.ops[n], s)
        for n, s in choices.strategies.items()
        if n not in model.may_be_joined
    )
    views = sum(
        1 if section == AFTER else 4
        for node, section in zip(model.graph.nodes, sections_of(model.graph), strict=True)
        if model.dims.ops[node.index].signature.view
    )
    update = bound - seconds - ops.view() * model.num_views
    assert 0 < model.num_views <= views
    assert 0 < update < 0.2 * bound
