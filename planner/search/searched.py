"""The search at one number of microbatches: meshes -> proposals -> simulated candidates -> the
best plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes, optimizer_state_bytes
from planner.graph.layout import Mesh
from planner.microbatch import check_globs
from planner.plans.models import modelled
from planner.plans.plan import Alternative
from planner.plans.replay import shallow_of
from planner.search.budget import Budget
from planner.search.choose import choose, shortlist
from planner.search.fitting import MOST_PAIRS
from planner.search.meshes import check_batch, meshes_of
from planner.search.proposals import Candidate, Proposal, Proposer
from planner.strategy.build_cost_table import TooLarge
from planner.strategy.pinned import check_pins
from planner.strategy.pins import Pin
from planner.trace.traced import Traced
from planner.workload.ask import Ask

__all__ = [
    "Progress",
    "Searched",
    "best_of",
    "bytes_of_state",
    "meshes_to_search",
    "proposals_of",
    "proposer_of",
]

#: The share of a search's time for proposals; the rest is for simulating them, making them fit and
#: the baselines.
_PROPOSED = 0.7

#: Called with the current activity, in words, and the share done (0 to 1).
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The search at one number of microbatches: its plan is `best`, among `candidates`."""

    proposer: Proposer
    proposals: list[Proposal]
    left_out: dict[str, list[str]]
    candidates: list[Candidate]
    best: Candidate
    rows: tuple[Alternative, ...] = ()

    @property
    def step_time_s(self) -> float:
        return self.best.prediction.step_time_s


def proposer_of(
    ask: Ask, cluster: Cluster, pins: tuple[Pin, ...], budget: Budget, traced: Traced
) -> Proposer:
    """The proposer for the number of microbatches that `ask` has. Raises UnknownName for a module
    that may take statistics over each of them, but does not exist."""
    check_globs(traced.graph, ask.per_microbatch)
    model = modelled(traced, ask)
    shallow = shallow_of(traced, model, ask)
    return Proposer(ask, model, traced.workload, cluster, pins, shallow, budget)


def bytes_of_state(proposer: Proposer) -> int:
    """Bytes of all parameters and the optimizer's state, master copies included."""
    optimizer, formats = proposer.workload.optimizer, proposer.workload.formats
    held = 0
    for parameter in proposer.model.graph.parameters:
        value = proposer.model.graph.values[parameter.value]
        updated = formats.updated(value.dtype)
        held += value.numel * (
            dtype_bytes(value.dtype) + (dtype_bytes(updated) if formats.master else 0)
        )
        held += optimizer_state_bytes(optimizer, numel=value.numel, dtype=updated)
    return held


def meshes_to_search(proposer: Proposer, mesh: Mesh | None) -> list[Mesh]:
    """The meshes to search. Raises NoPlan if the batch or the pins leave no plan on any."""
    meshes = [mesh] if mesh is not None else list(meshes_of(proposer.cluster))
    if mesh is None:
        check_batch(proposer.model, proposer.cluster)
    check_pins(proposer.model, meshes, proposer.pins)
    return meshes


def best_of(
    proposer: Proposer,
    meshes: list[Mesh],
    rows: Callable[[], tuple[Alternative, ...]],
    progress: Progress,
) -> Searched:
    """The search of some meshes at one number of microbatches. Raises Misfit if nothing fits."""
    proposals, left_out = proposals_of(proposer, meshes, progress)
    progress("simulating the candidates", 0.7)
    candidates = shortlist(proposer, proposals)
    progress("comparing with the baselines", 0.8)
    best, alternatives = choose(proposer, candidates, rows())
    return Searched(
        proposer=proposer,
        proposals=proposals,
        left_out=left_out,
        candidates=candidates,
        best=best,
        rows=alternatives,
    )


def proposals_of(
    proposer: Proposer, meshes: list[Mesh], progress: Progress
) -> tuple[list[Proposal], dict[str, list[str]]]:
    """The proposals of all meshes, and the sizes of the meshes left out: of several meshes, those of
    three axes whose tables have over `MOST_PAIRS` (`left_out`), and all but the first after the end
    of the time for proposals (`late`)."""
    proposals: list[Proposal] = []
    left_out: dict[str, list[str]] = {"left_out": [], "late": []}
    budget = proposer.budget.until(_PROPOSED)
    for index, mesh in enumerate(meshes):
        size = "x".join(map(str, mesh.sizes))
        progress(f"planning a mesh of {size}", 0.1 + 0.6 * index / len(meshes))
        if proposals and budget.over():
            left_out["late"].append(size)
            continue
        most_pairs = MOST_PAIRS if len(mesh.sizes) > 2 and len(meshes) > 1 else math.inf
        try:
            proposals += proposer.proposals(
                mesh, most_pairs=most_pairs, budget=budget.one_of(len(meshes) - index)
            )
        except TooLarge:
            left_out["left_out"].append(size)
    return proposals, left_out
