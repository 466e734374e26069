"""The baselines: the standard plans that one would set up by hand, each at its best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from cost_models.errors import NoPlan
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.plans.plan import Alternative
from planner.search.fitting import fitted
from planner.search.proposals import Candidate, Proposer
from planner.strategy.pins import MODE_PINS, Pin

__all__ = ["Baseline", "baseline", "baselines", "comparisons"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A mesh and pins with a name."""

    name: str
    mesh: Mesh
    pins: tuple[Pin, ...] = ()

    def within(self, mesh: Mesh | None, pins: tuple[Pin, ...]) -> bool:
        """Whether this baseline satisfies the mesh and pins that the user asked for; those on
        modes hold for every baseline."""
        of_splits = {pin for pin in pins if pin.choice not in MODE_PINS}
        return (mesh is None or mesh == self.mesh) and of_splits <= set(self.pins)


def baselines(cluster: Cluster) -> Iterator[Baseline]:
    """The baselines of a cluster, those that are easier to explain first. If there are two axes,
    the tensor axis stays inside a node."""
    n = cluster.num_devices
    yield Baseline("data parallel", Mesh(("dp",), (n,)), (Pin("*", "ddp"),))
    yield Baseline("ZeRO-3", Mesh(("dp",), (n,)), (Pin("*", "zero3"),))
    yield Baseline("tensor parallel", Mesh(("tp",), (n,)))
    width = max(
        (
            d
            for d in range(2, min(cluster.node_width, n // 2) + 1)
            if n % d == 0 and d & (d - 1) == 0
        ),
        default=0,
    )
    if width:
        mesh = Mesh(("dp", "tp"), (n // width, width))
        yield Baseline("Megatron 2-D", mesh, (Pin("*", "ddp"),))
        yield Baseline("ZeRO-3 x tensor", mesh, (Pin("*", "zero3"),))


def comparisons(proposer: Proposer, mesh: Mesh | None) -> list[Callable[[], Alternative]]:
    """For each baseline, a function that makes its row of the report's table; `mesh` is the one
    that was asked for. Those of two axes, which take longer, come last."""
    return [
        partial(_row, proposer, one, one.within(mesh, proposer.pins))
        for one in baselines(proposer.cluster)
    ]


def _row(proposer: Proposer, one: Baseline, allowed: bool) -> Alternative:
    row = Alternative(
        name=one.name,
        mesh=str(one.mesh),
        step_time_s=None,
        memory_bytes=None,
        fits=False,
        allowed=allowed,
    )
    if proposer.budget.over():
        return replace(row, reason=f"skipped at the time limit of {proposer.budget.limit:g} s")
    try:
        fitted, made = baseline(proposer, one)
    except NoPlan as error:
        return replace(row, reason=str(error))
    seconds, held = fitted.prediction.step_time_s, fitted.prediction.total_memory_bytes
    fits = fitted.fits(proposer.capacity)
    return replace(
        row, step_time_s=seconds, memory_bytes=held, fits=fits, made_to_fit=fits and made
    )


def baseline(proposer: Proposer, one: Baseline) -> tuple[Candidate, bool]:
    """The ILP's plan under a baseline's mesh and pins, simulated, and whether it had to be made to
    fit. Raises NoPlan if the model has no such plan."""
    pins = (*one.pins, *(pin for pin in proposer.pins if pin.choice in MODE_PINS))
    candidate, made = fitted(proposer, proposer.proposals(one.mesh, pins, last=True)[0])
    return replace(candidate, name=one.name), made
