"""Ops without a number of their own are tied by what they stand between: not where they differ,
and without losing the best plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pulp
import pytest
import torch
from small_plans import ask_for, table_of, traced
from torch import Tensor, nn
from torch.nn import functional as F

from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Problem
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import read_choices, recost
from planner.strategy.problem import problem_of
from planner.strategy.traced_model import Model, Pins

Made = tuple[nn.Module, tuple[Tensor, ...], Callable[..., Tensor]]


class Chain(nn.Module):
    """Layers in a list; `step` says what stands between them."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def step(self, x: Tensor, layer: nn.Module, index: int) -> Tensor:
        return F.relu(layer(x))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = self.step(x, layer, index)
        return x


class Residual(Chain):
    def step(self, x: Tensor, layer: nn.Module, index: int) -> Tensor:
        return x + F.relu(layer(x))


class Reshaped(Chain):
    """Between layers the tensor is split by heads and put together in another order."""

    def step(self, x: Tensor, layer: nn.Module, index: int) -> Tensor:
        y = layer(x)
        return (y.view(y.shape[0], 4, -1).transpose(1, 2) * 2.0).reshape(y.shape[0], -1)


class Branching(Chain):
    """What layer 10 makes is read by a head, too."""

    def forward(self, x: Tensor) -> Tensor:
        aside = x
        for index, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            aside = x if index == 10 else aside
        return x + torch.tanh(aside)


class Dense(Chain):
    """A layer reads the sum of all before it: no two have the same readers."""

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for layer in self.layers:
            made.append(F.relu(layer(torch.stack(made).sum(0))))
        return made[-1]


class Shared(nn.Module):
    """One layer that runs many times, as a recurrent cell does."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.depth, self.cell = depth, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = torch.tanh(self.cell(x))
        return x


class Bare(nn.Module):
    """No modules inside: weights in a list."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(width, width)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = F.relu(x @ weight)
        return x


class Towers(nn.Module):
    """Two chains in a sequence: the paths of all ops have numbers, those between layers only the
    chain's."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.towers = nn.Sequential(Residual(depth, width), Residual(depth, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.towers(x)
        return out


KINDS: dict[str, type[nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "reshaped": Reshaped,
    "branching": Branching,
    "dense": Dense,
    "shared": Shared,
    "bare": Bare,
    "towers": Towers,
}


def made(kind: str, depth: int = 4, batch: int = 16, width: int = 16) -> Made:
    data = torch.randn(batch, width), torch.randn(batch, width)
    return KINDS[kind](depth, width), data, F.mse_loss


def model_of(kind: str, depth: int, **sizes: int) -> Model:
    return traced(ask_for("test_ties_by_place:made", kind=kind, depth=depth, **sizes))[0]


@pytest.mark.parametrize("kind", ["chain", "residual", "reshaped", "shared", "bare", "towers"])
def test_the_classes_do_not_grow_with_depth(kind: str) -> None:
    shallow, deep = model_of(kind, 10), model_of(kind, 30)
    assert len(deep.graph.nodes) > 2 * len(shallow.graph.nodes)
    assert len(deep.ties.nodes_of) == len(shallow.ties.nodes_of)
    assert len(deep.use_groups) == len(shallow.use_groups)


def test_what_is_read_by_other_ops_is_not_tied() -> None:
    """The ReLU that the head reads has a choice of its own; those before and after it are one
    class."""
    model = model_of("branching", 20)
    relus = [n.index for n in model.graph.nodes if n.op == "aten.relu.default"]
    number = [model.ties.node_class[index] for index in relus]
    assert number.count(number[10]) == 1
    assert number[4] == number[5] == number[9] == number[15]


def test_ops_with_unlike_readers_are_not_tied() -> None:
    """In a dense net no two values have as many readers."""
    model = model_of("dense", 6)
    relus = [n.index for n in model.graph.nodes if n.op == "aten.relu.default"]
    assert len({model.ties.node_class[index] for index in relus}) == len(relus)


def by_number(model: Model) -> Model:
    """The same model, what has no number of its own untied: an op of the chain has one choice,
    what stands between has many."""
    classes: dict[object, int] = {}
    members: dict[int, list[int]] = {}
    for node in model.graph.nodes:
        number = any(part.isdigit() for part in node.path.split("."))
        key = model.ties.node_class[node.index] if number else -1 - node.index
        members.setdefault(classes.setdefault(key, len(classes)), []).append(node.index)
    node_class = {index: number for number, nodes in members.items() for index in nodes}
    ties = replace(
        model.ties,
        node_class=tuple(node_class[i] for i in range(len(node_class))),
        nodes_of=tuple(map(tuple, members.values())),
    )
    return replace(model, ties=ties)


def least(problem: Problem) -> float:
    """The least cost by the textbook's integer program, of the whole problem as it is."""
    program = pulp.LpProblem("least", pulp.LpMinimize)
    at = [
        [program.add_variable(f"x_{n}_{i}", cat="Binary") for i in range(len(c))]
        for n, c in enumerate(problem.costs)
    ]
    terms = [
        cost * x
        for costs, xs in zip(problem.costs, at, strict=True)
        for cost, x in zip(costs.tolist(), xs, strict=True)
    ]
    for one in at:
        program += pulp.lpSum(one) == 1
    for number, edge in enumerate(problem.edges):
        rows, columns = edge.cost.shape
        pair = [
            [
                program.add_variable(f"y_{number}_{i}_{j}", 0, int(edge.cost[i, j] < float("inf")))
                for j in range(columns)
            ]
            for i in range(rows)
        ]
        for i in range(rows):
            program += pulp.lpSum(pair[i]) == at[edge.u][i]
        for j in range(columns):
            program += pulp.lpSum(row[j] for row in pair) == at[edge.v][j]
        terms += [
            float(edge.cost[i, j]) * pair[i][j]
            for i in range(rows)
            for j in range(columns)
            if 0 < edge.cost[i, j] < 1e9
        ]
    program += 1e6 * pulp.lpSum(terms)
    assert program.solve(pulp.HiGHS(msg=False, gapRel=1e-9)) == 1
    return float(pulp.value(program.objective)) / 1e6


@pytest.mark.parametrize(
    ("kind", "batch", "width"),
    [
        ("chain", 64, 512),
        ("residual", 64, 512),
        ("reshaped", 64, 512),
        ("branching", 8, 512),
        ("shared", 16, 64),
    ],
)
def test_tying_by_place_loses_nothing(kind: str, batch: int, width: int) -> None:
    """Where the batch is large against the weights, and where it is small: the best choice of
    the tied problem costs what the best of the problem with a choice for each op does, and that
    is what walking the whole graph finds."""
    ask = ask_for(
        "test_ties_by_place:made",
        kind=kind,
        depth=12 if kind == "branching" else 6,
        batch=batch,
        width=width,
    )
    found = table_of(ask, "a=2")
    assert max(map(len, found.model.ties.nodes_of)) >= 3
    problem = problem_of(found)
    best = solve(problem)
    assert best.status == "optimal"
    assert recost(found.model, found.costing, read_choices(found, best.choice)) == pytest.approx(
        best.objective, rel=1e-12
    )
    free = build_cost_table(by_number(found.model), found.costing, Pins())
    assert best.objective == pytest.approx(least(problem_of(free)), rel=1e-6)
