"""Nothing fits: how much is missing, where, what is largest, and the nearest change that fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
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


def explain_misfit(name: str, ask: Ask, cluster: Cluster, least: Prediction, where: str, mesh: str, change: str) -> str:
    """The one line of `DoesNotFit`."""
    allowed = ask.allowed_memory(cluster.device)
    missing = least.total_memory_bytes - allowed
    largest = sorted(least.memory_bytes.items(), key=lambda item: -item[1])[:3]
    terms = ", ".join(f"{what} {format_bytes(nbytes)}" for what, nbytes in largest)
    return (
        f"{name!r} does not fit {cluster.num_devices} x {cluster.device.name}: the leanest plan (mesh {mesh}) needs "
        f"{format_bytes(least.total_memory_bytes)} of {format_bytes(allowed)} per device{_headroom(ask, cluster)}, "
        f"{format_bytes(missing)} too much, at {where}; largest: {terms}; {change}"
    )


def _headroom(ask: Ask, cluster: Cluster) -> str:
    """What is kept free of it, in words."""
    if not ask.memory_headroom:
        return ""
    return f" ({100 * ask.memory_headroom:g} % of {format_bytes(cluster.device.usable_memory)} is kept free: --memory-headroom)"


def nearest_change(ask: Ask, batch: int, seq: int | None, cluster: Cluster, fits: Fits) -> str:
    """What would fit: the largest halving of the batch, and the smallest doubling of the devices; else of `seq`, the sequence's length
    where it can be set, the largest halving."""
    found = [text for text in (_smaller_batch(ask, batch, cluster, fits), _more_devices(ask, batch, cluster, fits)) if text]
    if found:
        return f"what fits: {' or '.join(found)}"
    none = "neither a smaller batch nor more of these devices helps"
    shorter = None if seq is None else _shorter(ask, seq, cluster, fits)
    return f"{none}; what fits: {shorter}" if shorter else f"{none}: take a smaller model or larger devices"


def _shorter(ask: Ask, seq: int, cluster: Cluster, fits: Fits) -> str | None:
    shorter = [s for s in _halvings(seq) if s >= _SHORTEST]
    found = _first(shorter, lambda s: fits(replace(ask, seq=s), cluster))
    return None if found is None else f"--seq {found}"


def _smaller_batch(ask: Ask, batch: int, cluster: Cluster, fits: Fits) -> str | None:
    """Down to where some devices would have no part of any sample."""
    n = cluster.num_devices
    smaller = list(itertools.takewhile(lambda b: b >= n or math.gcd(b, n) > 1, _halvings(batch)))
    found = _first(smaller, lambda b: fits(replace(ask, batch=b), cluster))
    return None if found is None else f"--batch {found}"


def _more_devices(ask: Ask, batch: int, cluster: Cluster, fits: Fits) -> str | None:
    larger: dict[int, Cluster] = {}
    devices, most = cluster.num_devices * 2, cluster.devices_per_node * cluster.max_nodes
    while devices <= most and batch >= devices:
        try:
            count, nodes, width = place(cluster, devices, None)
        except UserError:
            break
        larger[devices] = replace(cluster, num_devices=count, num_nodes=nodes, node_width=width)
        devices *= 2
    found = _first(list(larger), lambda d: fits(replace(ask, batch=batch, num_devices=d), larger[d]))
    return None if found is None else f"--gpus {found} --batch {batch}"


def _halvings(whole: int) -> Iterator[int]:
    """A half, a quarter and so on, as long as they are whole or rounded down to at least 1."""
    while whole > 1:
        whole //= 2
        yield whole


def _first(options: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first of the options that fits, where all after one that fits do: the first itself is the rule, the others are bisected."""
    if not options or fits(options[0]):
        return options[0] if options else None
    below, above = 0, len(options) - 1
    if below == above or not fits(options[above]):
        return None
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if fits(options[middle]) else (middle, above)
    return options[above]
