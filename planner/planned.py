"""The plan of the chosen candidate: its choices, what is predicted, what is proved."""

from __future__ import annotations

from cost_models.cluster import Cluster, cluster_text
from planner.ask import Ask
from planner.choices import recost
from planner.layout import Mesh
from planner.plan_file import Alternative, Hardware, Plan, SolverRecord
from planner.proposals import Candidate, Proposal
from planner.summary import summarise
from planner.workload import Workload

__all__ = ["plan_of"]


def plan_of(
    ask: Ask, cluster: Cluster, workload: Workload, best: Candidate, mesh: Mesh, proposals: list[Proposal],
    alternatives: tuple[Alternative, ...], elapsed: float,
) -> Plan:  # fmt: skip
    """The plan of a candidate on `mesh`, whose axes have their names; `proposals` are those of all meshes."""
    table, solution, chosen = best.proposal.table, best.proposal.solution, best.choices.strategies
    model, ties = table.model, table.model.ties
    objective = recost(model, table.costing, best.choices, hidden=best.proposal.hidden)
    assert abs(objective - solution.objective) <= 1e-9 * objective, (objective, solution.objective)
    bound = min(solution.bound, objective)
    gap = (objective - bound) / objective if objective else 0.0
    rivals = [p.solution.bound for p in proposals if p.hidden == best.proposal.hidden]
    return Plan(
        ask=ask, mesh=mesh, graph_hash=model.graph.digest(),
        options=tuple(chosen[members[0]].options if members[0] in chosen else None for members in ties.nodes_of),
        hardware=Hardware(
            name=cluster.name, num_devices=cluster.num_devices, num_nodes=cluster.num_nodes,
            definition=cluster_text(cluster, provenance={}, sources={}),
        ),
        parameters=tuple(best.choices.parameters[members[0]].options for members in ties.parameters_of),
        hubs=tuple((value, phase, layout) for (value, phase), layout in best.choices.hubs.items()),
        bucket_bytes=best.choices.bucket,
        solver=SolverRecord(
            status=solution.status if gap <= 1e-6 else "feasible", objective=objective, bound=bound, gap=gap,
            time_s=solution.time_s, num_variables=solution.num_variables, hidden=best.proposal.hidden,
            num_meshes=len(rivals), bound_all_meshes=min([bound, *rivals]),
        ),
        summary=summarise(ask, model, workload, cluster, mesh, best.choices, table.costing, best.prediction, elapsed),
        alternatives=alternatives,
    )  # fmt: skip
