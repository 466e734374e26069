"""Where to begin the stages of a pipeline: the seconds of every unit on a device, and the split of
units into runs whose slowest is as fast as possible.

For stages on like devices a step takes sum_i t_i + (m - 1) max_i t_i and the sum is the same for
every split, so the least maximum is the optimum. Kernels are timed whole, on one device: splits of a
stage's mesh divide all of them by about the same. An approximation: the simulator decides between
pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from cost_models.errors import BadValue
from cost_models.machine import Cluster
from planner.dims.roots import is_view
from planner.plans.stage_models import Cuttable
from planner.stages import assigned
from planner.strategy.costing import Costing

__all__ = ["balanced", "unit_seconds"]


def unit_seconds(model: Cuttable, cluster: Cluster, optimizer: str) -> tuple[float, ...]:
    """Seconds of forward and backward of every unit, for a microbatch on one device."""
    graph, dims = model.graph, model.dims
    stages = assigned(graph, dims, [unit.nodes[0] for unit in model.units]).stages
    costing = Costing(cluster.slice(0, 1), (1,), optimizer, 0.0)
    out = [0.0] * len(model.units)
    for node, stage in zip(graph.nodes, stages, strict=True):
        if stage is not None and not is_view(dims, node.index):
            op = dims.ops[node.index]
            out[stage] += costing.ops.device_time(node, op, op.letter_sizes(op.sizes))
    return tuple(out)


def balanced(seconds: Sequence[float], stages: int, cuts: Sequence[int]) -> tuple[int, ...]:
    """The first units of `stages` runs of which the slowest is as fast as possible; of such splits
    one whose runs are as even as possible from the front. Runs may begin only at `cuts`. Raises
    BadValue if there are too few."""
    starts = sorted({0, *cuts})
    if len(starts) < stages:
        raise BadValue(
            f"the model can be cut into at most {len(starts)} stages, got {stages}: use fewer"
        )
    ends = [*starts[1:], len(seconds)]
    sums = np.array([0.0, *accumulate(seconds)])
    at = np.array([sums[s] for s in starts] + [sums[len(seconds)]])
    num = len(ends)
    # best[k, j]: the slowest of k runs of the first j pieces.
    best = np.full((stages + 1, num + 1), np.inf)
    back = np.zeros((stages + 1, num + 1), dtype=int)
    best[0, 0] = 0.0
    for k in range(1, stages + 1):
        for j in range(k, num + 1):
            before = np.arange(k - 1, j)
            slowest = np.maximum(best[k - 1, before], at[j] - at[before])
            place = int(np.argmin(slowest))
            best[k, j], back[k, j] = slowest[place], before[place]
    out, j = [], num
    for k in range(stages, 0, -1):
        j = back[k, j]
        out.append(starts[j])
    return tuple(reversed(out))
