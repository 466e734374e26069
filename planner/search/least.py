"""The least that the simulator charges, whatever lowering merges and joins, weighted so that the
sum bounds the step.

Let C be the seconds of compute and, on links of class c, B_c those of collectives that compute
waits for and A_c those of collectives beside it. The step T obeys

    T >= a C + sum of b_c B_c + sum of g_c A_c     for weights >= 0 with  a, b_c <= 1,  sum of g <= 1,
                                                   a + sum of g <= 2 - overlap,  b_c + sum of the other classes' g <= 1

because at no moment does the right side grow by more than the time that passes (rates:
`cost_models/simulator.py`): compute and the collectives beside it run at 1 / (2 - overlap) each,
collectives of one class share its links, and those of two classes do not disturb each other.

A message that may be merged costs the lesser of two: its cost alone, with the copies that this
takes, and the cost of its bytes in the largest message of all, with one more copy of what it sends
(into the buffer). Gathers that are never merged (`ALONE` bytes and more) cost what they cost alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from cost_models.group_links import LinkClass
from cost_models.memory import dtype_bytes
from planner.lowering.early import SMALL
from planner.lowering.prefetch import ALONE
from planner.program.copies import Copies
from planner.strategy.costing import Costing
from planner.strategy.redistribute import Layouts, Step
from planner.strategy.traced_model import Model

__all__ = ["Least", "Sent", "Weights", "weights_of"]


#: How a change of layout is sent: `waited`: compute waits for it; `beside`: it runs beside compute
#: if it is large; `gathered`: also merged with others if small (a parameter's gather); `reduced`:
#: also merged, whatever its size (a gradient's messages).
Sent = Literal["waited", "beside", "gathered", "reduced"]

#: The grid on which the least cost of copying a byte is sought. The seconds of a copy never fall
#: with its bytes, so between two grid sizes a byte costs at most this factor less than at the lower
#: one.
_FINE = 1.05


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of the bound: of compute and, by class of links, of collectives that compute
    waits for and of those beside it."""

    compute: float
    waited: tuple[tuple[LinkClass, float], ...] = ()
    beside: tuple[tuple[LinkClass, float], ...] = ()


def weights_of(costing: Costing) -> tuple[Weights, ...]:
    """The weights of a mesh's bounds, the usually tighter first: collectives beside compute hide
    behind it, on links of one class or the other; or compute hides behind them."""
    overlap, classes = costing.cluster.device.overlap, costing.messages.link_classes()
    if not classes:
        return (Weights(1.0),)
    found = [
        Weights(
            compute,
            tuple((c, 1.0 if c == counted else 1.0 - overlapped) for c in classes),
            tuple((c, overlapped if c == counted else 0.0) for c in classes),
        )
        for compute, overlapped in ((1.0, 1.0 - overlap), (1.0 - overlap, 1.0))
        for counted in reversed(classes)
    ]
    return tuple(dict.fromkeys(found))


class Least:
    """The least that the simulator charges under a mesh and weights, whatever lowering merges and
    joins. Layouts are cached as long as the object lives."""

    def __init__(self, model: Model, costing: Costing, weights: Weights) -> None:
        self.costing, self.compute = costing, weights.compute
        none: dict[LinkClass, float] = {"node": 0.0, "network": 0.0}
        self.waited, self.beside = none | dict(weights.waited), none | dict(weights.beside)
        values = model.graph.values
        self.most = SMALL + 2.0 * sum(
            values[v].numel * dtype_bytes(values[v].dtype)
            for p in model.graph.parameters
            for v in (p.value, p.gradient)
        )
        self._layouts: dict[tuple[tuple[int, ...], int, Sent], Layouts] = {}

    def layouts(self, flat: tuple[int, ...], itemsize: int, sent: Sent) -> Layouts:
        """The layouts of a tensor, with the least cost of each change between them."""
        key = (flat, itemsize, sent)
        if key not in self._layouts:
            if sent in ("gathered", "reduced"):
                alone = ALONE if sent == "gathered" else math.inf
                self._layouts[key] = _Cheaper(self, flat, itemsize, alone)
            else:
                time = self._waited if sent == "waited" else self._beside
                self._layouts[key] = Layouts(
                    flat, itemsize, self.costing.sizes, time, self._copied_alone
                )
        return self._layouts[key]

    def _waited(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        return self._alone(kind, axes, nbytes, self.beside if nbytes <= SMALL else self.waited)

    def _beside(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        return self._alone(kind, axes, nbytes, self.beside)

    def _alone(
        self, kind: str, axes: tuple[int, ...], nbytes: float, weights: dict[LinkClass, float]
    ) -> float:
        if kind == "slice":
            return 0.0
        weight = weights[self.costing.messages.link_class(axes)]
        return weight * self.costing.messages.communication(kind, axes, nbytes)

    def _copied_alone(self, copies: Copies, sent: int, itemsize: int) -> float:
        copying = self.costing.messages.copying
        packing = copying(copies.packed * itemsize, copies.num_packed)
        return self.compute * (packing + copying(copies.unpacked * itemsize, copies.num_unpacked))

    def _copied_in_bucket(self, copies: Copies, sent: int, itemsize: int) -> float:
        """Seconds of a merged message's copies: those that it takes alone, and one of what is sent
        into the buffer, in kernels that may copy for other messages too."""
        return self.compute * self.copied_byte * (copies.packed + sent + copies.unpacked) * itemsize

    @cached_property
    def copied_byte(self) -> float:
        """The fewest seconds per byte of any kernel that copies at most `most` bytes."""
        sizes = [_FINE**k for k in range(math.ceil(math.log(self.most) / math.log(_FINE)) + 1)]
        return min(self.costing.messages.copying(n, 1) / (n * _FINE) for n in sizes)

    def _merged(self, kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        if kind == "slice":
            return 0.0
        weight = self.beside[self.costing.messages.link_class(axes)]
        return weight * self.costing.messages.merged(kind, axes, nbytes, self.most)


class _Cheaper(Layouts):
    """Layouts in which each step of a change is sent alone or merged with others, whichever costs
    less; from `alone` bytes on, alone."""

    def __init__(self, least: Least, flat: tuple[int, ...], itemsize: int, alone: float) -> None:
        self.merged = Layouts(
            flat, itemsize, least.costing.sizes, least._merged, least._copied_in_bucket
        )
        self.alone = alone
        super().__init__(flat, itemsize, least.costing.sizes, least._beside, least._copied_alone)

    def _seconds(self, step: Step) -> float:
        by_itself = super()._seconds(step)
        if step.kind == "slice" or self.numel(step) * self.itemsize >= self.alone:
            return by_itself
        return min(by_itself, self.merged._seconds(step))
