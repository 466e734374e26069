"""Nothing fits: how much is missing, where, what is largest, and the nearest change that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cost_models.cluster import Cluster
from cost_models.errors import UserError
from cost_models.machine import place
from cost_models.units import format_bytes
from planner.ask import Ask
from planner.predict import Prediction

__all__ = ["explain_misfit", "nearest_change"]

#: Whether some plan of the asked model fits the cluster.
Fits = Callable[[Ask, Cluster], bool]


#: Sequences shorter than this are not offered.
_SHORTEST = 128


def explain_misfit(name: str, cluster: Cluster, least: Prediction, where: str, mesh: str, change: str) -> str:
    """The one line of `DoesNotFit`."""
    missing = least.total_memory_bytes - cluster.device.usable_memory
    largest = sorted(least.memory_bytes.items(), key=lambda item: -item[1])[:3]
    terms = ", ".join(f"{what} {format_bytes(nbytes)}" for what, nbytes in largest)
    return (
        f"{name!r} does not fit {cluster.num_devices} x {cluster.device.name}: the leanest plan (mesh {mesh}) needs "
        f"{format_bytes(least.total_memory_bytes)} of {format_bytes(cluster.device.usable_memory)} a device, {format_bytes(missing)} "
        f"too much, at {where}; largest: {terms}; {change}"
    )


def nearest_change(ask: Ask, batch: int, seq: int | None, cluster: Cluster, fits: Fits) -> str:
    """What would fit: the largest halving of the batch, and the smallest doubling of the devices; else of `seq`, the sequence's length
    where it can be set, the largest halving."""
    found = [text for text in (_smaller_batch(ask, batch, cluster, fits), _more_devices(ask, batch, cluster, fits)) if text]
    shorter = _shorter(ask, seq, cluster, fits) if seq is not None and not found else None
    if shorter:
        return f"neither a batch of one sample a device nor more of these devices helps; what fits: {shorter}"
    if not found:
        return "neither a batch of one sample a device nor more of these devices helps: take a smaller model or larger devices"
    return f"what fits: {' or '.join(found)}"


def _shorter(ask: Ask, seq: int, cluster: Cluster, fits: Fits) -> str | None:
    shorter = seq // 2
    while shorter >= _SHORTEST:
        if fits(replace(ask, seq=shorter), cluster):
            return f"--seq {shorter}"
        shorter //= 2
    return None


def _smaller_batch(ask: Ask, batch: int, cluster: Cluster, fits: Fits) -> str | None:
    smaller = batch // 2
    while smaller >= cluster.num_devices:
        if fits(replace(ask, batch=smaller), cluster):
            return f"--batch {smaller}"
        smaller //= 2
    return None


def _more_devices(ask: Ask, batch: int, cluster: Cluster, fits: Fits) -> str | None:
    most = cluster.devices_per_node * cluster.max_nodes
    devices = cluster.num_devices * 2
    while devices <= most and batch >= devices:
        try:
            count, nodes, width = place(cluster, devices, None)
        except UserError:
            return None
        larger = replace(cluster, num_devices=count, num_nodes=nodes, node_width=width)
        if fits(replace(ask, batch=batch, num_devices=devices), larger):
            return f"--gpus {devices} --batch {batch}"
        devices *= 2
    return None
