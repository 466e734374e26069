"""What is recomputed, against torch's own partitioner of joint graphs, on one device.

    python benchmarks/partitioner.py [--models gpt2,llama,...] [--out FILE]

The planner's graph of a step becomes an FX graph; `torch._functorch.partitioners` chooses what it
saves for backward under `activation_memory_budget` 0.1 to 0.9, with each of its solvers and with our
seconds of every op as its runtime estimator. The same graph is then planned by our problem within
the memory of torch's choice: its peak, and, apart from that, the bytes that it saves at the turn from
forward to backward. Both are priced alike, by one walk over the graph (`joint_graph.py`): seconds of
the ops that must run again, and bytes held at every node, where an op runs again just before its
first reader in backward and what it makes is held until its last. A row a choice: peak and bytes
saved, torch's seconds, ours at the same peak and at the same bytes saved.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from joint_graph import Joint, Priced, Prices
from provenance import write_results

from cost_models.cluster import load_cluster
from planner.plans.models import modelled
from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Array
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.cost_table import CostTable
from planner.strategy.costing import Costing
from planner.strategy.recompute import Recompute
from planner.strategy.strategies import SECOND, Option
from planner.strategy.traced_model import Model, Pins
from planner.strategy.untied import Untied, untied
from planner.strategy.update_costs import total_gradient_bytes
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

#: Realistic shapes: model, batch and settings.
MODELS: dict[str, tuple[str, int, dict[str, str]]] = {
    "gpt2": ("gpt2", 8, {}),
    "llama": (
        "llama3-8b",
        2,
        {
            "layers": "4",
            "width": "1024",
            "heads": "16",
            "kv_heads": "4",
            "mlp": "3584",
            "seq": "2048",
        },
    ),
    "bert": ("bert-base", 16, {}),
    "vit": ("vit-base-16", 32, {}),
    "t5": ("t5-base", 8, {}),
}
BUDGETS = tuple(n / 10 for n in range(1, 10))
SOLVERS = ("dp", "greedy", "ilp")

#: Seconds for one of our problems. Most take less than two; other work on the machine must not
#: decide.
PATIENCE = 300.0


def table_of(model: Model) -> CostTable:
    costing = Costing(
        load_cluster("dgx-h100", num_devices=1), (1,), "adamw", total_gradient_bytes(model.graph)
    )
    whole = Pins(
        op=lambda node, axis, option: option == Option("whole"),
        parameter=lambda parameter, axis, option: option == Option("whole"),
    )
    return build_cost_table(model, costing, whole, recompute=Recompute(model))


def rows_of(name: str) -> Iterator[dict[str, Any]]:
    """A row for every budget and solver of torch's."""
    given, batch, settings = MODELS[name]
    ask = Ask(
        model=given,
        batch=batch,
        seq=None,
        settings=settings,
        dtype="float32",
        num_devices=1,
        compute="bfloat16",
    )
    model = modelled(trace(lambda: build(ask), ask.model))
    table = table_of(model)
    prices, first = Prices(table), tuple(0 for _ in table.costs)
    joint = Joint(model, prices)
    own = [untied(table, first, 1e30, across=across) for across in (False, True)]
    known: dict[frozenset[int], dict[str, Any]] = {}
    for solver in SOLVERS:
        for budget in BUDGETS:
            saved = frozenset(joint.saved(budget, solver))
            if saved not in known:
                known[saved] = _row(own, prices, prices.of(set(saved)))
            yield {"model": name, "solver": solver, "budget": budget, **known[saved]}


def _row(own: list[Untied], prices: Prices, theirs: Priced) -> dict[str, Any]:
    """Torch's choice, and ours within its peak and within what it saves."""
    of_layers, across = own
    rest = of_layers.problem.memory(of_layers.tied)
    rest = rest - prices.of(_saved(of_layers, prices, of_layers.tied)).held
    peak = float((theirs.held + rest).max())
    within = [found for one in own if (found := _ours(one, prices, rest, peak)) is not None]
    ours = min(within, key=lambda found: found.seconds, default=None)
    turn = _at_turn(across, prices, theirs.saved)
    return {
        "peak_bytes": peak,
        "saved_bytes": theirs.saved,
        "torch_s": theirs.seconds,
        "ours_s": None if ours is None else ours.seconds,
        "ours_peak_bytes": None if ours is None else float((ours.held + rest).max()),
        "ours_at_turn_s": None if turn is None else turn.seconds,
        "ours_saved_bytes": None if turn is None else turn.saved,
    }


def _ours(own: Untied, prices: Prices, rest: Array, peak: float) -> Priced | None:
    """Our fastest choice within a peak; None if there is none. The problem's limit is lowered as
    long as its choice, priced as torch's is, holds more."""
    limit = peak
    for _ in range(6):
        problem = replace(own.problem, limit=limit)
        solution = solve(problem, guess=own.tied, near=1e-3, time_limit=PATIENCE)
        if solution.status not in ("optimal", "feasible"):
            return None
        found = prices.of(_saved(own, prices, solution.choice))
        over = float((found.held + rest).max()) - peak
        if over <= 1e-6 * peak:
            return found
        limit -= over
    return None


def _at_turn(own: Untied, prices: Prices, nbytes: int) -> Priced | None:
    """Our fastest choice that saves at most some bytes at the turn, whatever it holds elsewhere;
    None if there is none."""
    turn = next(n.index for n in prices.model.graph.nodes if n.phase == "backward")
    usages = tuple(
        replace(usage, spans=((0, 1, 1.0),))
        for usage in own.problem.usages
        if any(start < turn < end for start, end, _ in usage.spans)
    )
    problem = replace(own.problem, usages=usages, horizon=1, base=None)
    fixed = prices.of(_saved(own, prices, own.tied)).saved - problem.peak(own.tied)
    problem = replace(problem, limit=max(0.0, nbytes - fixed))
    solution = solve(problem, guess=own.tied, near=1e-3, time_limit=PATIENCE)
    if solution.status not in ("optimal", "feasible"):
        return None
    found = prices.of(_saved(own, prices, solution.choice))
    return found if found.saved <= nbytes * (1 + 1e-6) else None


def _saved(own: Untied, prices: Prices, choice: tuple[int, ...]) -> set[int]:
    """The values that are kept: results of all ops of forward that do not run again."""
    modes = {n: s.mode for n, s in own.strategies(choice).items()}
    return {
        value
        for node in prices.model.graph.nodes
        if node.phase == "forward" and modes.get(node.index) not in SECOND
        for value in node.results
        if value is not None
    }


def _summary(rows: list[dict[str, Any]], ours: str) -> dict[str, Any]:
    """Our time recomputed over torch's: of all rows, and in the median of each model's."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row[ours] is not None and row["torch_s"]:
            shares.setdefault(row["model"], []).append(row[ours] / row["torch_s"])
    every = [share for some in shares.values() for share in some]
    return {
        "rows": len(rows),
        "without_ours": sum(row[ours] is None for row in rows),
        "most": max(every),
        "median": statistics.median(every),
        "median_by_model": {name: statistics.median(some) for name, some in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for name in given.models.split(","):
        for row in rows_of(name):
            rows.append(row)
            print(json.dumps(row), flush=True)
    summary = {
        "at_the_same_peak": _summary(rows, "ours_s"),
        "at_the_same_bytes_saved": _summary(rows, "ours_at_turn_s"),
    }
    print(json.dumps(summary))
    write_results(given, summary=summary, rows=rows)


if __name__ == "__main__":
    main()
