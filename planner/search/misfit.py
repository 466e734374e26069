"""The error if no plan fits, with a change under which one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cost_models.errors import DoesNotFit, NoPlan, UserError
from cost_models.machine import Cluster
from cost_models.units import format_bytes
from planner.graph.layout import Mesh
from planner.plans.replay import modelled, shallow_of
from planner.predict.predict import peak_position
from planner.search.budget import Budget
from planner.search.fit import OutOfTime, explain_misfit, nearest_change
from planner.search.meshes import meshes_of
from planner.search.proposals import Candidate, Proposer
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

__all__ = ["Misfit", "misfit_error"]


class Misfit(Exception):
    """No plan fits; `least` is the leanest candidate."""

    def __init__(self, least: Candidate) -> None:
        super().__init__(least)
        self.least = least


def misfit_error(
    proposer: Proposer,
    least: Candidate,
    mesh: Mesh | None,
    plans: Callable[[Ask, Cluster, Budget], object],
) -> UserError:
    """The error that says how much memory the leanest candidate lacks, and what would fit: a change
    under which `plans`, the same search that the user would run next, finds a plan. If the time was
    up before a plan that fits was found, the error says only that."""
    budget = proposer.budget
    if budget.over():
        needed, allowed = (
            format_bytes(b) for b in (least.prediction.total_memory_bytes, int(proposer.capacity))
        )
        return NoPlan(
            f"no plan of {proposer.workload.name!r} that fits was found within the time limit of "
            f"{budget.limit:g} s; the one with the least memory needs {needed} per device, of "
            f"{allowed} allowed: raise --time-limit to {2 * budget.limit:g}, or take a smaller "
            "batch"
        )

    def quickly(ask: Ask, cluster: Cluster) -> bool:
        return _may_fit(_in_time(budget), ask, cluster, mesh, proposer)

    def surely(ask: Ask, cluster: Cluster) -> bool:
        try:
            plans(ask, cluster, _in_time(budget))
        except (Misfit, NoPlan):
            return False
        return True

    batch, seq = int(proposer.workload.batch[0].shape[0]), proposer.workload.options.get("seq")
    change = nearest_change(
        proposer.ask,
        batch,
        seq if isinstance(seq, int) else None,
        proposer.cluster,
        quickly,
        surely,
        more=mesh is None,
    )
    return DoesNotFit(
        explain_misfit(
            proposer.workload.name,
            proposer.ask,
            proposer.cluster,
            least.prediction,
            peak_position(least.program),
            "x".join(map(str, least.mesh.sizes)),
            change,
        )
    )


def _in_time(budget: Budget) -> Budget:
    """A budget of the time left. Raises OutOfTime if there is none."""
    if budget.over():
        raise OutOfTime(budget.limit)
    return budget.rest()


def _may_fit(
    budget: Budget, ask: Ask, cluster: Cluster, mesh: Mesh | None, asked: Proposer
) -> bool:
    """Whether a lean plan on one or two axes fits: enough to decide whether to search."""
    traced = trace(lambda: build(ask), ask.model)
    model = modelled(traced, ask)
    proposer = Proposer(
        ask, model, traced.workload, cluster, asked.pins, shallow_of(traced, model, ask), budget
    )
    return any(proposer.lean(one).fits(proposer.capacity) for one in _meshes(cluster, mesh))


def _meshes(cluster: Cluster, mesh: Mesh | None) -> Iterator[Mesh]:
    yield from (
        (one for one in meshes_of(cluster) if len(one.sizes) <= 2) if mesh is None else (mesh,)
    )
