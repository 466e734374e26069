"""Seconds of what the stages of a pipeline send to each other, and with them the prediction of a
pipeline on a cluster.

Pipeline, Cluster -> seconds by pair of stages; PipelinePrediction.
"""

from __future__ import annotations

from collections.abc import Hashable

from cost_models.machine import Cluster, Level
from cost_models.memory import dtype_bytes
from cost_models.point_to_point import send_time
from planner.graph.layout import Mesh
from planner.predict.stages import PipelinePrediction, predict_pipeline
from planner.stages.pipeline import Pipeline, Transfer, parcels

__all__ = ["predicted", "transfer_seconds"]

#: Of the ranks of a stage, no more than this are looked at to find how long what they receive takes:
#: the first and last ones, and those in the middle, are like all others.
_MOST_RECEIVERS = 64


def _sampled(ranks: int) -> range | list[int]:
    """The ranks of a stage, or some of them, from each part of it."""
    if ranks <= _MOST_RECEIVERS:
        return range(ranks)
    quarter = _MOST_RECEIVERS // 4
    return [
        first + rank
        for first in (0, ranks // 3, 2 * ranks // 3, ranks - quarter)
        for rank in range(quarter)
    ]


def predicted(pipeline: Pipeline, cluster: Cluster) -> PipelinePrediction:
    """The prediction of a pipeline whose ranks are the devices of the cluster, in order."""
    clusters = [
        cluster.slice(pipeline.first_rank(stage), program.mesh.num_devices)
        for stage, program in enumerate(pipeline.programs)
    ]
    return predict_pipeline(pipeline, clusters, transfer_seconds(pipeline, cluster))


def transfer_seconds(pipeline: Pipeline, cluster: Cluster) -> dict[tuple[int, int], float]:
    """Seconds in which what one stage sends to another for a microbatch arrives: all parcels of all
    its ranks at once, over the links that they cross."""
    found: dict[tuple[int, int], float] = {}
    known: dict[Hashable, float] = {}
    for transfer in pipeline.transfers:
        if transfer.phase == "update":
            continue
        ends = (transfer.source, transfer.target)
        first, then = map(pipeline.first_rank, ends)
        meshes = [pipeline.programs[stage].mesh for stage in ends]
        key = (
            (transfer.sent, transfer.received, transfer.dtype, meshes[0].sizes, meshes[1].sizes),
            (first % cluster.node_width, then - first),
            tuple(_block(cluster, level, first, then) for level in cluster.narrow_levels),
        )
        if key not in known:
            known[key] = _send_seconds(transfer, meshes[0], meshes[1], first, then, cluster)
        found[ends] = found.get(ends, 0.0) + known[key]
    return found


def _block(cluster: Cluster, level: Level, first: int, then: int) -> bool:
    """Whether two stages lie in the same block of nodes."""
    return cluster.node_of(first) // level.nodes == cluster.node_of(then) // level.nodes


def _send_seconds(
    transfer: Transfer, source: Mesh, target: Mesh, first: int, then: int, cluster: Cluster
) -> float:
    """Seconds of all parcels of a value at once."""
    pairs, most = [], 0
    for parcel in parcels(transfer, source, target, _sampled(target.num_devices)):
        sender, receiver = first + parcel.sender, then + parcel.receiver
        if sender != receiver:
            pairs.append((sender, receiver))
            most = max(most, parcel.numel * dtype_bytes(transfer.dtype))
    return send_time(cluster, tuple(pairs), float(most)) if pairs else 0.0
