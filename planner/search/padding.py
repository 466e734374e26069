"""Whether the chosen plan would be faster with a padded vocabulary.

Model, choices -> sizes worth planning -> the same model with another vocabulary, without tracing it
again. Embedding rows that no id selects, and classes that no target has, change nothing that is
learnt except the softmax's sum, so a user may accept them. Sizes at which the ops are cheaper under
the same choices are planned on the same mesh, and reported if faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from planner.dims.subdims import OpDims
from planner.graph.graph import Value
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.strategies import op_strategies
from planner.strategy.traced_model import Model
from planner.workload.workload import Workload

__all__ = ["cheaper_sizes", "resized", "vocabulary"]

#: The names of settings that are a vocabulary's size.
SETTINGS = ("vocab", "vocab_size")
#: Sizes tried are multiples of this, and of this times the number of devices, so that tiles of a
#: product are full. Source: CUTLASS default tiles.
MULTIPLE = 64


#: Ops with a vocabulary, and its letter in their signature.
_HAVE_ONE = {"aten.embedding.default": 0, "shardwright.cross_entropy": 1}


def vocabulary(model: Model, workload: Workload) -> tuple[str, frozenset[int]] | None:
    """The setting of the vocabulary's size, and the atoms of vocabularies: rows of embeddings, and
    classes of a loss."""
    atoms: dict[str, set[int]] = {}
    for node, dims in zip(model.graph.nodes, model.dims.ops, strict=True):
        letter = _HAVE_ONE.get(node.op, -1)
        if dims.letter.count(letter) == 1:
            leaf = dims.letter.index(letter)
            for setting in SETTINGS:
                if workload.options.get(setting) == dims.sizes[leaf]:
                    atoms.setdefault(setting, set()).add(dims.atoms[leaf])
    return next(((setting, frozenset(found)) for setting, found in atoms.items()), None)


def cheaper_sizes(
    model: Model, atoms: frozenset[int], choices: Choices, costing: Costing
) -> Iterator[int]:
    """Larger sizes of the atoms at which the ops that have one cost less, under the same
    choices."""
    using = [i for i in choices.strategies if not atoms.isdisjoint(model.dims.ops[i].atoms)]
    size = next(
        s
        for i in using
        for a, s in zip(model.dims.ops[i].atoms, model.dims.ops[i].sizes, strict=True)
        if a in atoms
    )
    now = _seconds(model, using, choices, costing)
    for multiple in sorted({MULTIPLE, MULTIPLE * math.prod(costing.sizes)}):
        larger = -(-size // multiple) * multiple
        if larger > size and _seconds(resized(model, atoms, larger), using, choices, costing) < now:
            yield larger


def _seconds(model: Model, nodes: list[int], choices: Choices, costing: Costing) -> float:
    total = 0.0
    for index in nodes:
        dims, options = model.dims.ops[index], choices.strategies[index].options
        (strategy,) = op_strategies(
            dims,
            costing.sizes,
            lambda axis, option, options=options: option == options[axis],  # type: ignore[misc]
        )
        total += costing.ops.cost(model.graph.nodes[index], dims, strategy)
    return total


def resized(model: Model, atoms: frozenset[int], size: int) -> Model:
    """The model with another size of some atoms. Only for costs: constants in arguments stay as
    they were traced."""
    dims = model.dims
    shapes = tuple(
        tuple(tuple(size if next(own) in atoms else s for s in dim) for dim in shape)
        for shape, own in (
            (shape, iter(a)) for shape, a in zip(dims.shapes, dims.atoms, strict=True)
        )
    )
    values = tuple(
        _value(v, tuple(math.prod(dim) for dim in shapes[v.id])) for v in model.graph.values
    )
    nodes = tuple(
        replace(
            n,
            result_shapes=tuple(
                s if r is None else values[r].shape
                for r, s in zip(n.results, n.result_shapes, strict=True)
            ),
        )
        if not atoms.isdisjoint(op.atoms)
        else n
        for n, op in zip(model.graph.nodes, dims.ops, strict=True)
    )
    ops = tuple(_op(op, atoms, size) if not atoms.isdisjoint(op.atoms) else op for op in dims.ops)
    return replace(
        model,
        graph=replace(model.graph, nodes=nodes, values=values),
        dims=replace(dims, shapes=shapes, ops=ops),
    )


def _value(value: Value, shape: tuple[int, ...]) -> Value:
    return value if value.shape == shape else replace(value, shape=shape)


def _op(op: OpDims, atoms: frozenset[int], size: int) -> OpDims:
    sizes = tuple(size if a in atoms else s for a, s in zip(op.atoms, op.sizes, strict=True))
    return replace(op, sizes=sizes, signature=replace(op.signature, sizes=op.letter_sizes(sizes)))
