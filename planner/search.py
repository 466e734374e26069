"""The search: which mesh, which strategies, how they compare with what a person would have typed.

Model, cluster, pins -> Plan. For every mesh the ILP proposes its best plan; each is lowered and simulated, and the one with the
shortest simulated step that fits is taken. A sum of costs cannot see overlap, so where a device overlaps communication with compute
a second objective, which leaves most of the parameters' and gradients' communication out, proposes too; the simulator decides.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cost_models.cluster import Cluster, cluster_text
from cost_models.errors import DoesNotFit, NoPlan
from cost_models.units import format_bytes
from planner.choices import Choices, read_choices, recost
from planner.costing import Costing, total_gradient_bytes
from planner.layout import Mesh
from planner.lower import lower
from planner.pins import Pin, pins_for
from planner.plan import Alternative, Ask, Hardware, Plan, SolverRecord, modelled
from planner.predict import Prediction, peak_position, predict
from planner.program import Program
from planner.solver import Solution, solve
from planner.summary import summarise
from planner.table import Model, Pins, build_table
from planner.trace import trace
from planner.words import axis_names
from planner.workload import Workload, load_workload

__all__ = ["Candidate", "Found", "meshes_of", "search"]

#: The share of parameters' and gradients' communication that the overlapping objective leaves out, times the device's `overlap`.
HIDDEN = 0.9

#: Called with what is being done, and how far it is (0 to 1).
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One solved mesh: its choices, the solver's answer, the program and what it is predicted to do."""

    mesh: Mesh
    choices: Choices
    solution: Solution
    objective: float
    hidden: float
    program: Program
    prediction: Prediction
    costing: Costing
    picked: tuple[tuple[int, ...], object]  # the table's choice, and the table

    def fits(self, capacity: float) -> bool:
        return self.prediction.total_memory_bytes <= capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A plan with what it was made from, for reports that need more than the file."""

    plan: Plan
    model: Model
    workload: Workload
    program: Program
    candidates: tuple[Candidate, ...] = field(default=())


def search(
    ask: Ask,
    cluster: Cluster,
    *,
    mesh: Mesh | None = None,
    pins: tuple[Pin, ...] = (),
    progress: Progress = lambda what, done: None,
) -> Found:
    """The best plan for `ask` on `cluster` under a pinned mesh and pins.

    Raises NoPlan where the batch or the pins leave none, DoesNotFit where no plan fits the memory.
    """
    started = time.perf_counter()
    progress("tracing the model", 0.0)
    traced = trace(lambda: load_workload(
        ask.model, batch=ask.batch, seq=ask.seq, settings=ask.settings, num_devices=ask.num_devices, dtype=ask.dtype
    ))  # fmt: skip
    model, workload = modelled(traced), traced.workload
    searcher = _Searcher(model, workload, cluster, pins)
    meshes = [mesh] if mesh is not None else list(meshes_of(cluster))
    if mesh is None:
        searcher.check_batch()
    candidates = []
    for index, one in enumerate(meshes):
        progress(f"planning mesh {one}", 0.1 + 0.6 * index / len(meshes))
        candidates += searcher.candidates(one)
    best = searcher.best(candidates)
    progress("comparing with plans typed by hand", 0.75)
    alternatives, typed = searcher.alternatives()
    best = searcher.better_typed(best, typed if mesh is None and not pins else [])
    named = Mesh(axis_names(model, best.choices, best.costing, best.mesh.sizes), best.mesh.sizes) if mesh is None else mesh
    plan = _plan(ask, cluster, model, workload, best, named, alternatives, time.perf_counter() - started)
    progress("done", 1.0)
    return Found(plan=plan, model=model, workload=workload, program=best.program, candidates=tuple(candidates))


def meshes_of(cluster: Cluster) -> Iterator[Mesh]:
    """All meshes of one, two and three axes worth planning: on one switch the order of the axes does not matter, so each is
    taken once, largest first; over nodes the first of three axes is the nodes."""
    n = cluster.num_devices
    yield Mesh(("a",), (n,))
    one_node = cluster.num_nodes == 1
    for first in _divisors(n):
        if not one_node or first >= n // first:
            yield Mesh(("a", "b"), (first, n // first))
    for first, second in itertools.product(_divisors(n), repeat=2):
        if n % (first * second) or n // (first * second) == 1:
            continue
        third = n // (first * second)
        if (one_node and first >= second >= third) or (not one_node and first == cluster.num_nodes and second >= third):
            yield Mesh(("a", "b", "c"), (first, second, third))


def _divisors(n: int) -> list[int]:
    return [d for d in range(2, n) if n % d == 0]


class _Searcher:
    """Plans of one model on one cluster."""

    def __init__(self, model: Model, workload: Workload, cluster: Cluster, pins: tuple[Pin, ...]) -> None:
        self.model, self.workload, self.cluster, self.pins = model, workload, cluster, pins
        self.capacity = float(cluster.device.usable_memory)
        self.gradient_bytes = total_gradient_bytes(model.graph)

    def check_batch(self) -> None:
        """A batch that no mesh divides is refused: its plan would leave the devices doing the same work."""
        batch, n = self.model.graph.values[self.model.graph.inputs[0]].shape[0], self.cluster.num_devices
        if n > 1 and math.gcd(batch, n) == 1:
            raise NoPlan(
                f"a batch of {batch} is divided by no mesh of {n} devices: use --batch {-(-batch // n) * n}, "
                f"or --mesh tp={n} to plan without splitting the batch"
            )

    def candidates(self, mesh: Mesh) -> list[Candidate]:
        """The best plan of a mesh for each objective."""
        pins = pins_for(self.model, mesh, self.pins)
        shares = (
            [0.0] if self.cluster.device.overlap == 0 or mesh.num_devices == 1 else [0.0, HIDDEN * self.cluster.device.overlap]
        )
        return [self.candidate(mesh, pins, share, limited=True) for share in shares]

    def candidate(self, mesh: Mesh, pins: Pins, hidden: float, *, limited: bool) -> Candidate:
        """The ILP's plan of a mesh: first without the memory limit, which proves it where it fits; else with the limit."""
        costing = Costing(self.cluster, mesh.sizes, self.workload.optimizer, self.gradient_bytes)
        found = self._solve(mesh, pins, hidden, costing, float("inf"))
        limit = self.capacity
        for _ in range(4):
            if not limited or found.fits(self.capacity):
                return found
            found = self._solve(mesh, pins, hidden, costing, limit)
            if found.solution.status == "infeasible":
                return found
            limit *= min(0.99, self.capacity / found.prediction.total_memory_bytes)
        return found

    def _solve(self, mesh: Mesh, pins: Pins, hidden: float, costing: Costing, limit: float) -> Candidate:
        table = build_table(self.model, costing, pins, hidden=hidden, limit=limit)
        solution = solve(table.problem)
        choices = read_choices(table, solution.choice)
        program = lower(self.model, mesh, choices, costing)
        return Candidate(
            mesh=mesh, choices=choices, solution=solution, hidden=hidden, program=program, costing=costing,
            objective=recost(self.model, costing, choices, hidden=hidden), prediction=predict(program, self.cluster),
            picked=(solution.choice, table),
        )  # fmt: skip

    def best(self, candidates: list[Candidate]) -> Candidate:
        """The fitting candidate with the shortest simulated step; among equals the fewest axes, then the lowest objective."""
        fitting = [c for c in candidates if c.fits(self.capacity)]
        if not fitting:
            raise DoesNotFit(self._does_not_fit(min(candidates, key=lambda c: c.prediction.total_memory_bytes)))
        fastest = min(c.prediction.step_time_s for c in fitting)
        equal = [c for c in fitting if c.prediction.step_time_s <= fastest * (1 + 1e-3)]
        return min(equal, key=lambda c: (len(c.mesh.sizes), c.prediction.step_time_s, c.objective))

    def better_typed(self, best: Candidate, typed: list[Candidate]) -> Candidate:
        """A plan typed by hand replaces the best only if it simulates more than 1 % faster; its gap is then told against the
        bound of the free plan on the same mesh."""
        faster = [c for c in typed if c.fits(self.capacity) and c.prediction.step_time_s < 0.99 * best.prediction.step_time_s]
        if not faster:
            return best
        chosen = min(faster, key=lambda c: c.prediction.step_time_s)
        free = self.candidate(chosen.mesh, Pins(), chosen.hidden, limited=True)
        from dataclasses import replace

        return replace(chosen, solution=replace(chosen.solution, bound=free.solution.bound))

    def alternatives(self) -> tuple[tuple[Alternative, ...], list[Candidate]]:
        """What a person would have typed, each as good as it can be."""
        rows, typed = [], []
        for name, mesh, pins in _typed(self.cluster):
            try:
                found = self.candidate(mesh, pins_for(self.model, mesh, pins), 0.0, limited=False)
            except NoPlan as error:
                rows.append(
                    Alternative(name=name, mesh=str(mesh), step_time_s=None, memory_bytes=None, fits=False, reason=str(error))
                )
                continue
            typed.append(found)
            rows.append(
                Alternative(
                    name=name, mesh=str(mesh), step_time_s=found.prediction.step_time_s,
                    memory_bytes=found.prediction.total_memory_bytes, fits=found.fits(self.capacity),
                )
            )  # fmt: skip
        return tuple(rows), typed

    def _does_not_fit(self, least: Candidate) -> str:
        held = sorted(least.prediction.memory_bytes.items(), key=lambda item: -item[1])[:3]
        missing = least.prediction.total_memory_bytes - self.capacity
        terms = ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in held)
        return (
            f"{self.workload.name!r} does not fit {self.cluster.num_devices} x {self.cluster.device.name}: the leanest plan "
            f"(mesh {least.mesh}) lacks {format_bytes(missing)} a device at {peak_position(least.program)}; largest: {terms}"
        )


def _typed(cluster: Cluster) -> Iterator[tuple[str, Mesh, tuple[Pin, ...]]]:
    n = cluster.num_devices
    yield "data parallel", Mesh(("dp",), (n,)), (Pin("*", "ddp"),)
    yield "ZeRO-3", Mesh(("dp",), (n,)), (Pin("*", "zero3"),)
    yield "tensor parallel", Mesh(("tp",), (n,)), ()
    width = max((d for d in range(2, min(cluster.node_width, n // 2) + 1) if n % d == 0 and d & (d - 1) == 0), default=0)
    if width:
        yield "Megatron 2-D", Mesh(("dp", "tp"), (n // width, width)), (Pin("*", "ddp"),)


def _plan(
    ask: Ask, cluster: Cluster, model: Model, workload: Workload, best: Candidate, mesh: Mesh,
    alternatives: tuple[Alternative, ...], elapsed: float,
) -> Plan:  # fmt: skip
    solution = best.solution
    bound = min(solution.bound, best.objective)
    gap = (best.objective - bound) / best.objective if best.objective else 0.0
    ties = model.ties
    options = tuple(
        best.choices.strategies[members[0]].options if members[0] in best.choices.strategies else None
        for members in ties.nodes_of
    )
    return Plan(
        ask=ask, mesh=mesh, graph_hash=model.graph.digest(), options=options,
        hardware=Hardware(
            name=cluster.name, num_devices=cluster.num_devices, num_nodes=cluster.num_nodes,
            definition=cluster_text(cluster, provenance={}, sources={}),
        ),
        parameters=tuple(best.choices.parameters[members[0]].options for members in ties.parameters_of),
        hubs=tuple((value, phase, layout) for (value, phase), layout in best.choices.hubs.items()),
        solver=SolverRecord(
            status=solution.status if gap <= 1e-6 else "feasible", objective=best.objective, bound=bound, gap=gap,
            time_s=solution.time_s, num_variables=solution.num_variables, hidden=best.hidden,
        ),
        summary=summarise(model, workload, cluster, mesh, best.choices, best.costing, best.prediction, elapsed),
        alternatives=alternatives,
    )  # fmt: skip
