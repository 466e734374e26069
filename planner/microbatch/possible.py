"""The numbers of microbatches that a batch can be run in."""

from __future__ import annotations

import math

from cost_models.errors import BadValue
from planner.dims.subdims import SubDims
from planner.graph.graph import Graph

__all__ = ["check_microbatches", "possible_microbatches", "samples_of"]


def samples_of(graph: Graph, dims: SubDims) -> dict[int, tuple[int, int]]:
    """For every batch tensor that holds samples: the atom of its samples, and how many they are.
    They are dim 0, or its outermost sub-dim if the model takes it apart. A tensor without dims
    belongs to all samples."""
    return {
        v: (dims.atoms[v][0], dims.shapes[v][0][0])
        for v in graph.inputs
        if dims.shapes[v] and dims.shapes[v][0]
    }


def possible_microbatches(graph: Graph, dims: SubDims) -> tuple[int, ...]:
    """The numbers of microbatches into which the batch of a whole step's graph can be cut, in
    order: 1 is always one. Whether the model may be cut at all is found by cutting it."""
    sizes = [size for _, size in samples_of(graph, dims).values()]
    whole = math.gcd(*sizes) if len(sizes) == _with_samples(graph) else 1
    return tuple(n for n in range(1, max(1, whole) + 1) if max(1, whole) % n == 0)


def check_microbatches(graph: Graph, dims: SubDims, microbatches: int) -> None:
    """Raises BadValue for a number of microbatches that the batch cannot be cut into, with the
    nearest ones that it can."""
    possible = possible_microbatches(graph, dims)
    if microbatches in possible:
        return
    batch = max(
        (graph.values[v].shape[0] for v in graph.inputs if graph.values[v].shape), default=0
    )
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


def _with_samples(graph: Graph) -> int:
    return sum(bool(graph.values[v].shape) for v in graph.inputs)
