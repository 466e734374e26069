"""The `Plan` of the chosen candidate: its choices, its prediction, its proof."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cost_models.cluster_text import cluster_text
from cost_models.machine import Cluster
from planner.dims.ties import pattern_of
from planner.graph.layout import Mesh
from planner.plans.plan import Alternative, Hardware, Plan, SolverRecord, Training
from planner.plans.plan_choices import in_file_order
from planner.plans.recomputed import recomputed
from planner.plans.summary import summarise
from planner.search.proposals import Candidate
from planner.state import hash_seed
from planner.strategy.choices import recost
from planner.strategy.strategies import KEPT
from planner.strategy.traced_model import Model
from planner.workload.ask import Ask
from planner.workload.workload import Workload

__all__ = ["plan_of"]


def plan_of(
    ask: Ask,
    cluster: Cluster,
    workload: Workload,
    best: Candidate,
    mesh: Mesh,
    proof: SolverRecord,
    alternatives: tuple[Alternative, ...],
    elapsed: float,
) -> Plan:
    """The plan of candidate `best`; the axes of `mesh` have their final names."""
    table, chosen = best.proposal.table, best.choices.strategies
    model, ties = table.model, table.model.ties
    _check_objective(best)
    return Plan(
        ask=ask,
        mesh=mesh,
        graph_hash=(model.whole or model.graph).digest(),
        hash_seed=hash_seed.chosen(),
        training=Training(
            optimizer=workload.optimizer,
            clip_norm=workload.clip_norm,
            clip_epsilon=workload.clip_epsilon,
        ),
        options=tuple(
            chosen[members[0]].options if members[0] in chosen else None
            for members in ties.nodes_of
        ),
        hardware=Hardware(
            name=cluster.name,
            num_devices=cluster.num_devices,
            num_nodes=cluster.num_nodes,
            definition=cluster_text(cluster, provenance={}, sources={}),
        ),
        parameters=tuple(
            best.choices.parameters[members[0]].options for members in ties.parameters_of
        ),
        hubs=in_file_order(best.choices.hubs),
        bucket_bytes=best.choices.bucket,
        recast=best.choices.recast,
        modes={node: one.mode for node, one in chosen.items() if one.mode != KEPT},
        solver=proof,
        summary={
            **summarise(
                ask,
                model,
                workload,
                cluster,
                mesh,
                best.choices,
                table.costing,
                best.prediction,
                elapsed,
            ),
            **_of_modes(best, model),
        },
        alternatives=alternatives,
    )


def _check_objective(best: Candidate) -> None:
    """Asserts that the solver's objective is the cost of the choices on the whole graph. Modes that
    differ between like layers are not the solver's."""
    table = best.proposal.table
    if best.by_layer or table.modes(table.model):
        return
    solved, overlapped = best.proposal.solution.objective, best.proposal.overlapped
    walked = recost(table.model, table.costing, best.choices, overlapped=overlapped)
    assert abs(walked - solved) <= 1e-9 * walked, (walked, solved)


def _of_modes(best: Candidate, model: Model) -> dict[str, Any]:
    """What a summary says of what runs again in backward; what does not is left out of it."""
    found = {
        "recomputed": recomputed(best.program, model, best.choices, best.proposal.table.costing),
        "checkpoints": _outermost(pattern_of(n.path) for n in model.graph.nodes if n.checkpoint),
    }
    return {name: value for name, value in found.items() if value}


def _outermost(paths: Iterable[str]) -> list[str]:
    """Of modules, those that no other is around."""
    known = set(paths)
    inside = {path for path in known if any(path.startswith(f"{other}.") for other in known)}
    return sorted(known - inside)
