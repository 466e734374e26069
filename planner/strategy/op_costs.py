"""The cost of an op on one shard: its kernel, its dispatch and the collectives inside it."""

from __future__ import annotations

import math

from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes, lstm_reserve_elements
from cost_models.roofline import host_time, op_time
from planner.dims.subdims import OpDims
from planner.graph.graph import Node
from planner.rules import OpCost
from planner.strategy.message_costs import MessageCosts
from planner.strategy.strategies import Strategy

__all__ = ["OpCosts", "op_dtype"]


#: This share of the memory time of an op is added to its cost, so that of strategies that cost the
#: same (both bound by a launch, say) the one that moves less memory wins. It changes no objective
#: by more than a thousandth.
_TIE_BREAK = 1e-3


class OpCosts:
    """Costs on `cluster` under a mesh of `sizes`. Kernels are kept: layers repeat."""

    def __init__(self, cluster: Cluster, sizes: tuple[int, ...], messages: MessageCosts) -> None:
        self.cluster, self.sizes, self.messages = cluster, sizes, messages
        self._ops: dict[object, tuple[float, float]] = {}

    def cost(self, node: Node, dims: OpDims, strategy: Strategy) -> float:
        """Seconds of an op on one shard: the kernel or its dispatch, whichever is longer, and
        the collectives inside."""
        kernel, moved = self._kernel(node, dims, strategy)
        host = host_time(self.cluster.device, dims.signature.kind)
        return max(kernel, host) + _TIE_BREAK * moved + self.inner(node, dims, strategy)

    def simulated(self, node: Node, dims: OpDims, strategy: Strategy) -> float:
        """Seconds of an op on one shard on the simulator's compute stream: the kernel and the
        collectives inside."""
        return self._kernel(node, dims, strategy)[0] + self.inner(node, dims, strategy)

    def _kernel(self, node: Node, dims: OpDims, strategy: Strategy) -> tuple[float, float]:
        """Seconds of the kernel, and the seconds of its bytes at the datasheet's bandwidth."""
        letters = dims.letter_sizes(strategy.sizes)
        signature = dims.signature
        # Adding a bias and adding a residual have the same letters; their shapes differ.
        shapes = (signature.operands, signature.results)
        key = (
            node.op,
            node.args[1:] if signature.cost else None,
            letters,
            shapes,
            node.result_dtypes,
            signature.kind,
        )
        if key not in self._ops:
            device = self.device_time(node, dims, letters)
            moved = (
                dims.signature.elements(letters)
                * dtype_bytes(op_dtype(node))
                / self.cluster.device.memory_bandwidth
            )
            self._ops[key] = (device, moved)
        return self._ops[key]

    def device_time(self, node: Node, dims: OpDims, letters: tuple[int, ...]) -> float:
        """Seconds of the op's kernel at the given letter sizes."""
        signature, dtype = dims.signature, op_dtype(node)
        cost = (
            signature.cost(letters)
            if signature.cost
            else OpCost(flops=0.0, elements=signature.elements(letters))
        )
        return self.cluster.slowdown(signature.kind) * op_time(
            self.cluster.device,
            kind=signature.kind,
            flops=cost.flops,
            nbytes=cost.elements * dtype_bytes(dtype),
            dtype=dtype,
            gemm=cost.gemm,
            steps=cost.steps,
            op=node.op,
        )

    def reserve_bytes(self, node: Node, dims: OpDims, sizes: tuple[int, ...]) -> int | None:
        """Bytes that one shard of an LSTM keeps for its backward, at the given leaf sizes; None for
        any other op. A library's own kernel, with a workspace of its own, runs only in float32 and
        with whole hidden units."""
        if dims.signature.lstm is None:
            return None
        letters, dtype = dims.letter_sizes(sizes), op_dtype(node)
        whole = all(letters[i] == dims.signature.sizes[i] for i in dims.signature.inner)
        library = self.cluster.device.lstm_library if whole and dtype == "float32" else None
        steps, batch, width, hidden = dims.signature.lstm(letters)
        return dtype_bytes(dtype) * lstm_reserve_elements(
            library, steps=steps, batch=batch, width=width, hidden=hidden
        )

    def view(self) -> float:
        """Seconds of a view, which only the host spends; if the host computes too (a CPU), the
        least time of an op."""
        device = self.cluster.device
        return (
            device.kernel_overhead * self.cluster.slowdown("elementwise") if device.is_host else 0.0
        )

    def inner(self, node: Node, dims: OpDims, strategy: Strategy) -> float:
        """Seconds of the collectives inside an op, if a strategy splits one of its `inner`
        letters."""
        signature = dims.signature
        if signature.inner_traffic is None:
            return 0.0
        axes = tuple(
            a
            for a, o in enumerate(strategy.options)
            if o.kind == "split" and dims.letter[o.number] in signature.inner
        )
        if not axes:
            return 0.0
        ranks = math.prod(self.sizes[a] for a in axes)
        itemsize = dtype_bytes(op_dtype(node))
        traffic = signature.inner_traffic(dims.letter_sizes(strategy.sizes), ranks)
        return sum(
            self.messages.communication(kind, axes, elements * itemsize) * times
            for kind, elements, times in traffic
        )


def op_dtype(node: Node) -> str:
    """The dtype in which an op computes: that of its first floating result, or of its first."""
    floating = [d for d in node.result_dtypes if "float" in d]
    return (floating or list(node.result_dtypes))[0]
