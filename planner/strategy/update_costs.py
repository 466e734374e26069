"""The cost of the update: the optimizer's step on a parameter's piece, clipping gradients,
gathering the new parameters; and the bytes that it holds between steps."""

from __future__ import annotations

import math

from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes, optimizer_state_bytes
from cost_models.roofline import op_time
from planner.graph.graph import Graph
from planner.graph.layout import Layout, local_sizes
from planner.kernels.clip import CLIP_EPSILON
from planner.strategy.message_costs import MessageCosts
from planner.strategy.strategies import ParameterStrategy

__all__ = ["UpdateCosts", "local_numel", "total_gradient_bytes"]


class UpdateCosts:
    """Costs on `cluster` under a mesh of `sizes`; gradients are clipped if `clip_norm` is
    given."""

    def __init__(
        self,
        cluster: Cluster,
        sizes: tuple[int, ...],
        messages: MessageCosts,
        optimizer: str,
        *,
        clip_norm: float | None = None,
        clip_epsilon: float = CLIP_EPSILON,
    ) -> None:
        self.cluster, self.sizes, self.messages = cluster, sizes, messages
        self.optimizer, self.clip_norm, self.clip_epsilon = optimizer, clip_norm, clip_epsilon

    def update(
        self, flat: tuple[int, ...], itemsize: int, dtype: str, strategy: ParameterStrategy
    ) -> float:
        """Seconds to update a parameter's piece."""
        piece = local_numel(flat, strategy.updated, self.sizes)
        state = optimizer_state_bytes(self.optimizer, numel=piece, dtype=dtype)
        nbytes = (
            3 * piece * itemsize
        ) + 2 * state  # parameter in and out, gradient in, state in and out
        name = f"optimizer.{self.optimizer}"
        seconds = op_time(
            self.cluster.device, kind="optimizer", flops=0.0, nbytes=nbytes, dtype=dtype, op=name
        )
        return seconds * self.cluster.slowdown("optimizer")

    def gather(self, flat: tuple[int, ...], itemsize: int, strategy: ParameterStrategy) -> float:
        """Seconds to gather a parameter that is updated in pieces and kept whole from its first
        reading to its last (ZeRO-1/2). The next step gathers it one layer ahead, beside compute."""
        if strategy.stored == strategy.updated:
            return 0.0
        return self.messages.layouts(flat, itemsize, "forward").cost(
            strategy.updated, strategy.stored
        )

    def square_sum(self, nbytes: float, dtype: str) -> float:
        """Seconds to sum the squares of gradients."""
        return self.cluster.slowdown("reduction") * op_time(
            self.cluster.device, kind="reduction", flops=0.0, nbytes=nbytes, dtype=dtype
        )

    def scaling(self, nbytes: float, dtype: str) -> float:
        """Seconds to scale gradients."""
        return self.cluster.slowdown("elementwise") * op_time(
            self.cluster.device, kind="elementwise", flops=0.0, nbytes=2 * nbytes, dtype=dtype
        )

    def clip(
        self, flat: tuple[int, ...], itemsize: int, dtype: str, strategy: ParameterStrategy
    ) -> float:
        """Seconds to clip a parameter's piece of the gradient; 0 if gradients are not clipped."""
        if self.clip_norm is None:
            return 0.0
        nbytes = float(local_numel(flat, strategy.updated, self.sizes) * itemsize)
        return self.square_sum(nbytes, dtype) + self.scaling(nbytes, dtype)

    def step_overhead(self) -> float:
        """Fixed seconds of the host per step."""
        return self.cluster.device.step_overhead * self.cluster.slowdown("optimizer")

    def parameter_bytes(
        self,
        flat: tuple[int, ...],
        itemsize: int,
        dtype: str,
        strategy: ParameterStrategy,
        place: tuple[int, ...] | None = None,
    ) -> dict[str, int]:
        """Bytes that a parameter holds at all times, between steps too: the piece that is updated,
        and the optimizer's state; on the device at `place`, by default the one with the largest."""
        piece = local_numel(flat, strategy.updated, self.sizes, place)
        return {
            "parameters": piece * itemsize,
            "optimizer": optimizer_state_bytes(self.optimizer, numel=piece, dtype=dtype),
        }


def local_numel(
    flat: tuple[int, ...],
    layout: Layout,
    sizes: tuple[int, ...],
    place: tuple[int, ...] | None = None,
) -> int:
    """The number of elements of the shard at `place`, by default of the largest shard."""
    local = local_sizes(flat, layout, sizes, place)
    assert local is not None
    return math.prod(local)


def total_gradient_bytes(graph: Graph) -> float:
    """Bytes of all gradients, whole."""
    return float(
        sum(
            graph.values[p.gradient].numel * dtype_bytes(graph.values[p.gradient].dtype)
            for p in graph.parameters
        )
    )
