"""Nothing fits: the message, with a change that fits."""

from __future__ import annotations

from cost_models.cluster import Cluster
from planner.ask import Ask, build
from planner.fit import explain_misfit, nearest_change
from planner.meshes import meshes_of
from planner.plan_file import modelled, shallow_of
from planner.predict import peak_position
from planner.proposals import Candidate, Proposer
from planner.trace import trace

__all__ = ["does_not_fit"]


def does_not_fit(proposer: Proposer, least: Candidate) -> str:
    """The line that says what is missing in the leanest candidate, and what would fit."""
    batch = int(proposer.workload.batch[0].shape[0])
    seq = proposer.workload.options.get("seq")
    change = nearest_change(proposer.ask, batch, seq if isinstance(seq, int) else None, proposer.cluster, _some_plan_fits)
    return explain_misfit(
        proposer.workload.name, proposer.ask, proposer.cluster, least.prediction, peak_position(least.program),
        "x".join(map(str, least.mesh.sizes)), change,
    )  # fmt: skip


def _some_plan_fits(ask: Ask, cluster: Cluster) -> bool:
    """Whether a plan on one axis or two fits: enough to tell a person what to change."""
    traced = trace(lambda: build(ask), ask.model)
    model = modelled(traced)
    proposer = Proposer(ask, model, traced.workload, cluster, (), shallow_of(traced, model))
    meshes = [mesh for mesh in meshes_of(cluster) if len(mesh.sizes) <= 2]
    found = (proposer.candidate(proposer.proposals(mesh, last=True)[0]) for mesh in meshes)
    return any(proposer.fitting(candidate).fits(proposer.capacity) for candidate in found)
