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
from dataclasses import dataclass, field, replace
from typing import Any

from cost_models.cluster import Cluster, cluster_text
from cost_models.errors import DoesNotFit, NoPlan
from planner.ask import Ask, build
from planner.beside import beside
from planner.choices import Choices, read_choices, recost
from planner.costing import Costing, total_gradient_bytes
from planner.dry import CannotRun, dry_run
from planner.fit import explain_misfit, nearest_change
from planner.layout import Mesh
from planner.lower import lower
from planner.model import Model
from planner.padding import cheaper_sizes, resized, vocabulary
from planner.pinned import check_pins, pins_for
from planner.pins import Pin
from planner.plan_file import Alternative, Hardware, Plan, SolverRecord, modelled, shallow_of
from planner.predict import Prediction, peak_position, predict
from planner.program import Program
from planner.shallow import Shallow
from planner.solver import Solution, solve
from planner.summary import summarise
from planner.table import Table, TooLarge, build_table
from planner.trace import line_of, trace
from planner.words import axis_names
from planner.workload import Workload

__all__ = ["Candidate", "Found", "Proposal", "meshes_of", "search"]

#: The share of parameters' and gradients' communication that the overlapping objective leaves out, times the device's `overlap`.
HIDDEN = 0.9

#: Of all meshes, how many are simulated for each objective, and how near to the best objective they must be.
SHORT, NEAR = 3, 0.05

#: A plan that has to be made to fit is worth that if it may be better by this share than one that fits.
WORTH_FITTING = 0.01

#: A mesh whose table has more pairs of strategies than this is left out, unless it was asked for: 25 million are 200 MB.
MOST_PAIRS = 25_000_000

#: The share of the step time that a padded vocabulary must save to be told.
WORTH = 0.005

#: Called with what is being done, and how far it is (0 to 1).
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The ILP's answer for one mesh and objective."""

    mesh: Mesh
    hidden: float
    table: Table
    solution: Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A proposal with its program, and what that is predicted to do. Of a deep model the program is of a shallow one, and the
    prediction drawn on from such, until it is `whole`."""

    proposal: Proposal
    choices: Choices
    program: Program
    prediction: Prediction
    whole: bool = True

    @property
    def mesh(self) -> Mesh:
        return self.proposal.mesh

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
    own_process: bool = False,
) -> Found:
    """The best plan for `ask` on `cluster` under a pinned mesh and pins. In a process of our own (`own_process`) a second one works
    beside it.

    Raises NoPlan where the batch or the pins leave none, DoesNotFit where no plan fits the memory.
    """
    started = time.perf_counter()
    progress("tracing the model", 0.0)
    traced = trace(lambda: build(ask), ask.model)
    model, workload = modelled(traced), traced.workload
    searcher = _Searcher(ask, model, workload, cluster, pins, shallow_of(traced, model))
    meshes = [mesh] if mesh is not None else list(meshes_of(cluster))
    if mesh is None:
        searcher.check_batch()
    check_pins(model, meshes, pins)
    alternatives_found = beside(searcher.alternatives) if own_process else searcher.alternatives
    proposals, left_out = [], []
    for index, one in enumerate(meshes):
        size = "x".join(map(str, one.sizes))
        progress(f"planning a mesh of {size}", 0.1 + 0.6 * index / len(meshes))
        try:
            proposals += searcher.proposals(one, most_pairs=MOST_PAIRS if len(one.sizes) > 2 and mesh is None else math.inf)
        except TooLarge:
            left_out.append(size)
    progress("simulating the best", 0.7)
    candidates = searcher.shortlist(proposals)
    best = searcher.best(candidates)
    progress("comparing with plans typed by hand", 0.8)
    alternatives = alternatives_found()
    best = searcher.whole(searcher.better_typed(best, alternatives) if mesh is None and not pins else best)
    _check_runs(best.program, ask)
    costing = best.proposal.table.costing
    named = Mesh(axis_names(model, best.choices, costing, best.mesh.sizes), best.mesh.sizes) if mesh is None else mesh
    padding = searcher.padding(best)
    plan = _plan(ask, cluster, workload, best, named, proposals, alternatives, time.perf_counter() - started)
    drawn_on = () if searcher.shallow is None else searcher.shallow.depths
    more: dict[str, Any] = {"padding": padding, "left_out": left_out, "drawn_on": list(drawn_on)}
    plan = replace(plan, summary={**plan.summary, **{key: told for key, told in more.items() if told}})
    progress("done", 1.0)
    return Found(plan=plan, model=model, workload=workload, program=best.program, candidates=tuple(candidates))


def _check_runs(program: Program, ask: Ask) -> None:
    """Raises CannotRun, naming the model's line where it is known, for a program that no rank can run."""
    try:
        dry_run(program)
    except CannotRun as error:
        raise CannotRun(f"{error}{line_of(lambda: build(ask), error.op, error.path)}") from error


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

    def __init__(
        self, ask: Ask, model: Model, workload: Workload, cluster: Cluster, pins: tuple[Pin, ...], shallow: Shallow | None = None
    ) -> None:  # fmt: skip
        self.ask, self.shallow = ask, shallow
        self.model, self.workload, self.cluster, self.pins = model, workload, cluster, pins
        self.capacity = float(cluster.device.usable_memory)
        self.lowered: dict[tuple[int, tuple[int, ...], bool], Candidate] = {}  # by table, choice and whether it is whole
        self.gradient_bytes = total_gradient_bytes(model.graph)
        self.costings: dict[tuple[int, ...], Costing] = {}

    def check_batch(self) -> None:
        """A batch of fewer samples than devices, of which no mesh has an axis that divides it, is refused."""
        batch, n = self.model.graph.values[self.model.graph.inputs[0]].shape[0], self.cluster.num_devices
        if batch < n and math.gcd(batch, n) == 1:
            raise NoPlan(
                f"a batch of {batch} has fewer samples than {n} devices, and shares no factor with them: use --batch {n}, "
                f"or --mesh tp={n} to plan without splitting the batch"
            )

    def proposals(
        self, mesh: Mesh, pins: tuple[Pin, ...] | None = None, *, last: bool = False, most_pairs: float = math.inf
    ) -> list[Proposal]:
        """The ILP's best plan of a mesh for each objective (or the `last` alone), memory left out: a bound, and the plan itself
        where it fits. Raises TooLarge where the mesh's table has more than `most_pairs` pairs of strategies."""
        costing = self._costing(mesh)
        allowed = pins_for(self.model, mesh, self.pins if pins is None else pins)
        table = build_table(self.model, costing, allowed, most_pairs=most_pairs)
        overlap = self.cluster.device.overlap
        shares = [0.0] if overlap == 0 or mesh.num_devices == 1 else [0.0, HIDDEN * overlap]
        found: list[Proposal] = []
        for hidden in shares[-1:] if last else shares:
            guess = found[-1].solution.choice if found else None
            solution = solve(table.problem(hidden=hidden), guess=guess)
            found.append(Proposal(mesh=mesh, hidden=hidden, table=table, solution=solution))
        return found

    def _costing(self, mesh: Mesh) -> Costing:
        """Costs under a mesh, with what was worked out for others of the same sizes."""
        if mesh.sizes not in self.costings:
            self.costings[mesh.sizes] = Costing(
                self.cluster,
                mesh.sizes,
                self.workload.optimizer,
                self.gradient_bytes,
                clip_norm=self.workload.clip_norm,
                clip_epsilon=self.workload.clip_epsilon,
            )
        return self.costings[mesh.sizes]

    def candidate(self, proposal: Proposal, *, whole: bool = False) -> Candidate:
        """The proposal lowered and simulated, once where two objectives choose the same; of a deep model only where the `whole` is
        asked for."""
        table, choice, whole = proposal.table, proposal.solution.choice, whole or self.shallow is None
        key = (id(table), choice, whole)
        if key not in self.lowered:
            choices = read_choices(table, choice)
            if self.shallow is None or whole:
                program = lower(self.model, proposal.mesh, choices, table.costing)
                prediction = predict(program, self.cluster)
            else:
                program, prediction = self.shallow.predict(table, choice, proposal.mesh, self.cluster)
            self.lowered[key] = Candidate(
                proposal=proposal, choices=choices, program=program, prediction=prediction, whole=whole
            )  # fmt: skip
        return replace(self.lowered[key], proposal=proposal)

    def whole(self, best: Candidate) -> Candidate:
        """The candidate lowered and simulated whole."""
        if best.whole:
            return best
        found = self.fitting(self.candidate(best.proposal, whole=True))
        if not found.fits(self.capacity):
            raise DoesNotFit(self._does_not_fit(found))
        return found

    def fitting(self, candidate: Candidate) -> Candidate:
        """The candidate, or the best plan of its mesh that fits the memory (or the leanest, where none does). Its bound is that of the
        first problem: the limit is lowered only because a lowered program may hold more than the problem knows of."""
        limit, bound = self.capacity, math.inf
        for _ in range(4):
            if candidate.fits(self.capacity):
                break
            old = candidate.proposal
            solution = solve(old.table.problem(hidden=old.hidden, limit=limit), guess=old.solution.choice)
            none = solution.status in ("infeasible", "unknown")  # by the problem's memory: the leanest may yet fit when lowered
            bound = min(bound, old.solution.bound if none else solution.bound)
            solution = replace(solution, status="feasible" if none else solution.status, bound=bound)
            candidate = self.candidate(replace(old, solution=solution), whole=candidate.whole)
            if none:
                break
            limit *= min(0.99, self.capacity / candidate.prediction.total_memory_bytes)
        return candidate

    def shortlist(self, proposals: list[Proposal]) -> list[Candidate]:
        """The proposals worth simulating: for each objective, the best few within `NEAR` of the best; all, where none of those fits."""
        near, found = [], []
        for hidden in sorted({p.hidden for p in proposals}):
            same = sorted((p for p in proposals if p.hidden == hidden), key=lambda p: (p.solution.objective, len(p.mesh.sizes)))
            alike = {f"{p.solution.objective:.9e}": p for p in reversed(same)}  # equal plans on several meshes: the fewest axes
            distinct = sorted(alike.values(), key=lambda p: p.solution.objective)
            here = [p for p in distinct[:SHORT] if p.solution.objective <= same[0].solution.objective * (1 + NEAR)]
            near += here
            found += self._fitting_ones(here)
        if any(c.fits(self.capacity) for c in found):
            return found
        return found + [self.fitting(self.candidate(p)) for p in proposals if p not in near and p.hidden == 0.0]

    def _fitting_ones(self, proposals: list[Proposal]) -> list[Candidate]:
        """The candidates of proposals for one objective, best first, made to fit: all but those of which no plan that fits can be
        better by `WORTH_FITTING` than one that was found."""
        found, least = [], math.inf
        for proposal in proposals:
            candidate = self.candidate(proposal)
            if not candidate.fits(self.capacity):
                if proposal.solution.bound > least * (1 - WORTH_FITTING):
                    continue
                candidate = self.fitting(candidate)
            if candidate.fits(self.capacity):
                least = min(least, candidate.proposal.solution.objective)
            found.append(candidate)
        return found

    def best(self, candidates: list[Candidate]) -> Candidate:
        """The fitting candidate with the shortest simulated step; among equals the fewest axes, then the lowest objective."""
        fitting = [c for c in candidates if c.fits(self.capacity)]
        if not fitting:
            raise DoesNotFit(self._does_not_fit(min(candidates, key=lambda c: c.prediction.total_memory_bytes)))
        fastest = min(c.prediction.step_time_s for c in fitting)
        equal = [c for c in fitting if c.prediction.step_time_s <= fastest * (1 + 1e-3)]
        return min(equal, key=lambda c: (len(c.mesh.sizes), c.prediction.step_time_s))

    def better_typed(self, best: Candidate, alternatives: tuple[Alternative, ...]) -> Candidate:
        """A plan typed by hand replaces the best only if it simulates more than 1 % faster; its gap is then told against the
        bound of the free plan on the same mesh."""
        times = {row.name: row.step_time_s for row in alternatives if row.fits and row.step_time_s is not None}
        name = min(times, key=lambda name: times[name], default="")
        if not name or times[name] >= 0.99 * best.prediction.step_time_s:
            return best
        chosen = next(self._typed(mesh, pins) for typed, mesh, pins in _typed(self.cluster) if typed == name)
        free = next(p for p in self.proposals(chosen.mesh) if p.hidden == chosen.proposal.hidden)
        told = replace(chosen.proposal.solution, bound=free.solution.bound)
        return replace(chosen, proposal=replace(chosen.proposal, solution=told))

    def alternatives(self) -> tuple[Alternative, ...]:
        """What a person would have typed, each as good as it can be."""
        rows = []
        for name, mesh, pins in _typed(self.cluster):
            row = Alternative(name=name, mesh=str(mesh), step_time_s=None, memory_bytes=None, fits=False)
            try:
                found = self._typed(mesh, pins)
            except NoPlan as error:
                rows.append(replace(row, reason=str(error)))
                continue
            seconds, held = found.prediction.step_time_s, found.prediction.total_memory_bytes
            rows.append(replace(row, step_time_s=seconds, memory_bytes=held, fits=found.fits(self.capacity)))
        return tuple(rows)

    def _typed(self, mesh: Mesh, pins: tuple[Pin, ...]) -> Candidate:
        return self.candidate(self.proposals(mesh, pins, last=True)[0])

    def padding(self, best: Candidate) -> dict[str, Any] | None:
        """A larger vocabulary with which the model, planned anew on the same mesh, is faster: the setting and its step time."""
        found = vocabulary(self.model, self.workload)
        if found is None:
            return None
        setting, atoms = found
        for size in cheaper_sizes(self.model, atoms, best.choices, best.proposal.table.costing):
            other = _Searcher(self.ask, resized(self.model, atoms, size), self.workload, self.cluster, self.pins)
            same = next(p for p in other.proposals(best.mesh) if p.hidden == best.proposal.hidden)
            padded = other.fitting(other.candidate(same))
            seconds = padded.prediction.step_time_s
            if padded.fits(self.capacity) and seconds < best.prediction.step_time_s * (1 - WORTH):
                return {"setting": f"{setting}={size}", "step_time_s": seconds}
        return None

    def _does_not_fit(self, least: Candidate) -> str:
        batch = int(self.workload.batch[0].shape[0])
        seq = self.workload.options.get("seq")
        change = nearest_change(self.ask, batch, seq if isinstance(seq, int) else None, self.cluster, _some_plan_fits)
        return explain_misfit(
            self.workload.name, self.cluster, least.prediction, peak_position(least.program),
            "x".join(map(str, least.mesh.sizes)), change,
        )  # fmt: skip


def _some_plan_fits(ask: Ask, cluster: Cluster) -> bool:
    """Whether a plan on one axis or two fits: enough to tell a person what to change."""
    traced = trace(lambda: build(ask), ask.model)
    model = modelled(traced)
    searcher = _Searcher(ask, model, traced.workload, cluster, (), shallow_of(traced, model))
    meshes = [mesh for mesh in meshes_of(cluster) if len(mesh.sizes) <= 2]
    found = (searcher.candidate(searcher.proposals(mesh, last=True)[0]) for mesh in meshes)
    return any(searcher.fitting(candidate).fits(searcher.capacity) for candidate in found)


def _typed(cluster: Cluster) -> Iterator[tuple[str, Mesh, tuple[Pin, ...]]]:
    n = cluster.num_devices
    yield "data parallel", Mesh(("dp",), (n,)), (Pin("*", "ddp"),)
    yield "ZeRO-3", Mesh(("dp",), (n,)), (Pin("*", "zero3"),)
    yield "tensor parallel", Mesh(("tp",), (n,)), ()
    width = max((d for d in range(2, min(cluster.node_width, n // 2) + 1) if n % d == 0 and d & (d - 1) == 0), default=0)
    if width:
        yield "Megatron 2-D", Mesh(("dp", "tp"), (n // width, width)), (Pin("*", "ddp"),)


def _plan(
    ask: Ask, cluster: Cluster, workload: Workload, best: Candidate, mesh: Mesh, proposals: list[Proposal],
    alternatives: tuple[Alternative, ...], elapsed: float,
) -> Plan:  # fmt: skip
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
        solver=SolverRecord(
            status=solution.status if gap <= 1e-6 else "feasible", objective=objective, bound=bound, gap=gap,
            time_s=solution.time_s, num_variables=solution.num_variables, hidden=best.proposal.hidden,
            num_meshes=len(rivals), bound_all_meshes=min([bound, *rivals]),
        ),
        summary=summarise(model, workload, cluster, mesh, best.choices, table.costing, best.prediction, elapsed),
        alternatives=alternatives,
    )  # fmt: skip
