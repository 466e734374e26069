"""A plan's model, choices and program, made again from its file.

Plan -> Model, Choices, Program. Every rank gets the plan's file, traces the model again
(`model_of`), checks the hash and lowers the choices. No rank solves again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cost_models.errors import BadPlan
from cost_models.machine import Cluster
from planner.dims.roots import is_view
from planner.graph.graph import Graph
from planner.graph.layout import Layout, local_sizes
from planner.lowering.lower import lower
from planner.plans.models import modelled
from planner.plans.plan import Plan
from planner.plans.plan_choices import option_text
from planner.plans.plan_file import write_plan
from planner.plans.retrace import HASH_SEEDS, SET_ORDER, digest_elsewhere
from planner.predict.depth import Shallow, fits_together
from planner.program.program import Program
from planner.state.hash_seed import chosen
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.modes import mode_faults
from planner.strategy.strategies import KEPT, Strategy, op_strategies, parameter_strategies
from planner.strategy.traced_model import Model
from planner.strategy.update_costs import total_gradient_bytes
from planner.trace.trace import trace
from planner.trace.traced import Traced
from planner.workload.ask import Ask, build
from planner.workload.workload import Workload

__all__ = [
    "choices_of",
    "costing_of",
    "graph_of",
    "model_of",
    "program_of",
    "shallow_of",
    "traced_of",
    "workload_of",
]


def shallow_of(traced: Traced, model: Model, ask: Ask | None = None) -> Shallow | None:
    """The model at smaller depths, if it is deep and its trace has them."""
    models = [modelled(replace(traced, graph=graph), ask) for _, graph in traced.shallow]
    if len(models) != 2 or not all(fits_together(model, shallow) for shallow in models):
        return None
    return Shallow(
        models=(models[0], models[1]),
        depths=(traced.shallow[0][0], traced.shallow[1][0]),
        depth=traced.depth,
    )


def workload_of(plan: Plan) -> Workload:
    """The workload that the plan is for, built again (under the caller's seed, or under fake
    tensors)."""
    return build(plan.ask)


def graph_of(plan: Plan, seed: int = 0) -> Graph:
    """The graph of the plan's model, traced again; not checked against the plan's hash."""
    return trace(lambda: workload_of(plan), plan.ask.model, whole=True, seed=seed).graph


def model_of(plan: Plan, seed: int = 0) -> Model:
    """The plan's model, traced again under a seed. Raises BadPlan if its graph is not the one that
    the plan was made for."""
    return modelled(traced_of(plan, seed), plan.ask)


def traced_of(plan: Plan, seed: int = 0) -> Traced:
    """The plan's model and workload, traced again and checked as in `model_of`."""
    traced = trace(lambda: workload_of(plan), plan.ask.model, whole=True, seed=seed)
    found = traced.graph.digest()
    if found != plan.graph_hash:
        raise BadPlan(
            f"the plan was made for another graph of {plan.ask.model!r} (hash "
            f"{plan.graph_hash[:12]}, now {found[:12]}): {_why_another(plan, found, seed)}"
        )
    return traced


def _why_another(plan: Plan, found: str, seed: int) -> str:
    """Why a graph of the plan's model differs from the plan's, and what to do."""
    if seed and graph_of(plan).digest() == plan.graph_hash:
        return (
            "the model draws random numbers that decide what it computes; it was planned with "
            "seed 0 "
            f"and run with {seed}"
        )
    if graph_of(plan, seed).digest() != found:
        return (
            "the model computes something else each time it is built (the time, random numbers "
            "without a seed, the order of a set of objects): make it the same each time"
        )
    here = chosen()
    if (not here or plan.hash_seed != here) and _order_differs(plan, found, here):
        return SET_ORDER
    return "the model's code or torch has changed; plan again"


def _order_differs(plan: Plan, found: str, here: str) -> bool:
    """Whether processes with other hash seeds than `here` trace another graph."""
    with tempfile.TemporaryDirectory(prefix="shardwright-") as folder:
        write_plan(plan, Path(folder) / "plan.json")
        others = (
            digest_elsewhere(Path(folder) / "plan.json", hash_seed)
            for hash_seed in HASH_SEEDS
            if hash_seed != here
        )
        return any(other not in ("", found) for other in others)


def costing_of(plan: Plan, model: Model, cluster: Cluster | None = None) -> Costing:
    """Costs under the plan's mesh, on its own hardware or on another cluster."""
    training = plan.training
    return Costing(
        cluster or plan.hardware.cluster(),
        plan.mesh.sizes,
        training.optimizer,
        total_gradient_bytes(model.graph),
        clip_norm=training.clip_norm,
        clip_epsilon=training.clip_epsilon,
        formats=plan.ask.formats,
    )


def choices_of(plan: Plan, model: Model) -> Choices:
    """The plan's choices for every node of its model."""
    if len(plan.options) != len(model.ties.nodes_of) or len(plan.parameters) != len(
        model.ties.parameters_of
    ):
        raise BadPlan(
            "the plan has choices for a different number of ops than the model has; plan again"
        )
    sizes, strategies = plan.mesh.sizes, {}
    for node in model.graph.nodes:
        options = plan.options[model.ties.node_class[node.index]]
        if is_view(model.dims, node.index):
            continue
        if options is None or len(options) != len(sizes):
            raise BadPlan(
                f"the plan has no choice for {node.op} in {node.path!r} on every axis of its mesh; plan again"
            )
        found = op_strategies(
            model.dims.ops[node.index],
            sizes,
            lambda axis, o, options=options: o == options[axis],  # type: ignore[misc]
        )
        if len(found) != 1:
            raise BadPlan(
                f"the plan's choice {[option_text(o) for o in options]} does not exist for {node.op} in {node.path!r}"
            )
        strategies[node.index] = replace(found[0], mode=plan.modes.get(node.index, KEPT))
    _check_modes(plan, model, strategies)
    parameters = []
    for parameter, number in zip(model.graph.parameters, model.ties.parameter_class, strict=True):
        flat = model.dims.flat(parameter.value)
        options = plan.parameters[number]
        if len(options) != len(sizes):
            raise BadPlan(
                f"the plan has no choice for parameter {parameter.name!r} on every axis of its mesh; plan again"
            )
        kept = parameter_strategies(
            flat,
            sizes,
            lambda axis, o, options=options: o == options[axis],  # type: ignore[misc]
        )
        if len(kept) != 1:
            raise BadPlan(
                f"the plan's choice {[option_text(o) for o in options]} does not exist for parameter {parameter.name!r}"
            )
        parameters.append(kept[0])
    hubs = {(value, phase): layout for value, phase, layout in plan.hubs}
    for (value, _), layout in hubs.items():
        _check_layout(model, value, layout, sizes)
    return Choices(
        strategies=strategies,
        parameters=tuple(parameters),
        hubs=hubs,
        bucket=plan.bucket_bytes,
        recast=plan.recast,
    )


def _check_modes(plan: Plan, model: Model, strategies: Mapping[int, Strategy]) -> None:
    for node in plan.modes:
        if node not in strategies:
            raise BadPlan(f"the plan has a mode for op {node}, which has no choice; plan again")
    for fault in mode_faults(model, strategies) if plan.modes else ():
        raise BadPlan(f"the plan's modes contradict each other ({fault}); plan again")


def _check_layout(model: Model, value: int, layout: Layout, sizes: tuple[int, ...]) -> None:
    known = 0 <= value < len(model.dims.shapes)
    flat = model.dims.flat(value) if known else ()
    if (
        not known
        or len(layout) != len(sizes)
        or max(layout) >= len(flat)
        or local_sizes(flat, layout, sizes) is None
    ):
        raise BadPlan(f"the plan's layout {layout} does not divide value {value}; plan again")


def program_of(
    plan: Plan, cluster: Cluster | None = None, *, rank: int = 0, seed: int = 0
) -> Program:
    """The program that `rank` of the plan runs, timed on the plan's hardware or, if given, on
    another cluster. Rank 0 holds the largest shards. `seed` is that of the run."""
    model = model_of(plan, seed)
    timing = None if cluster is None else costing_of(plan, model, cluster)
    return lower(
        model, plan.mesh, choices_of(plan, model), costing_of(plan, model), timing=timing, rank=rank
    )
