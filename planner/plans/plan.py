"""The `Plan`: the request, the choices, the prediction and the proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cost_models.cluster import parse_cluster
from cost_models.machine import Cluster
from planner.graph.layout import Layout, Mesh
from planner.kernels.clip import CLIP_EPSILON
from planner.strategy.strategies import Option
from planner.workload.ask import Ask

__all__ = [
    "Alternative",
    "Hardware",
    "PipelinePlan",
    "Plan",
    "PlanStage",
    "SolverRecord",
    "Training",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The cluster planned for; `definition` is its whole hardware file, so that the plan means the
    same on another machine."""

    name: str
    num_devices: int
    num_nodes: int
    definition: str

    def cluster(self) -> Cluster:
        return parse_cluster(
            self.definition,
            f"the plan's hardware {self.name!r}",
            num_devices=self.num_devices,
            num_nodes=self.num_nodes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The settings of training that, beside the graph, decide a step's program: the update, and
    clipping if `clip_norm` is given."""

    optimizer: str
    clip_norm: float | None = None
    clip_epsilon: float = CLIP_EPSILON


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverRecord:
    """The proof of the plan: no plan on any of the `num_meshes` meshes searched, whether it fits or
    not, has a simulated step of less than `bound` seconds. `gap` is (step - bound) / step, `time_s`
    the seconds that the proof took."""

    bound: float
    gap: float
    num_meshes: int
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A baseline's row. `made_to_fit`: its fastest plan does not fit, this one does. `allowed`: it
    satisfies the mesh and pins that were asked for. If there is no such plan, it has a `reason` and
    no step time."""

    name: str
    mesh: str
    step_time_s: float | None
    memory_bytes: int | None
    fits: bool
    made_to_fit: bool = False
    allowed: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStage:
    """A pipeline stage: it begins with unit `begins` of the forward pass (`stages.units_of`), whose
    first op is `at`. Its choices are those of the graph of the stage on a mesh of its own, as in
    `Plan`."""

    begins: int
    at: str
    mesh: Mesh
    options: tuple[tuple[Option, ...] | None, ...]
    parameters: tuple[tuple[Option, ...], ...]
    hubs: tuple[tuple[int, str, Layout], ...]
    bucket_bytes: int
    recast: bool
    modes: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """The stages of a pipeline and the order of their actions: `orders` is the schedule in torch's
    CSV, a row for each place (`schedules.csv_text`), `schedule` its name."""

    schedule: str
    orders: str
    stages: tuple[PlanStage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan as in its file. `options[c]` are the options of node class c (None for views),
    `parameters[c]` of parameter class c; `hubs` are (root value, phase, layout); gradients are
    reduced in buckets of `bucket_bytes`, and parameters cast again for backward if `recast`;
    `modes` are those of the graph's nodes whose results are not kept: ops that share options may
    have different ones. `hash_seed` is that of the process that planned, empty if Python drew one.
    `summary` is only for reports.

    If the plan is a pipeline, its choices are in `pipeline`, stage by stage, and `options`,
    `parameters`, `hubs` and `modes` are empty; `mesh` then counts the devices: places and
    the axes of their mesh, or, if places have unlike meshes, one axis `devices`."""

    ask: Ask
    training: Training
    hardware: Hardware
    graph_hash: str
    mesh: Mesh
    options: tuple[tuple[Option, ...] | None, ...]
    parameters: tuple[tuple[Option, ...], ...]
    hubs: tuple[tuple[int, str, Layout], ...]
    bucket_bytes: int
    recast: bool
    solver: SolverRecord
    modes: Mapping[int, str] = field(default_factory=dict)
    hash_seed: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    pipeline: PipelinePlan | None = None
