"""What the units of a model cost on one device, for any size of a microbatch; and where stages begin.

Kernels are timed whole, with the batch cut: a split of a unit over more axes divides its products,
which the estimates of `pipeline_specs.py` take into account roughly, and candidates exactly.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np

from cost_models.errors import BadValue
from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes
from planner.dims.roots import is_view
from planner.plans.stage_models import Cuttable
from planner.stages import CannotCut, Unit, assigned
from planner.strategy.costing import Costing

__all__ = ["UnitCosts", "balanced", "cuts", "per_unit"]


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """The costs of the units of `model`, on one device of `cluster`. Numbers of parts are those
    that the model's own batch is cut into: microbatches times data-parallel devices."""

    model: Cuttable
    cluster: Cluster
    optimizer: str
    _known: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def seconds(self, parts: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Seconds of forward and of backward of every unit, for one of the parts of the batch."""
        if parts not in self._known:
            self._known[parts] = self._seconds(parts)
        return self._known[parts]

    def both(self, parts: int) -> tuple[float, ...]:
        """Seconds of forward and backward together."""
        return tuple(f + b for f, b in zip(*self.seconds(parts), strict=True))

    def on(self, microbatches: int, devices: int) -> tuple[float, ...]:
        """Seconds of forward and backward of every unit for a microbatch on so many devices: those
        of the largest share of its samples; devices beyond one for each sample split the rest."""
        batch = int(self.model.graph.values[self.model.graph.inputs[0]].shape[0])
        samples = max(1, batch // microbatches)
        largest = -(-samples // devices)
        less = min(1.0, samples / devices)
        return tuple(less * one for one in self.both(max(1, batch // largest)))

    @cached_property
    def stages(self) -> tuple[int | None, ...]:
        """The unit of every node, None for those that every stage runs for itself."""
        firsts = [unit.nodes[0] for unit in self.model.units]
        return assigned(self.model.graph, self.model.dims, firsts).stages

    @cached_property
    def _batch(self) -> frozenset[int]:
        graph, dims = self.model.graph, self.model.dims
        return frozenset(
            atom
            for v in graph.inputs
            for atom in dims.atoms[v][: len(dims.shapes[v][0]) if dims.shapes[v] else 0]
        )

    @cached_property
    def _costing(self) -> Costing:
        return Costing(self.cluster.slice(0, 1), (1,), self.optimizer, 0.0)

    def _seconds(self, parts: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        graph, dims = self.model.graph, self.model.dims
        out = np.zeros((2, len(self.model.units)))
        times: dict[Hashable, float] = {}
        for node, stage in zip(graph.nodes, self.stages, strict=True):
            if stage is None or is_view(dims, node.index):
                continue
            op = dims.ops[node.index]
            sizes = list(op.sizes)
            leaf = next((i for i, atom in enumerate(op.atoms) if atom in self._batch), None)
            if leaf is not None:
                sizes[leaf] = max(1, sizes[leaf] // parts)
            letters = op.letter_sizes(tuple(sizes))
            key = (node.op, letters, node.result_dtypes, op.signature.kind, len(node.operands))
            if key not in times:
                times[key] = self._costing.ops.device_time(node, op, letters)
            out[0 if node.phase == "forward" else 1, stage] += times[key]
        forward, backward = out.tolist()
        return tuple(forward), tuple(backward)

    @cached_property
    def parameters(self) -> tuple[int, ...]:
        """Bytes of the parameters that every unit reads."""
        graph = self.model.graph
        out = [0] * len(self.model.units)
        firsts = [unit.nodes[0] for unit in self.model.units]
        holders = assigned(graph, self.model.dims, firsts).holders
        for parameter, units in zip(graph.parameters, holders, strict=True):
            value = graph.values[parameter.value]
            for unit in units:
                out[unit] += value.numel * dtype_bytes(value.dtype)
        return tuple(out)

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Bytes of the whole batch that forward of every unit leaves for backward."""
        graph, dims = self.model.graph, self.model.dims
        read = {
            v
            for node in graph.nodes
            if node.phase != "forward"
            for v in node.operands
            if graph.values[v].kind == "activation"
        }
        out = [0] * len(self.model.units)
        for node, stage in zip(graph.nodes, self.stages, strict=True):
            if node.phase != "forward" or stage is None or is_view(dims, node.index):
                continue
            for value in node.results:
                if value is not None and value in read:
                    one = graph.values[value]
                    out[stage] += one.numel * dtype_bytes(one.dtype)
        return tuple(out)


def balanced(
    seconds: Sequence[float],
    stages: int,
    cuts: Sequence[int],
    runs: Sequence[Sequence[float]] = (),
) -> tuple[int, ...]:
    """The first units of `stages` runs of which the slowest is as fast as possible. Runs may begin
    only at `cuts`. The seconds of units are the same in all runs, or are those in `runs`, if it is
    given. Raises CannotCut if there are too few cuts."""
    starts = sorted({0, *cuts})
    if stages < 1:
        raise BadValue(f"a pipeline has at least one stage, got {stages}")
    if len(starts) < stages:
        raise CannotCut(
            f"the model can be cut into at most {len(starts)} stages, got {stages}: use fewer"
        )
    num = len(starts)
    # best[j]: the slowest of the runs so far, if they are the first j pieces.
    best = np.where(np.arange(num + 1) == 0, 0.0, np.inf)
    backs = []
    for own in runs or (seconds,) * stages:
        sums = [0.0, *accumulate(own)]
        at = np.array([*(sums[s] for s in starts), sums[-1]])
        slowest = np.maximum(best[:, None], at[None, :] - at[:, None])
        slowest[np.tril_indices(num + 1)] = np.inf
        backs.append(slowest.argmin(axis=0))
        best = slowest.min(axis=0)
    out, j = [], num
    for back in reversed(backs):
        j = int(back[j])
        out.append(starts[j])
    return tuple(reversed(out))


def cuts(units: Sequence[Unit], stages: int) -> list[int]:
    """The units at which a stage may begin: the first ones of blocks, and what comes before and
    after all of them; anywhere, if there are fewer of these than four for each stage. Stages of
    whole blocks are alike."""
    last = max((at for at, unit in enumerate(units) if unit.block), default=-1)
    whole = [
        at
        for at, unit in enumerate(units)
        if at > last or not at or (unit.block and unit.block != units[at - 1].block)
    ]
    return whole if len(whole) >= 4 * stages else list(range(len(units)))


def per_unit(model: Cuttable, whole: Cuttable, seconds: Sequence[float]) -> tuple[float, ...]:
    """The seconds of a model's units by those of the whole batch's, op by op in the order of ops of
    one name and layer. What only microbatches have, such as sums over them, takes none."""
    queues: dict[tuple[str, str], deque[float]] = defaultdict(deque)
    for unit, one in zip(whole.units, seconds, strict=True):
        for index in unit.nodes:
            node = whole.graph.nodes[index]
            queues[node.op, node.path].append(one / len(unit.nodes))
    out = []
    for unit in model.units:
        found = (
            queues[node.op, node.path] for node in map(model.graph.nodes.__getitem__, unit.nodes)
        )
        out.append(sum(queue.popleft() for queue in found if queue))
    return tuple(out)
