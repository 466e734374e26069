"""The numbers of microbatches that a batch can be run in."""

from __future__ import annotations

import math

from cost_models.errors import BadValue
from planner.dims.subdims import SubDims
from planner.graph.graph import Graph

__all__ = ["check_microbatches", "possible_microbatches", "samples_of"]


def samples_of(graph: Graph, dims: SubDims) -> dict[int, tuple[int, int]]:
    """For every batch tensor that holds samples: the atom of its samples, and how many they are.
    They are dim 0, or its outermost sub-dim if the model takes it apart. A tensor whose dim 0 has
    another size than the first's, such as a mask of positions, belongs to all samples, unless the
    model lays its dim 0 out as samples and something else (targets given flat)."""
    outermost = {
        v: (dims.atoms[v][0], dims.shapes[v][0][0])
        for v in graph.inputs
        if dims.shapes[v] and dims.shapes[v][0]
    }
    sizes = {v: graph.values[v].shape[0] for v in graph.inputs if graph.values[v].shape}
    batch = next(iter(sizes.values()), 0)
    atoms = {atom for v, (atom, _) in outermost.items() if sizes[v] == batch}
    return {v: of for v, of in outermost.items() if sizes[v] == batch or of[0] in atoms}


def possible_microbatches(graph: Graph, dims: SubDims) -> tuple[int, ...]:
    """The numbers of microbatches into which the batch of a whole step's graph can be cut, in
    order: 1 is always one. Whether the model may be cut at all is found by cutting it."""
    sizes = [size for _, size in samples_of(graph, dims).values()]
    whole = max(1, math.gcd(*sizes))
    small = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    return tuple(sorted({*small, *(whole // n for n in small)}))


def check_microbatches(graph: Graph, dims: SubDims, microbatches: int) -> None:
    """Raises BadValue for a number of microbatches that the batch cannot be cut into, with the
    nearest ones that it can."""
    possible = possible_microbatches(graph, dims)
    if microbatches in possible:
        return
    batch = next((graph.values[v].shape[0] for v in graph.inputs if graph.values[v].shape), 0)
    least = max(n for n in possible if n <= microbatches)
    more = [n for n in possible if n > microbatches]
    near = " or ".join(map(str, [least, *more[:1]]))
    why = (
        f"more than the {batch} samples of a batch"
        if microbatches > batch
        else f"{batch} samples are not cut into {microbatches} equal parts"
        if batch % microbatches
        else f"the model takes the {batch} samples apart, into parts of another size"
    )
    raise BadValue(f"--microbatches {microbatches}: {why}; use --microbatches {near}")
