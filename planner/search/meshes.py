"""The meshes worth planning: cluster -> meshes of one, two and three axes.

Which axis lies inside a node is a choice like any other: two orders of a mesh's axes are both
planned if they differ in the links that some axes cross.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from cost_models.collectives import collective_model
from cost_models.errors import NoPlan
from cost_models.group_links import GroupLinks
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.strategy.pinned import batch_words
from planner.strategy.traced_model import Model

__all__ = ["check_batch", "meshes_of"]

Sizes = tuple[int, ...]


def meshes_of(cluster: Cluster) -> Iterator[Mesh]:
    """All meshes of one, two and three axes worth planning. Orders of the same axes are different
    meshes if they differ in the links that some axes cross together: on one switch each shape
    occurs once, largest axis first; over nodes or direct links, in several orders. Over nodes, a
    mesh of three axes must have the nodes as its first axis or a node's devices as its last."""
    n = cluster.num_devices
    taken: dict[Sizes, list[Sizes]] = {}
    for sizes in ((n,), *_shapes(n, 2), *(s for s in _shapes(n, 3) if _at_nodes(cluster, s))):
        alike = taken.setdefault(tuple(sorted(sizes)), [])
        if not any(_same_links(cluster, sizes, other) for other in alike):
            alike.append(sizes)
            yield Mesh(("a", "b", "c")[: len(sizes)], sizes)


def _shapes(n: int, num_axes: int) -> Iterator[Sizes]:
    """The sizes of `num_axes` axes whose product is n, in all orders; orders of the same sizes are
    sorted, largest first."""
    divisors = [d for d in range(2, n) if n % d == 0]
    for sizes in itertools.combinations_with_replacement(divisors, num_axes):
        if math.prod(sizes) == n:
            yield from dict.fromkeys(itertools.permutations(sizes[::-1]))


def _at_nodes(cluster: Cluster, sizes: Sizes) -> bool:
    """Whether no axis lies partly inside a node and partly between nodes, if that can be
    avoided."""
    return (
        cluster.num_nodes == 1 or sizes[0] == cluster.num_nodes or sizes[-1] == cluster.node_width
    )


def _same_links(cluster: Cluster, one: Sizes, other: Sizes) -> bool:
    """Whether the axes of two orders can be matched so that all of them, alone and together, cross
    the same links: then both meshes have the same plans at the same costs."""
    return any(
        all(one[to] == size for to, size in zip(match, other, strict=True))
        and all(
            set(_links(cluster, other, axes))
            == set(_links(cluster, one, tuple(sorted(match[a] for a in axes))))
            for count in range(1, len(other) + 1)
            for axes in itertools.combinations(range(len(other)), count)
        )
        for match in itertools.permutations(range(len(one)))
    )


def _links(cluster: Cluster, sizes: Sizes, axes: Sizes) -> tuple[GroupLinks, ...]:
    return collective_model(cluster, sizes, axes).links


def check_batch(model: Model, cluster: Cluster) -> None:
    """Raises NoPlan for a batch, or a microbatch, of fewer samples than devices, without a factor
    in common."""
    batch, n = model.graph.values[model.graph.inputs[0]].shape[0], cluster.num_devices
    if batch < n and math.gcd(batch, n) == 1:
        parts = model.graph.microbatches
        fewer = "" if parts == 1 else " fewer --microbatches,"
        raise NoPlan(
            f"{batch_words(model)} has fewer samples than {n} devices, and shares no factor with them: "
            f"use --batch {n * parts},{fewer} or --mesh tp={n} to plan without splitting the batch"
        )
