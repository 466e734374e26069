"""The `Plan`: what was asked, what was chosen, what is predicted, and the proof. JSON, versioned, tied to its graph by a hash.

Ranks receive the plan's file: they trace the model again (`model_of`), check the hash and lower the choices; none solves again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cost_models.atomic_write import write_atomically
from cost_models.cluster import Cluster, parse_cluster
from cost_models.errors import BadPlan
from cost_models.optimizers import OPTIMIZERS
from planner.ask import Ask, build
from planner.choices import Choices
from planner.costing import Costing, total_gradient_bytes
from planner.graph import Graph
from planner.hash_seed import chosen
from planner.kernels.clip import CLIP_EPSILON
from planner.layout import Layout, Mesh, local_sizes
from planner.lower import lower
from planner.model import Model
from planner.plan_schema import Count, Damaged, Hub, Summary, check, check_summary, part, same_length, undeclared
from planner.program import Program
from planner.retrace import HASH_SEEDS, SET_ORDER, digest_elsewhere
from planner.shallow import Shallow, fits_together
from planner.strategies import Option, op_strategies, parameter_strategies
from planner.subdims import infer
from planner.ties import tie
from planner.trace import Traced, trace
from planner.views import is_view, resolve
from planner.workload import DTYPES, Workload

__all__ = [
    "Alternative", "Ask", "Hardware", "Plan", "SolverRecord", "Training", "choices_of", "costing_of", "graph_of", "model_of",
    "modelled",
    "plan_text",
    "program_of", "read_plan", "shallow_of", "traced_of", "workload_of", "write_plan",
]  # fmt: skip

FORMAT = "shardwright-plan"
VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The cluster planned for; `definition` is its whole hardware file, so that the plan means the same elsewhere."""

    name: str
    num_devices: int
    num_nodes: int
    definition: str

    def cluster(self) -> Cluster:
        return parse_cluster(
            self.definition, f"the plan's hardware {self.name!r}", num_devices=self.num_devices, num_nodes=self.num_nodes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What of the training decides a step's program beside the graph: the update, and clipping where `clip_norm` is given."""

    optimizer: str
    clip_norm: float | None = None
    clip_epsilon: float = CLIP_EPSILON


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverRecord:
    """What is proved of the plan: no plan on any of the `num_meshes` meshes searched, whether it fits or not, has a simulated step of
    less than `bound` seconds. `gap` is (step - bound) / step, `time_s` the seconds that the proof took."""

    bound: float
    gap: float
    num_meshes: int
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A baseline: what a person might have typed. `made_to_fit`: its fastest plan does not fit, this one does. `allowed`: the mesh and
    pins that were asked for leave it to choose. Without a step time there is no such plan, for a `reason`."""

    name: str
    mesh: str
    step_time_s: float | None
    memory_bytes: int | None
    fits: bool
    made_to_fit: bool = False
    allowed: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See the module. `options[c]` are the options of node class c (None for views), `parameters[c]` of parameter class c;
    `hubs` are (root value, phase, layout); gradients are reduced in buckets of `bucket_bytes`, and parameters cast again for backward
    if `recast`. `hash_seed` is that of the process that planned, empty if Python drew one. `summary` is for reports."""

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
    hash_seed: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()


# ------------------------------------------------------------------------------------------------- files


def plan_text(plan: Plan) -> str:
    """The plan as JSON."""
    body = {
        "format": FORMAT, "version": VERSION, "ask": asdict(plan.ask),
        "training": asdict(plan.training), "hardware": asdict(plan.hardware),
        "graph_hash": plan.graph_hash, "hash_seed": plan.hash_seed, "mesh": {"names": plan.mesh.names, "sizes": plan.mesh.sizes},
        "options": [None if o is None else [_show(x) for x in o] for o in plan.options],
        "parameters": [[_show(x) for x in o] for o in plan.parameters], "hubs": _show_hubs(plan.hubs),
        "bucket_bytes": plan.bucket_bytes, "recast": plan.recast,
        "solver": asdict(plan.solver), "summary": dict(plan.summary), "alternatives": [asdict(a) for a in plan.alternatives],
    }  # fmt: skip
    return json.dumps(body, indent=1) + "\n"


def write_plan(plan: Plan, path: Path) -> None:
    """Writes the plan as JSON, whole or not at all."""
    write_atomically(path, plan_text(plan))


def read_plan(path: str | Path) -> Plan:
    """The plan in a file. Raises BadPlan if it is no plan, truncated, or of another version."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadPlan(f"{path}: cannot be read ({error.strerror}); make a plan with: plan --model NAME --gpus N") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadPlan(f"{path}: not a whole plan file ({error}); plan again") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BadPlan(f"{path}: not a plan file (no format {FORMAT!r})")
    if body.get("version") != VERSION:
        raise BadPlan(f"{path}: a plan of version {body.get('version')}, this program reads version {VERSION}; plan again")
    try:
        return _parse(body)
    except Damaged as error:
        raise BadPlan(f"{path}: the plan file is damaged ({' '.join(str(error).split())}); plan again") from error


def _parse(body: dict[str, Any]) -> Plan:
    """The plan of a file's parts, each checked. Raises Damaged."""
    mesh = part(body, "mesh", Mesh)
    summary = {**part(body, "summary", Summary), **undeclared(body["summary"])}
    check_summary(summary, len(mesh.sizes))
    options = part(body, "options", list[list[str] | None])
    plan = Plan(
        ask=part(body, "ask", Ask), training=part(body, "training", Training), hardware=part(body, "hardware", Hardware),
        graph_hash=part(body, "graph_hash", str), hash_seed=part(body, "hash_seed", str), mesh=mesh,
        options=tuple(None if o is None else tuple(map(_read_option, o)) for o in options),
        parameters=tuple(tuple(map(_read_option, o)) for o in part(body, "parameters", list[list[str]])),
        hubs=tuple((value, h["phase"], h["layout"]) for h in part(body, "hubs", list[Hub]) for value in h["values"]),
        bucket_bytes=part(body, "bucket_bytes", Count), recast=part(body, "recast", bool),
        solver=part(body, "solver", SolverRecord), summary=summary,
        alternatives=part(body, "alternatives", tuple[Alternative, ...]),
    )  # fmt: skip
    _check(plan)
    return plan


def _check(plan: Plan) -> None:
    """Raises Damaged for parts that do not go together, or that no plan has."""
    mesh, ask, training = plan.mesh, plan.ask, plan.training
    check(bool(mesh.sizes) and min(mesh.sizes) >= 1, "mesh", mesh.sizes, "every axis has at least one device")
    for what, number in (("hardware.num_devices", plan.hardware.num_devices), ("ask.num_devices", ask.num_devices)):
        check(number == mesh.num_devices, what, number, f"the mesh has {mesh.num_devices}")
    for what, given in (("batch", ask.batch), ("seq", ask.seq)):
        check(given is None or given >= 1, f"ask.{what}", given, "a whole number from 1 on, or null")
    check(ask.dtype in DTYPES, "ask.dtype", ask.dtype, f"one of {', '.join(DTYPES)}")
    check(ask.compute in ("", *DTYPES), "ask.compute", ask.compute, f"empty or one of {', '.join(DTYPES)}")
    check(0 <= ask.memory_headroom < 1, "ask.memory_headroom", ask.memory_headroom, "a share from 0 up to 1")
    for what, norm in (("ask.clip_norm", ask.clip_norm), ("training.clip_norm", training.clip_norm)):
        check(norm is None or 0 < norm < float("inf"), what, norm, "a positive number, or null")
    check(0 <= training.clip_epsilon < 1, "training.clip_epsilon", training.clip_epsilon, "a small number from 0 on")
    check(training.optimizer in OPTIMIZERS, "training.optimizer", training.optimizer, "no optimizer that is known")
    phases = sorted({phase for _, phase, _ in plan.hubs} - {"forward", "backward", "update"})
    check(not phases, "the phase of a hub", phases, "forward, backward or update")
    for name, rows in (("options", plan.options), ("parameters", plan.parameters)):
        same_length(rows, len(mesh.sizes), name)


def _show(option: Option) -> str:
    return option.kind if option.number < 0 else f"{option.kind}:{option.number}"


def _read_option(text: str) -> Option:
    kind, _, number = text.partition(":")
    if kind not in ("whole", "split", "linear", "update"):
        raise Damaged(f"unknown option {text!r}")
    if number and not (number.isascii() and number.isdigit()):
        raise Damaged(f"option {text!r} has no number")
    return Option(kind, int(number) if number else -1)


def _show_hubs(hubs: tuple[tuple[int, str, Layout], ...]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, Layout], list[int]] = {}
    for value, phase, layout in hubs:
        groups.setdefault((phase, layout), []).append(value)
    return [{"phase": phase, "layout": layout, "values": values} for (phase, layout), values in groups.items()]


# ------------------------------------------------------------------------------------------------- from a plan


def modelled(traced: Traced) -> Model:
    """The traced graph with its sub-dims, ties and views."""
    dims = infer(traced.graph)
    roots = resolve(traced.graph, dims)
    return Model(graph=traced.graph, dims=dims, ties=tie(traced.graph, dims, roots), roots=roots)


def shallow_of(traced: Traced, model: Model) -> Shallow | None:
    """A deep model at lesser depths, where its trace has them."""
    models = [modelled(replace(traced, graph=graph)) for _, graph in traced.shallow]
    if len(models) != 2 or not all(fits_together(model, shallow) for shallow in models):
        return None
    return Shallow(models=(models[0], models[1]), depths=(traced.shallow[0][0], traced.shallow[1][0]), depth=traced.depth)


def workload_of(plan: Plan) -> Workload:
    """The workload that the plan is for, built anew (under the caller's seed, or under fake tensors)."""
    return build(plan.ask)


def graph_of(plan: Plan, seed: int = 0) -> Graph:
    """The graph of the plan's model, traced again, whichever it is."""
    return trace(lambda: workload_of(plan), plan.ask.model, whole=True, seed=seed).graph


def model_of(plan: Plan, seed: int = 0) -> Model:
    """The plan's model, traced again under a seed. Raises BadPlan if it is another graph than the plan was made for."""
    return modelled(traced_of(plan, seed))


def traced_of(plan: Plan, seed: int = 0) -> Traced:
    """The plan's model and workload, traced again, as `model_of`."""
    traced = trace(lambda: workload_of(plan), plan.ask.model, whole=True, seed=seed)
    found = traced.graph.digest()
    if found != plan.graph_hash:
        raise BadPlan(
            f"the plan was made for another graph of {plan.ask.model!r} (hash {plan.graph_hash[:12]}, now {found[:12]}): "
            f"{_why_another(plan, found, seed)}"
        )
    return traced


def _why_another(plan: Plan, found: str, seed: int) -> str:
    """Why a graph of the plan's model is another than the plan's, and what to do."""
    if seed and graph_of(plan).digest() == plan.graph_hash:
        return f"the model draws random numbers that decide what it computes; it was planned under seed 0 and run under {seed}"
    if graph_of(plan, seed).digest() != found:
        return (
            "each time that it is made the model computes something else (the time, random numbers without a seed, the order of a "
            "set of objects): make it the same each time"
        )
    here = chosen()
    if (not here or plan.hash_seed != here) and _order_differs(plan, found, here):
        return SET_ORDER
    return "the model's code or torch has changed; plan again"


def _order_differs(plan: Plan, found: str, here: str) -> bool:
    """Whether processes with other hash seeds than `here` find another graph."""
    with tempfile.TemporaryDirectory(prefix="shardwright-") as folder:
        write_plan(plan, Path(folder) / "plan.json")
        others = (digest_elsewhere(Path(folder) / "plan.json", hash_seed) for hash_seed in HASH_SEEDS if hash_seed != here)
        return any(other not in ("", found) for other in others)


def costing_of(plan: Plan, model: Model, cluster: Cluster | None = None) -> Costing:
    """Costs under the plan's mesh, on its own hardware or on another cluster."""
    training = plan.training
    return Costing(
        cluster or plan.hardware.cluster(), plan.mesh.sizes, training.optimizer, total_gradient_bytes(model.graph),
        clip_norm=training.clip_norm, clip_epsilon=training.clip_epsilon,
    )  # fmt: skip


def choices_of(plan: Plan, model: Model) -> Choices:
    """The plan's choices for every node of its model."""
    if len(plan.options) != len(model.ties.nodes_of) or len(plan.parameters) != len(model.ties.parameters_of):
        raise BadPlan("the plan has choices for another number of ops than the model has; plan again")
    sizes, strategies = plan.mesh.sizes, {}
    for node in model.graph.nodes:
        options = plan.options[model.ties.node_class[node.index]]
        if is_view(model.dims, node.index):
            continue
        if options is None or len(options) != len(sizes):
            raise BadPlan(f"the plan has no choice for {node.op} in {node.path!r} on every axis of its mesh; plan again")
        found = op_strategies(model.dims.ops[node.index], sizes, lambda axis, o, options=options: o == options[axis])  # type: ignore[misc]
        if len(found) != 1:
            raise BadPlan(f"the plan's choice {[_show(o) for o in options]} does not exist for {node.op} in {node.path!r}")
        strategies[node.index] = found[0]
    parameters = []
    for parameter, number in zip(model.graph.parameters, model.ties.parameter_class, strict=True):
        flat = tuple(size for dim in model.dims.shapes[parameter.value] for size in dim)
        options = plan.parameters[number]
        if len(options) != len(sizes):
            raise BadPlan(f"the plan has no choice for parameter {parameter.name!r} on every axis of its mesh; plan again")
        kept = parameter_strategies(flat, sizes, lambda axis, o, options=options: o == options[axis])  # type: ignore[misc]
        if len(kept) != 1:
            raise BadPlan(f"the plan's choice {[_show(o) for o in options]} does not exist for parameter {parameter.name!r}")
        parameters.append(kept[0])
    hubs = {(value, phase): layout for value, phase, layout in plan.hubs}
    for (value, _), layout in hubs.items():
        _check_layout(model, value, layout, sizes)
    return Choices(strategies=strategies, parameters=tuple(parameters), hubs=hubs, bucket=plan.bucket_bytes, recast=plan.recast)


def _check_layout(model: Model, value: int, layout: Layout, sizes: tuple[int, ...]) -> None:
    known = 0 <= value < len(model.dims.shapes)
    flat = tuple(size for dim in model.dims.shapes[value] for size in dim) if known else ()
    if not known or len(layout) != len(sizes) or max(layout) >= len(flat) or local_sizes(flat, layout, sizes) is None:
        raise BadPlan(f"the plan's layout {layout} does not divide value {value}; plan again")


def program_of(plan: Plan, cluster: Cluster | None = None, *, rank: int = 0, seed: int = 0) -> Program:
    """The program that `rank` of the plan runs, timed on the plan's hardware or, if given, on another cluster. Rank 0 holds the
    largest shards. `seed` is that of the run."""
    model = model_of(plan, seed)
    timing = None if cluster is None else costing_of(plan, model, cluster)
    return lower(model, plan.mesh, choices_of(plan, model), costing_of(plan, model), timing=timing, rank=rank)
