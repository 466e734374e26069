"""The cost of a collective on one mesh of one cluster, of the copies around it, and so of a change
of layout."""

from __future__ import annotations

import math

from cost_models.collectives import CollectiveModel, collective_model
from cost_models.group_links import LinkClass
from cost_models.machine import Cluster
from cost_models.roofline import host_time, op_time
from planner.program.copies import Copies
from planner.strategy.redistribute import Layouts

__all__ = ["BUCKET_BYTES", "BUCKET_SIZES", "MessageCosts"]


#: The sizes that a plan chooses from for the flat buckets in which gradients are reduced. The
#: smallest is DDP's default (`bucket_cap_mb=25`); each further one has a quarter of the messages.
BUCKET_SIZES = tuple(mib * 1024 * 1024 for mib in (25, 100, 400, 1600))
BUCKET_BYTES = BUCKET_SIZES[0]

#: A bucket is large enough if a byte in it costs at most this many times as much as in the largest.
_LATENCY = 1.5


class MessageCosts:
    """Costs on `cluster` under a mesh of `sizes`; gradients of `gradient_bytes` are reduced in
    buckets. Caches live and die with the object."""

    def __init__(self, cluster: Cluster, sizes: tuple[int, ...], gradient_bytes: float) -> None:
        self.cluster, self.sizes = cluster, sizes
        self._models: dict[tuple[int, ...], CollectiveModel] = {}
        self._seconds: dict[tuple[str, tuple[int, ...], float], float] = {}
        self._copies: dict[float, float] = {}
        self._layouts: dict[tuple[tuple[int, ...], int, bool], Layouts] = {}
        self.bucket_size = self._large_enough()
        self.bucket = min(float(self.bucket_size), max(gradient_bytes, 1.0))

    def communication(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        """Seconds of one collective on `nbytes` (of the whole logical buffer); a `slice` is a view,
        so free."""
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
        """The class of links that a collective over `axes` shares with others: `node` if all its
        groups are inside a node, else `network`. Collectives of one class share its links; those
        of different classes run side by side."""
        return self._model(axes).link_class

    def _large_enough(self) -> int:
        """The smallest bucket size whose bytes cost about as little as in the largest, if all
        devices reduce it together. The objective prices shares of it, and the simulator's search
        for a size begins there."""
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
        """The classes of links that the mesh's axes cross; none on one device."""
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
        """The layouts of a tensor and the costs of changes between them; for gradients and updated
        parameters, as shares of buckets."""
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

    # -------------------------------------------------------------------------------------- copies

    def copying(self, nbytes: float, num_kernels: int) -> float:
        """Device seconds to copy `nbytes`, read once and written once, by `num_kernels` kernels of
        equal size."""
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
        """Like `copied_alone`, for a value in a bucket: includes its share of the packing."""
        nbytes, seconds = float(sent * itemsize), self.copied_alone(copies, sent, itemsize)
        return (
            seconds
            if nbytes >= self.bucket
            else seconds + self.copying(self.bucket, 1) * nbytes / self.bucket
        )
