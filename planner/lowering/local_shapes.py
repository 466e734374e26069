"""The shapes and bytes of one rank's shards."""

from __future__ import annotations

import math

from cost_models.memory import dtype_bytes
from planner.dims.subdims import OpDims
from planner.graph.layout import REPLICATE, Layout, Mesh, local_shape, local_sizes, piece_sizes
from planner.program.copies import leads
from planner.rules import Local
from planner.strategy.redistribute import Step
from planner.strategy.strategies import local_of
from planner.strategy.traced_model import Model

__all__ = ["LocalShapes"]


class LocalShapes:
    """The shards of `model` on `rank` of `mesh`. `differs`: some answer so far is not the same on
    all ranks. Sizes are cached: layers ask for the same ones again."""

    def __init__(self, model: Model, mesh: Mesh, rank: int) -> None:
        self.model, self.mesh, self.rank = model, mesh, rank
        self.place = mesh.coordinate(rank)
        self.differs = False
        self._last = mesh.coordinate(mesh.num_devices - 1)
        self._sizes: dict[tuple[tuple[int, ...], Layout], tuple[int, ...]] = {}

    def sizes(self, flat: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
        """The flat sub-dim sizes of this rank's shard."""
        if (flat, layout) not in self._sizes:
            sizes = local_sizes(flat, layout, self.mesh.sizes, self.place)
            assert sizes is not None, (flat, layout)
            smallest = local_sizes(flat, layout, self.mesh.sizes, self._last)
            self.differs |= smallest != local_sizes(flat, layout, self.mesh.sizes)
            self._sizes[flat, layout] = sizes
        return self._sizes[flat, layout]

    def shape(self, value: int, layout: Layout) -> tuple[int, ...]:
        """The shape of this rank's shard of a value."""
        return local_shape(self.model.dims.shapes[value], layout, self.mesh.sizes, self.place)

    def dtype(self, value: int) -> str:
        """The dtype of a value."""
        return self.model.graph.values[value].dtype

    def itemsize(self, value: int) -> int:
        """Bytes of an element of a value."""
        return dtype_bytes(self.dtype(value))

    def nbytes(self, value: int, layout: Layout) -> int:
        """Bytes of this rank's shard of a value."""
        return math.prod(self.sizes(self.model.dims.flat(value), layout)) * self.itemsize(value)

    def call(
        self,
        dims: OpDims,
        leaves: Layout,
        letters: tuple[int, ...],
        results: tuple[tuple[int, ...], ...],
    ) -> Local:
        """How this rank runs an op if axis a splits leaf `leaves[a]`; `letters` are the local sizes
        of its letters, `results` the local shapes of its results."""
        local = local_of(dims, leaves, self.mesh, self.rank, letters, results)
        self.differs |= bool(local.offsets or (local.leaves and local.split))
        return local

    def only_looks(self, flat: tuple[int, ...], step: Step) -> bool:
        """Whether a step only makes a view: a slice of contiguous elements."""
        return (
            step.kind == "slice"
            and step.split is not None
            and leads(self.sizes(flat, step.before), step.split)
        )

    def pieces(self, flat: tuple[int, ...], step: Step, dim: int | None) -> tuple[int, ...]:
        """The ranks' sizes of `dim` in a step, in the order of their group; empty if all are the
        same."""
        if dim is None:
            return ()
        outer = tuple(
            p if p == dim and axis not in step.axes else REPLICATE
            for axis, p in enumerate(step.before)
        )
        counts = tuple(self.mesh.sizes[axis] for axis in step.axes)
        size = self.sizes(flat, outer)[dim]
        return piece_sizes(size, counts) if size % math.prod(counts) else ()
