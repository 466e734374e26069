"""The costs of ops, collectives and updates on one mesh of one cluster.

These three records are the only place where the planner asks `cost_models`. Every figure is per
device: all devices do the same, side by side.
"""

from __future__ import annotations

from cost_models.machine import Cluster
from planner.kernels.clip import CLIP_EPSILON
from planner.strategy.message_costs import MessageCosts
from planner.strategy.op_costs import OpCosts
from planner.strategy.update_costs import UpdateCosts
from planner.workload.precision import PLAIN, Formats

__all__ = ["Costing"]


class Costing:
    """Costs on `cluster` under a mesh of `sizes`; gradients of `gradient_bytes` are reduced in
    buckets, and clipped if `clip_norm` is given; `formats` are those of the update. Caches live
    and die with the object."""

    def __init__(
        self,
        cluster: Cluster,
        sizes: tuple[int, ...],
        optimizer: str,
        gradient_bytes: float,
        *,
        clip_norm: float | None = None,
        clip_epsilon: float = CLIP_EPSILON,
        formats: Formats = PLAIN,
    ) -> None:
        self.cluster, self.sizes = cluster, sizes
        self.messages = MessageCosts(cluster, sizes, gradient_bytes)
        self.ops = OpCosts(cluster, sizes, self.messages)
        self.updates = UpdateCosts(
            cluster,
            sizes,
            self.messages,
            optimizer,
            clip_norm=clip_norm,
            clip_epsilon=clip_epsilon,
            formats=formats,
        )
