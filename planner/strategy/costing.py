"""What one op, one collective or one update costs on one mesh of one cluster.

The one place where the planner asks `cost_models`. Every figure is of one device: devices do the
same, side by side.
"""

from __future__ import annotations

import math

from cost_models.cluster import Cluster
from cost_models.collectives import CollectiveModel, collective_model
from cost_models.group_links import LinkClass
from cost_models.memory import dtype_bytes, lstm_reserve_elements, optimizer_state_bytes
from cost_models.roofline import host_time, op_time
from planner.dims.subdims import OpDims
from planner.graph.graph import Graph, Node
from planner.graph.layout import Layout, local_sizes
from planner.kernels.clip import CLIP_EPSILON
from planner.program.copies import Copies
from planner.rules import OpCost
from planner.strategy.redistribute import Layouts
from planner.strategy.strategies import ParameterStrategy, Strategy

__all__ = ["BUCKET_BYTES", "BUCKET_SIZES", "Costing"]


#: The sizes of the flat buckets in which gradients are reduced that a plan chooses from. The
#: smallest is DDP's default (`bucket_cap_mb=25`); each further one is a quarter of the messages.
BUCKET_SIZES = tuple(mib * 1024 * 1024 for mib in (25, 100, 400, 1600))
BUCKET_BYTES = BUCKET_SIZES[0]

#: A bucket is large enough if a byte in it costs at most this many times what it costs in the
#: largest.
_LATENCY = 1.5

#: Among strategies that cost the same (both bound by a launch, say), the one that moves less
#: memory: this share of the memory time of an op is added to its cost. It changes no objective by
#: more than a thousandth.
_TIE_BREAK = 1e-3


class Costing:
    """Costs on `cluster` under a mesh of `sizes`; gradients are clipped where `clip_norm` is
    given. Caches live and die with the object."""

    def __init__(
        self,
        cluster: Cluster,
        sizes: tuple[int, ...],
        optimizer: str,
        gradient_bytes: float,
        *,
        clip_norm: float | None = None,
        clip_epsilon: float = CLIP_EPSILON,
    ) -> None:
        self.clip_norm, self.clip_epsilon = clip_norm, clip_epsilon
        self.cluster, self.sizes, self.optimizer = cluster, sizes, optimizer
        self._models: dict[tuple[int, ...], CollectiveModel] = {}
        self._seconds: dict[tuple[str, tuple[int, ...], float], float] = {}
        self._ops: dict[object, tuple[float, float]] = {}
        self._copies: dict[float, float] = {}
        self._layouts: dict[tuple[tuple[int, ...], int, bool], Layouts] = {}
        self.bucket_size = self._large_enough()
        self.bucket = min(float(self.bucket_size), max(gradient_bytes, 1.0))

    # -------------------------------------------------------------------------------- communication

    def communication(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        """Seconds of one collective on `nbytes` (the whole logical buffer); a `slice` is a view
        and free."""
        if kind == "slice" or math.prod(self.sizes[a] for a in axes) == 1:
            return 0.0
        key = (kind, axes, nbytes)
        if key not in self._seconds:
            self._seconds[key] = float(self._model(axes).time(kind, nbytes))
        return self._seconds[key]

    def _model(self, axes: tuple[int, ...]) -> CollectiveModel:
        if axes not in self._models:
            self._models[axes] = collective_model(self.cluster, self.sizes, axes)
        return self._models[axes]

    def link_class(self, axes: tuple[int, ...]) -> LinkClass:
        """Which links a collective over `axes` shares with others: `node` if all its groups lie
        inside a node, else `network`. Collectives of one class take turns on its links; those of
        two run side by side."""
        return self._model(axes).link_class

    def _large_enough(self) -> int:
        """The smallest size of a bucket whose bytes cost about as little as in the largest, if
        all devices reduce it together: what the objective prices shares of, and where the
        simulator's search for a size begins."""
        axes = tuple(range(len(self.sizes)))
        most = BUCKET_SIZES[-1]
        rate = self.communication("all_reduce", axes, float(most)) / most
        sizes = (
            s
            for s in BUCKET_SIZES
            if self.communication("all_reduce", axes, float(s)) <= _LATENCY * rate * s
        )
        return next(sizes, most)

    def link_classes(self) -> tuple[LinkClass, ...]:
        """The classes of links that the mesh's axes run over, none on one device."""
        return tuple(
            dict.fromkeys(self.link_class((a,)) for a, size in enumerate(self.sizes) if size > 1)
        )

    def merged(self, kind: str, axes: tuple[int, ...], nbytes: float, most: float) -> float:
        """The fewest seconds of `nbytes` as a share of any message of at most `most` bytes."""
        if kind == "slice" or math.prod(self.sizes[a] for a in axes) == 1:
            return 0.0
        return nbytes * self._model(axes).least_per_byte(kind, most)

    def bucketed(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        """Seconds of a gradient's collective as its share of a bucket: T(bucket) n / bucket."""
        if nbytes >= self.bucket:
            return self.communication(kind, axes, nbytes)
        return self.communication(kind, axes, self.bucket) * nbytes / self.bucket

    def layouts(self, flat: tuple[int, ...], itemsize: int, phase: str) -> Layouts:
        """The layouts of a tensor and what it costs to change them; gradients' and updated
        parameters', as shares of buckets."""
        key = (flat, itemsize, phase == "update")
        if key not in self._layouts:
            update = phase == "update"
            time, copied = (
                (self.bucketed, self.copied_in_bucket)
                if update
                else (self.communication, self.copied_alone)
            )
            self._layouts[key] = Layouts(flat, itemsize, self.sizes, time, copied)
        return self._layouts[key]

    # --------------------------------------------------------------------------------------- copies

    def copying(self, nbytes: float, num_kernels: int) -> float:
        """Device seconds to copy `nbytes`, read once and written once, by so many kernels of
        like size."""
        if num_kernels == 0:
            return 0.0
        moved = 2.0 * nbytes / num_kernels
        if moved not in self._copies:
            one = op_time(
                self.cluster.device,
                kind="copy",
                flops=0.0,
                nbytes=moved,
                dtype="float32",
                op="aten.cat.default",
            )
            self._copies[moved] = one * self.cluster.slowdown("copy")
        return num_kernels * self._copies[moved]

    def copied_alone(self, copies: Copies, sent: int, itemsize: int) -> float:
        """Seconds of the copies around the collective of one value of `sent` elements, or of
        their dispatch, if that is longer."""
        seconds = self.copying(copies.packed * itemsize, copies.num_packed)
        seconds += self.copying(copies.unpacked * itemsize, copies.num_unpacked)
        return max(
            seconds,
            (copies.num_packed + copies.num_unpacked) * host_time(self.cluster.device, "copy"),
        )

    def copied_in_bucket(self, copies: Copies, sent: int, itemsize: int) -> float:
        """As `copied_alone`, of a value that goes in a bucket: its share of packing that, too."""
        nbytes, seconds = float(sent * itemsize), self.copied_alone(copies, sent, itemsize)
        return (
            seconds
            if nbytes >= self.bucket
            else seconds + self.copying(self.bucket, 1) * nbytes / self.bucket
        )

    # -------------------------------------------------------------------------------------- compute

    def op(self, node: Node, dims: OpDims, strategy: Strategy) -> float:
        """Seconds of an op on one shard: the kernel or its dispatch, whichever is longer, and
        the collectives inside."""
        kernel, moved = self._kernel(node, dims, strategy)
        host = host_time(self.cluster.device, dims.signature.kind)
        return max(kernel, host) + _TIE_BREAK * moved + self.inner(node, dims, strategy)

    def simulated(self, node: Node, dims: OpDims, strategy: Strategy) -> float:
        """Seconds of an op on one shard as the simulator has them on its compute stream: the
        kernel and the collectives inside."""
        return self._kernel(node, dims, strategy)[0] + self.inner(node, dims, strategy)

    def _kernel(self, node: Node, dims: OpDims, strategy: Strategy) -> tuple[float, float]:
        """Seconds of the kernel, and those that its bytes take at the datasheet's bandwidth."""
        letters = dims.letter_sizes(strategy.sizes)
        signature = dims.signature
        shapes = (
            signature.operands,
            signature.results,
        )  # a bias's sum and a residual's have the same letters
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
        """Bytes that one shard of an LSTM keeps for its backward, at the given leaf sizes; None
        of any other op. A library's own kernel runs in float32 where the hidden units are whole,
        which is what keeps a workspace of its own."""
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
        """Seconds of a view: the host's alone; where the host computes too (a CPU), the least
        time of an op."""
        device = self.cluster.device
        return (
            device.kernel_overhead * self.cluster.slowdown("elementwise") if device.is_host else 0.0
        )

    def inner(self, node: Node, dims: OpDims, strategy: Strategy) -> float:
        """Seconds of the collectives that an op needs inside, where a strategy splits one of its
        `inner` letters."""
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
            self.communication(kind, axes, elements * itemsize) * times
            for kind, elements, times in traffic
        )

    # ----------------------------------------------------------------------------------- parameters

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
        reading to its last (ZeRO-1/2); the next step does so a layer ahead, beside compute."""
        if strategy.stored == strategy.updated:
            return 0.0
        return self.layouts(flat, itemsize, "forward").cost(strategy.updated, strategy.stored)

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
        """Seconds to clip a parameter's piece of the gradient; 0 where none is clipped."""
        if self.clip_norm is None:
            return 0.0
        nbytes = float(local_numel(flat, strategy.updated, self.sizes) * itemsize)
        return self.square_sum(nbytes, dtype) + self.scaling(nbytes, dtype)

    def step_overhead(self) -> float:
        """Seconds of the host once a step, whatever it does."""
        return self.cluster.device.step_overhead * self.cluster.slowdown("optimizer")

    def parameter_bytes(
        self,
        flat: tuple[int, ...],
        itemsize: int,
        dtype: str,
        strategy: ParameterStrategy,
        place: tuple[int, ...] | None = None,
    ) -> dict[str, int]:
        """Bytes that a parameter holds throughout, between steps too: the piece that is updated,
        and the optimizer's state; of the device at `place`, by default the one with the largest."""
        piece = local_numel(flat, strategy.updated, self.sizes, place)
        return {
            "parameters": piece * itemsize,
            "optimizer": optimizer_state_bytes(self.optimizer, numel=piece, dtype=dtype),
        }


def op_dtype(node: Node) -> str:
    """The dtype that an op computes in: its first floating result's, else its first result's."""
    floating = [d for d in node.result_dtypes if "float" in d]
    return (floating or list(node.result_dtypes))[0]


def local_numel(
    flat: tuple[int, ...],
    layout: Layout,
    sizes: tuple[int, ...],
    place: tuple[int, ...] | None = None,
) -> int:
    """Elements of the shard at `place`, by default of the largest."""
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
