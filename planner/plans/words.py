"""A plan in the model's own words: what each mesh axis splits, layer by layer.

Atoms get names from the workload's `dim_names`, from the batch, and from the ops that know a word
(heads, hidden units).
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from dataclasses import dataclass

from planner.dims.roots import is_view
from planner.dims.ties import pattern_of
from planner.graph.graph import Node
from planner.graph.layout import Mesh, piece_sizes
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.strategies import Option
from planner.strategy.traced_model import Model
from planner.workload.workload import Workload

__all__ = [
    "GroupWords",
    "atom_names",
    "axis_names",
    "describe",
    "op_words",
    "ops_by_source",
    "parameter_words",
    "replicated_ops",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupWords:
    """What mesh axis a splits in one group of like modules: `ops[a]` and `parameters[a]`."""

    group: str
    count: int
    ops: tuple[str, ...]
    parameters: tuple[str, ...]


def atom_names(model: Model, workload: Workload) -> dict[int, str]:
    """A word for every atom that has one."""
    names = dict.fromkeys(model.batch_atoms, "batch")
    dims = model.dims
    for value in model.graph.inputs:
        shape = dims.shapes[value]
        if len(shape) == 2 and "int" in model.graph.values[value].dtype:
            for atom in dims.atoms[value][len(shape[0]) :]:
                names.setdefault(atom, "sequence")
    for parameter in model.graph.parameters:
        _from_hints(model, workload, parameter.name, parameter.value, names)
    for op in dims.ops:
        words = dict(op.signature.names)
        for leaf, letter in enumerate(op.letter):
            if letter in words:
                names.setdefault(op.atoms[leaf], words[letter])
    for parameter in model.graph.parameters:
        module, _, kind = parameter.name.rpartition(".")
        for place, atom in enumerate(dims.atoms[parameter.value]):
            names.setdefault(atom, f"{module.rpartition('.')[2] or module} {_ordinal(place, kind)}")
    return names


def _ordinal(place: int, kind: str) -> str:
    return (
        "outputs" if place == 0 else "inputs" if place == 1 and kind == "weight" else f"dim {place}"
    )


def _from_hints(
    model: Model, workload: Workload, name: str, value: int, names: dict[int, str]
) -> None:
    hint = next(
        (h for pattern, h in workload.dim_names.items() if fnmatch.fnmatchcase(name, pattern)), None
    )
    if hint is None:
        return
    for words, atoms in zip(hint, model.dims.atoms_by_dim(value), strict=False):
        parts = words.split(",")
        if len(parts) == len(atoms):
            for atom, part in zip(atoms, parts, strict=True):
                names.setdefault(atom, part.strip())


def axis_names(
    model: Model, choices: Choices, costing: Costing, sizes: tuple[int, ...]
) -> tuple[str, ...]:
    """`dp` for an axis that mostly splits the batch, `tp` for one that mostly splits something
    else, weighed by time."""
    batch = model.batch_atoms
    weights = [[0.0, 0.0] for _ in sizes]
    for index, strategy in choices.strategies.items():
        op = model.dims.ops[index]
        if model.casts_parameter(model.graph.nodes[index]):
            continue  # split as the parameter is stored, which says nothing about the work
        seconds = costing.ops.cost(model.graph.nodes[index], op, strategy)
        for axis, option in enumerate(strategy.options):
            if option.kind == "split":
                weights[axis][op.atoms[option.number] not in batch] += seconds
    stems = ["dp" if data >= other else "tp" for data, other in weights]
    return tuple(
        s if stems.count(s) == 1 else f"{s}{stems[: i + 1].count(s)}" for i, s in enumerate(stems)
    )


def describe(
    model: Model, workload: Workload, mesh: Mesh, choices: Choices, costing: Costing
) -> tuple[GroupWords, ...]:
    """One row per group of like modules that do real work or hold parameters."""
    names = atom_names(model, workload)
    ops: dict[str, list[Node]] = defaultdict(list)
    for node in model.graph.nodes:
        if (
            not is_view(model.dims, node.index)
            and model.dims.ops[node.index].signature.kind != "view"
        ):
            ops[pattern_of(node.path)].append(node)
    parameters: dict[str, list[int]] = defaultdict(list)
    for index, parameter in enumerate(model.graph.parameters):
        parameters[pattern_of(parameter.name.rpartition(".")[0])].append(index)
    rows = []
    for group in dict.fromkeys([*ops, *parameters]):
        axes = range(len(mesh.sizes))
        main = _main(model, choices, costing, ops.get(group, []))
        rows.append(
            GroupWords(
                group=group or "(loss and top level)",
                count=len({n.path for n in ops.get(group, [])})
                or _holders(model, parameters[group]),
                ops=tuple(op_words(model, names, choices, main, axis, mesh) for axis in axes),
                parameters=tuple(
                    parameter_words(model, names, choices, parameters.get(group, []), axis, mesh)
                    for axis in axes
                ),
            )
        )
    return tuple(rows)


def _holders(model: Model, parameters: list[int]) -> int:
    """The number of modules whose parameters are read by ops of other modules, such as those of an
    attention's projection."""
    return len({model.graph.parameters[index].name.rpartition(".")[0] for index in parameters})


def _main(model: Model, choices: Choices, costing: Costing, nodes: list[Node]) -> Node | None:
    """The forward op of a group that takes longest, casts of parameters left out."""
    nodes = [n for n in nodes if not model.casts_parameter(n)]
    forward = [n for n in nodes if n.phase == "forward"] or nodes
    return max(
        forward,
        key=lambda n: costing.ops.cost(n, model.dims.ops[n.index], choices.strategies[n.index]),
        default=None,
    )


def op_words(
    model: Model, names: dict[int, str], choices: Choices, node: Node | None, axis: int, mesh: Mesh
) -> str:
    """What an op splits on an axis."""
    if node is None:
        return "-"
    strategy, op = choices.strategies[node.index], model.dims.ops[node.index]
    option = strategy.options[axis]
    if option.kind == "split":
        size, counts = op.sizes[option.number], strategy.axes_of(option.number)
        what = names.get(op.atoms[option.number], f"dim of size {size}")
        return f"{what}{_uneven(size, tuple(mesh.sizes[a] for a in counts))}"
    return "whole" if option.kind == "whole" else "partial sums"


def _uneven(size: int, counts: tuple[int, ...]) -> str:
    """` (uneven: 6283 or 6282)` if axes of sizes `counts` split a sub-dim into shards of different
    sizes, else empty."""
    sizes = sorted(set(piece_sizes(size, counts)), reverse=True)
    return f" (uneven: {' or '.join(map(str, sizes))})" if len(sizes) > 1 else ""


def parameter_words(
    model: Model, names: dict[int, str], choices: Choices, indices: list[int], axis: int, mesh: Mesh
) -> str:
    """How parameters are kept on an axis."""
    words = []
    for index in indices:
        option: Option = choices.parameters[index].options[axis]
        what = (
            ""
            if option.number < 0
            else _piece_words(model, names, choices, index, option.number, mesh)
        )
        words.append(
            {"whole": "whole", "update": f"whole, updated by {what} (ZeRO)", "split": f"by {what}"}[
                option.kind
            ]
        )
    return "; ".join(dict.fromkeys(words)) or "-"


def _piece_words(
    model: Model, names: dict[int, str], choices: Choices, index: int, number: int, mesh: Mesh
) -> str:
    """A word for the sub-dim at which a parameter is split."""
    value, updated = model.graph.parameters[index].value, choices.parameters[index].updated
    size = model.dims.flat(value)[number]
    counts = tuple(
        count for count, placement in zip(mesh.sizes, updated, strict=True) if placement == number
    )
    return names.get(model.dims.atoms[value][number], f"dim {number}") + _uneven(size, counts)


def replicated_ops(model: Model, choices: Choices, costing: Costing, mesh: Mesh) -> tuple[str, ...]:
    """The ops that every device runs whole although they take more than a thousandth of the compute
    time."""
    if mesh.num_devices == 1:
        return ()
    seconds = {
        n: costing.ops.cost(model.graph.nodes[n], model.dims.ops[n], s)
        for n, s in choices.strategies.items()
    }
    total = sum(seconds.values())
    whole: dict[str, float] = defaultdict(float)
    for index, strategy in choices.strategies.items():
        if all(option.kind == "whole" for option in strategy.options):
            node = model.graph.nodes[index]
            whole[
                f"{pattern_of(node.path) or '(top)'}: {node.op.split('.')[1]} ({node.phase})"
            ] += seconds[index]
    return tuple(name for name, spent in whole.items() if spent > 1e-3 * total)


def ops_by_source(model: Model, source: str) -> tuple[str, ...]:
    """The ops whose signature's source is `source`: `discovered`, or `replicated` because nothing
    was found to split; as `module pattern: op`."""
    dims = model.dims.ops
    found = (
        f"{pattern_of(n.path) or '(top)'}: {n.op.split('.')[1]}"
        for n in model.graph.nodes
        if dims[n.index].signature.source == source
    )
    return tuple(dict.fromkeys(found))
