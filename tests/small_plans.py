"""Small models planned step by step, for tests that look between the steps or choose what no
cost would. What each pass makes is checked after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cost_models.cluster import load_cluster
from cost_models.machine import Cluster
from planner.graph.checking import checked, checking
from planner.graph.graph import Node
from planner.graph.layout import Mesh
from planner.lowering.lower import lower
from planner.plans.models import modelled
from planner.plans.words import atom_names
from planner.program.check_program import ranks_faults
from planner.program.dry import dry_run
from planner.program.program import Program
from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Edge, Problem
from planner.solver.problem.solution import Solution
from planner.solver.relax.bound import decode, reparametrise
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import Choices, read_choices
from planner.strategy.cost_table import CostTable
from planner.strategy.costing import Costing
from planner.strategy.modes import mode_faults
from planner.strategy.pinned import pins_for
from planner.strategy.pins import parse_pin
from planner.strategy.problem import problem_of
from planner.strategy.strategies import AGAIN, Option, options_of
from planner.strategy.traced_model import Model, Pins
from planner.strategy.update_costs import total_gradient_bytes
from planner.trace.trace import trace
from planner.workload.ask import Ask, build
from planner.workload.precision import PLAIN, Formats
from planner.workload.workload import Workload

__all__ = [
    "Planned",
    "ask_for",
    "bilstm",
    "chosen_at_random",
    "mesh_of",
    "planned",
    "split_by",
    "table_of",
    "traced",
    "with_again",
    "with_choice",
    "words_of",
]

#: Sizes that four ranks divide, on each of their axes.
SIZES: dict[str, dict[str, int]] = {
    "lstm": {"vocab": 16, "embed": 8, "hidden": 8, "layers": 2, "seq": 5},
    "mlp": {"inputs": 16, "hidden": 32, "layers": 3, "outputs": 8},
    "cnn": {"channels": 4, "width": 4, "blocks": 2, "classes": 8, "image": 8},
    "gpt": {"layers": 2, "width": 16, "heads": 4, "vocab": 32, "positions": 8, "seq": 8},
    "llama": {
        "layers": 2,
        "width": 16,
        "heads": 8,
        "kv_heads": 4,
        "mlp": 24,
        "vocab": 32,
        "seq": 8,
    },
    "bilstm": {},
    "rnn": {"vocab": 16, "embed": 8, "hidden": 8, "layers": 2, "seq": 5, "bidirectional": 1},
    "gru": {"vocab": 16, "embed": 8, "hidden": 8, "layers": 2, "seq": 5},
    "bert": {
        "layers": 2,
        "width": 16,
        "heads": 4,
        "mlp": 32,
        "vocab": 32,
        "positions": 8,
        "seq": 8,
    },
    "t5": {
        "layers": 2,
        "width": 16,
        "heads": 4,
        "head_dim": 4,
        "mlp": 32,
        "vocab": 32,
        "seq": 8,
        "target_seq": 4,
    },
    "vit": {"layers": 2, "width": 16, "heads": 4, "mlp": 32, "image": 16, "patch": 8, "classes": 8},
    "moe": {
        "layers": 2,
        "width": 16,
        "heads": 8,
        "kv_heads": 4,
        "mlp": 24,
        "experts": 4,
        "vocab": 32,
        "seq": 8,
    },
    "resnet": {"depth": 10, "width": 8, "image": 64, "classes": 8},
    "unet": {"image": 16, "channels": 4, "width": 8, "levels": 2, "classes": 4},
    "dlrm": {"dense": 4, "tables": 3, "rows": 16, "embed": 8, "bottom": 16, "top": 16},
    "seq2seq-lstm": {"vocab": 16, "embed": 8, "hidden": 8, "layers": 2, "seq": 5},
}

#: The user's own models, by the file that they are in.
OWN = {"bilstm": Path(__file__).resolve()}
OWN |= dict.fromkeys(
    ("dropped", "normed", "nested", "of_dict", "unfused", "checkpointed"),
    Path(__file__).resolve().parent / "step_models.py",
)


class BiLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(ids))
        logits: Tensor = self.head(outputs.mean(1))
        return logits


def bilstm(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    """A user's own model: this file is named as `FILE:bilstm`."""
    return (
        BiLSTM(),
        (torch.randint(0, 16, (batch, 5)), torch.randint(0, 4, (batch,))),
        nn.functional.cross_entropy,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One plan and all that it was made from."""

    ask: Ask
    model: Model
    workload: Workload
    cluster: Cluster
    mesh: Mesh
    table: CostTable
    solution: Solution
    choices: Choices
    program: Program

    @property
    def programs(self) -> tuple[Program, ...]:
        """The program of every rank."""
        if self.program.rank is None:
            return (self.program,) * self.mesh.num_devices
        costing = self.table.costing
        with checking():
            found = {
                r: lower(self.model, self.mesh, self.choices, costing, rank=r)
                for r in range(self.mesh.num_devices)
            }
            checked("all ranks", lambda: ranks_faults(self.mesh, found))
        return tuple(found.values())


def ask_for(
    name: str,
    num_devices: int = 4,
    *,
    batch: int = 8,
    dtype: str = "float64",
    compute: str = "",
    formats: Formats = PLAIN,
    clip_norm: float | None = None,
    microbatches: int = 1,
    **sizes: int | str,
) -> Ask:
    """A small model of `SIZES`, some sizes replaced."""
    settings = {key: str(value) for key, value in {**SIZES.get(name, {}), **sizes}.items()}
    model = f"{OWN[name]}:{name}" if name in OWN else name
    return Ask(
        model=model,
        batch=batch,
        seq=None,
        settings=settings,
        dtype=dtype,
        num_devices=num_devices,
        compute=compute,
        formats=formats,
        clip_norm=clip_norm,
        microbatches=microbatches,
    )


def traced(ask: Ask) -> tuple[Model, Workload]:
    """The model of an ask and its workload; traced once for all numbers of devices, which matter
    to neither."""
    key = repr(replace(ask, num_devices=1))
    if key not in _TRACED:
        with checking():
            found = trace(partial(build, replace(ask, num_devices=1)), ask.model)
            _TRACED[key] = modelled(found, ask), found.workload
    return _TRACED[key]


_TRACED: dict[str, tuple[Model, Workload]] = {}


def mesh_of(text: str) -> Mesh:
    """`dp=2,tp=2` as a mesh."""
    parts = [part.split("=") for part in text.split(",")]
    return Mesh(tuple(name for name, _ in parts), tuple(int(size) for _, size in parts))


def words_of(model: Model, workload: Workload) -> dict[int, str]:
    """The words of atoms; what a layer norm has beside samples and what it norms is a sequence
    where nothing says what it is."""
    names = atom_names(model, workload)
    for node in model.graph.nodes:
        if node.op == "aten.native_layer_norm.default":
            dims = model.dims.ops[node.index]
            names = (
                dict.fromkeys(
                    (a for leaf, a in enumerate(dims.atoms) if leaf not in dims.fixed), "sequence"
                )
                | names
            )
    return names


def split_by(
    model: Model,
    workload: Workload,
    words: Mapping[str, str],
    axis: int = 0,
    keep: Pins | None = None,
    least: int = 1,
) -> Pins:
    """Pins under which every op whose name or module contains a key of `words` splits, on
    `axis`, the sub-dim of that name if it has one of at least `least`."""
    names, keep = words_of(model, workload), keep or Pins()

    def is_word(node: Node, option: Option, word: str) -> bool:
        dims, number = model.dims.ops[node.index], option.number
        return (
            option.kind == "split"
            and names.get(dims.atoms[number]) == word
            and dims.sizes[number] >= least
        )

    def op(node: Node, at: int, option: Option) -> bool:
        word = next((w for key, w in words.items() if key in node.op or key in node.path), None)
        if (
            word is None
            or at != axis
            or not any(is_word(node, o, word) for o in options_of(model.dims.ops[node.index]))
        ):
            return keep.op(node, at, option)
        return is_word(node, option, word)

    return Pins(op=op, parameter=keep.parameter)


def table_of(
    ask: Ask, mesh: str | Mesh, pins: tuple[str, ...] = (), *, cluster: Cluster | None = None
) -> CostTable:
    """The cost table of an ask on a mesh."""
    model, workload = traced(ask)
    mesh = mesh_of(mesh) if isinstance(mesh, str) else mesh
    cluster = cluster or load_cluster("cpu", num_devices=mesh.num_devices)
    costing = Costing(
        cluster,
        mesh.sizes,
        workload.optimizer,
        total_gradient_bytes(model.graph),
        clip_norm=workload.clip_norm,
        formats=workload.formats,
    )
    return build_cost_table(model, costing, pins_for(model, mesh, tuple(map(parse_pin, pins))))


def planned(
    ask: Ask,
    mesh: str,
    pins: tuple[str, ...] = (),
    *,
    words: Mapping[str, str] | None = None,
    axis: int = 0,
    seed: int | None = None,
    cluster: Cluster | None = None,
    limit: float = float("inf"),
    bucket: int | None = None,
    recast: bool = False,
) -> Planned:
    """The best plan on a mesh under pins and `split_by` words; with a `seed` the best under
    random costs instead; with buckets of so many bytes, if that is given; with parameters cast
    again for backward if `recast`."""
    model, workload = traced(ask)
    on = mesh_of(mesh)
    cluster = cluster or load_cluster("cpu", num_devices=on.num_devices)
    costing = Costing(
        cluster,
        on.sizes,
        workload.optimizer,
        total_gradient_bytes(model.graph),
        clip_norm=workload.clip_norm,
        formats=workload.formats,
    )
    allowed = pins_for(model, on, tuple(map(parse_pin, pins)))
    table = build_cost_table(
        model,
        costing,
        split_by(model, workload, words, axis, allowed, on.sizes[axis]) if words else allowed,
    )
    problem = problem_of(table, limit=limit)
    with checking():
        solution = solve(problem)
    if seed is not None:
        choice = chosen_at_random(problem, seed)
        solution = replace(solution, choice=choice, objective=problem.cost(choice))
    return with_choice(ask, on, table, solution, cluster, bucket, recast)


def with_choice(
    ask: Ask,
    mesh: Mesh,
    table: CostTable,
    solution: Solution,
    cluster: Cluster,
    bucket: int | None = None,
    recast: bool = False,
) -> Planned:
    """The plan of a given choice."""
    model, workload = traced(ask)
    choices = replace(read_choices(table, solution.choice), recast=recast)
    choices = choices if bucket is None else replace(choices, bucket=bucket)
    with checking():
        program = lower(model, mesh, choices, table.costing)
    dry_run(program)
    return Planned(
        ask=ask,
        model=model,
        workload=workload,
        cluster=cluster,
        mesh=mesh,
        table=table,
        solution=solution,
        choices=choices,
        program=program,
    )


def chosen_at_random(problem: Problem, seed: int) -> tuple[int, ...]:
    """A possible choice that is good under random costs: strategies that no cost model would put
    side by side."""
    rng = np.random.default_rng(seed)
    finite = [np.where(np.isfinite(c), rng.random(len(c)), np.inf) for c in problem.costs]
    edges = tuple(
        Edge(
            u=e.u, v=e.v, cost=np.where(np.isfinite(e.cost), 0.3 * rng.random(e.cost.shape), np.inf)
        )
        for e in problem.edges
    )
    noise = replace(problem, costs=tuple(finite), edges=edges, usages=(), limit=float("inf"))
    choice = decode(noise, reparametrise(noise, sweeps=10))
    return choice if np.isfinite(noise.cost(choice)) else solve(noise).choice


def with_again(plan: Planned, again: Callable[[Node], bool], mode: str = AGAIN) -> Planned:
    """The plan with another mode of the ops of forward for which `again` is true."""
    nodes, chosen = plan.model.graph.nodes, plan.choices.strategies
    strategies = {
        n: replace(s, mode=mode) if nodes[n].phase == "forward" and again(nodes[n]) else s
        for n, s in chosen.items()
    }
    choices = replace(plan.choices, strategies=strategies)
    assert not [*mode_faults(plan.model, strategies)]
    with checking():
        program = lower(plan.model, plan.mesh, choices, plan.table.costing)
    dry_run(program)
    return replace(plan, choices=choices, program=program)
