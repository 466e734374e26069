"""The meshes worth planning: cluster -> meshes of one, two and three axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from cost_models.cluster import Cluster
from cost_models.errors import NoPlan
from planner.layout import Mesh
from planner.model import Model

__all__ = ["check_batch", "meshes_of"]


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


def check_batch(model: Model, cluster: Cluster) -> None:
    """A batch of fewer samples than devices, of which no mesh has an axis that divides it, is refused."""
    batch, n = model.graph.values[model.graph.inputs[0]].shape[0], cluster.num_devices
    if batch < n and math.gcd(batch, n) == 1:
        raise NoPlan(
            f"a batch of {batch} has fewer samples than {n} devices, and shares no factor with them: use --batch {n}, "
            f"or --mesh tp={n} to plan without splitting the batch"
        )
