"""The least that the simulator charges, whatever lowering merges and joins, weighted so that its sum bounds the step.

With C seconds of compute, and on links of class c B_c of collectives that compute waits for and A_c of those beside it, the step T
obeys

    T >= a C + sum of b_c B_c + sum of g_c A_c     for weights >= 0 with  a, b_c <= 1,  sum of g <= 1,
                                                   a + sum of g <= 2 - overlap,  b_c + sum of the other classes' g <= 1

because at no moment does the right side grow by more than the time that passes (rates: `cost_models/simulator.py`): compute and what
runs beside it go on at 1 / (2 - overlap) each, those of one class share its links, and those of two classes do not disturb each other.

Messages that may be merged cost what their bytes do in the largest message of all, and nothing for copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cost_models.group_links import LinkClass
from cost_models.memory import dtype_bytes
from planner.copies import Copies
from planner.costing import Costing
from planner.model import Model
from planner.redistribute import Layouts
from planner.schedule import SMALL

__all__ = ["Least", "Sent", "Weights", "weights_of"]


#: How a change of layout is sent: compute waits for it, or what is large may run beside compute, or it may be merged with others, too.
Sent = Literal["waited", "beside", "merged"]


@dataclass(frozen=True, slots=True)
class Weights:
    """The shares that count: of compute, and by class of links of collectives that compute waits for, and of those beside it."""

    compute: float
    waited: tuple[tuple[LinkClass, float], ...] = ()
    beside: tuple[tuple[LinkClass, float], ...] = ()


def weights_of(costing: Costing) -> tuple[Weights, ...]:
    """The bounds of a mesh, those that are mostly the tighter first: what runs beside compute hides behind it, on the links of one
    class or the other, or compute hides behind that."""
    overlap, classes = costing.cluster.device.overlap, costing.link_classes()
    if not classes:
        return (Weights(1.0),)
    found = [
        Weights(
            compute,
            tuple((c, 1.0 if c == counted else 1.0 - hidden) for c in classes),
            tuple((c, hidden if c == counted else 0.0) for c in classes),
        )
        for compute, hidden in ((1.0, 1.0 - overlap), (1.0 - overlap, 1.0)) for counted in reversed(classes)
    ]  # fmt: skip
    return tuple(dict.fromkeys(found))


class Least:
    """The least that the simulator charges under a mesh and weights, whatever lowering merges and joins. Layouts are kept as long as
    the object lives."""

    def __init__(self, model: Model, costing: Costing, weights: Weights) -> None:
        self.costing, self.compute = costing, weights.compute
        none: dict[LinkClass, float] = {"node": 0.0, "network": 0.0}
        self.waited, self.beside = none | dict(weights.waited), none | dict(weights.beside)
        values = model.graph.values
        self.most = SMALL + 2.0 * sum(
            values[v].numel * dtype_bytes(values[v].dtype) for p in model.graph.parameters for v in (p.value, p.gradient)
        )
        self._layouts: dict[tuple[tuple[int, ...], int, Sent], Layouts] = {}

    def layouts(self, flat: tuple[int, ...], itemsize: int, sent: Sent) -> Layouts:
        """The layouts of a tensor and the least that it costs to change them."""
        key = (flat, itemsize, sent)
        if key not in self._layouts:
            time = {"waited": self._waited, "beside": self._beside, "merged": self._merged}[sent]
            copied = self._copied_in_bucket if sent == "merged" else self._copied_alone
            self._layouts[key] = Layouts(flat, itemsize, self.costing.sizes, time, copied)
        return self._layouts[key]

    def _waited(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        return self._alone(kind, axes, nbytes, self.beside if nbytes <= SMALL else self.waited)

    def _beside(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        return self._alone(kind, axes, nbytes, self.beside)

    def _alone(self, kind: str, axes: tuple[int, ...], nbytes: float, weights: dict[LinkClass, float]) -> float:
        if kind == "slice":
            return 0.0
        return weights[self.costing.link_class(axes)] * self.costing.communication(kind, axes, nbytes)

    def _copied_alone(self, copies: Copies, sent: int, itemsize: int) -> float:
        packing = self.costing.copying(copies.packed * itemsize, copies.num_packed)
        return self.compute * (packing + self.costing.copying(copies.unpacked * itemsize, copies.num_unpacked))

    def _copied_in_bucket(self, copies: Copies, sent: int, itemsize: int) -> float:
        """Nothing: how many kernels copy depends on what goes together."""
        return 0.0

    def _merged(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        if kind == "slice":
            return 0.0
        return self.beside[self.costing.link_class(axes)] * self.costing.merged(kind, axes, nbytes, self.most)
