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
from planner.workload.precision import PLAIN, Formats

__all__ = ["UpdateCosts", "local_numel", "total_gradient_bytes"]


class UpdateCosts:
    """Costs on `cluster` under a mesh of `sizes`; gradients are clipped if `clip_norm` is given,
    and come in the format in which `formats` has them reduced."""

    def __init__(
        self,
        cluster: Cluster,
        sizes: tuple[int, ...],
        messages: MessageCosts,
        optimizer: str,
        *,
        clip_norm: float | None = None,
        clip_epsilon: float = CLIP_EPSILON,
        formats: Formats = PLAIN,
    ) -> None:
        self.cluster, self.sizes, self.messages = cluster, sizes, messages
        self.optimizer, self.clip_norm, self.clip_epsilon = optimizer, clip_norm, clip_epsilon
        self.formats = formats

    def update(
        self, flat: tuple[int, ...], itemsize: int, dtype: str, strategy: ParameterStrategy
    ) -> float:
        """Seconds to update a parameter's piece and, if the optimizer updates a master copy, to
        write the parameter from it."""
        piece, updated = (
            local_numel(flat, strategy.updated, self.sizes),
            self.formats.updated(dtype),
        )
        state = optimizer_state_bytes(self.optimizer, numel=piece, dtype=updated)
        # parameter (or master) in and out, gradient in, state in and out
        nbytes = 3 * piece * dtype_bytes(updated) + 2 * state
        if self.formats.master:
            nbytes += piece * (dtype_bytes(updated) + itemsize)  # master in, parameter out
        name = f"optimizer.{self.optimizer}"
        seconds = op_time(
            self.cluster.device, kind="optimizer", flops=0.0, nbytes=nbytes, dtype=updated, op=name
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

    def scaling(self, nbytes: float, dtype: str, written: float | None = None) -> float:
        """Seconds to scale gradients of `nbytes`, or to copy them; the results have as many, or
        `written`, bytes."""
        both = nbytes + (nbytes if written is None else written)
        return self.cluster.slowdown("elementwise") * op_time(
            self.cluster.device, kind="elementwise", flops=0.0, nbytes=both, dtype=dtype
        )

    @property
    def sums_squares(self) -> bool:
        """Whether a step needs the norm of all gradients: to clip them, or to see an overflow."""
        return self.clip_norm is not None or self.formats.scaled

    def changes_gradients(self, dtype: str) -> bool:
        """Whether the optimizer reads other gradients of parameters of `dtype` than those that are
        reduced: clipped, unscaled, or in another format."""
        return self.sums_squares or self.formats.reduced(dtype) != self.formats.updated(dtype)

    def ready(
        self, flat: tuple[int, ...], itemsize: int, dtype: str, strategy: ParameterStrategy
    ) -> float:
        """Seconds to make a parameter's piece of the gradient ready for the optimizer; 0 if it is
        as it was reduced."""
        if not self.changes_gradients(dtype):
            return 0.0
        reduced, updated = self.formats.reduced(dtype), self.formats.updated(dtype)
        piece = float(local_numel(flat, strategy.updated, self.sizes))
        nbytes = piece * dtype_bytes(reduced)
        seconds = self.scaling(nbytes, updated, piece * dtype_bytes(updated))
        return seconds + (self.square_sum(nbytes, reduced) if self.sums_squares else 0.0)

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
        and the optimizer's state with the master copy, if it has one; on the device at `place`, by
        default the one with the largest."""
        piece, updated = (
            local_numel(flat, strategy.updated, self.sizes, place),
            self.formats.updated(dtype),
        )
        master = piece * dtype_bytes(updated) if self.formats.master else 0
        state = optimizer_state_bytes(self.optimizer, numel=piece, dtype=updated)
        return {"parameters": piece * itemsize, "optimizer": master + state}


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
