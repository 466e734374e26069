"""The baselines: the plans that one would have typed without a planner, each as good as it can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cost_models.cluster import Cluster
from cost_models.errors import NoPlan
from planner.layout import Mesh
from planner.pins import Pin
from planner.plan_file import Alternative
from planner.proposals import Candidate, Proposer

__all__ = ["baseline", "baselines", "compared"]


def compared(proposer: Proposer) -> tuple[Alternative, ...]:
    """The baselines as rows of the report's table."""
    rows = []
    for name, mesh, pins in baselines(proposer.cluster):
        row = Alternative(name=name, mesh=str(mesh), step_time_s=None, memory_bytes=None, fits=False)
        if proposer.budget.over():
            rows.append(replace(row, reason=f"left out at the time limit of {proposer.budget.limit:g} s"))
            continue
        try:
            found = baseline(proposer, mesh, pins)
        except NoPlan as error:
            rows.append(replace(row, reason=str(error)))
            continue
        seconds, held = found.prediction.step_time_s, found.prediction.total_memory_bytes
        rows.append(replace(row, step_time_s=seconds, memory_bytes=held, fits=found.fits(proposer.capacity)))
    return tuple(rows)


def baseline(proposer: Proposer, mesh: Mesh, pins: tuple[Pin, ...]) -> Candidate:
    """The ILP's plan under a baseline's mesh and pins, simulated."""
    return proposer.candidate(proposer.proposals(mesh, pins, last=True)[0])


def baselines(cluster: Cluster) -> Iterator[tuple[str, Mesh, tuple[Pin, ...]]]:
    """The baselines of a cluster: name, mesh and pins."""
    n = cluster.num_devices
    yield "data parallel", Mesh(("dp",), (n,)), (Pin("*", "ddp"),)
    yield "ZeRO-3", Mesh(("dp",), (n,)), (Pin("*", "zero3"),)
    yield "tensor parallel", Mesh(("tp",), (n,)), ()
    width = max((d for d in range(2, min(cluster.node_width, n // 2) + 1) if n % d == 0 and d & (d - 1) == 0), default=0)
    if width:
        yield "Megatron 2-D", Mesh(("dp", "tp"), (n // width, width)), (Pin("*", "ddp"),)
