"""The message if no plan fits: how much memory is missing and where, what is largest, and the
nearest change that fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cost_models.errors import UserError
from cost_models.machine import Cluster
from cost_models.placement import place
from cost_models.units import format_bytes
from planner.predict.predict import Prediction
from planner.workload.ask import Ask

__all__ = ["OutOfTime", "explain_misfit", "nearest_change"]

#: Whether some plan of the asked model fits the cluster.
Fits = Callable[[Ask, Cluster], bool]


#: Sequences shorter than this are not offered.
_SHORTEST = 128

#: How many of the options that may fit are searched: nearly always the first one does fit.
_LOOKS = 3


class OutOfTime(Exception):
    """The limit of `limit` seconds is over."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit


def explain_misfit(
    name: str,
    ask: Ask,
    cluster: Cluster,
    least: Prediction,
    where: str,
    mesh: str,
    microbatches: int,
    change: str,
) -> str:
    """The one line of `DoesNotFit`: the leanest plan is on `mesh`, in so many microbatches."""
    allowed = ask.allowed_memory(cluster.device)
    missing = least.total_memory_bytes - allowed
    largest = sorted(least.memory_bytes.items(), key=lambda item: -item[1])[:3]
    terms = ", ".join(f"{what} {format_bytes(nbytes)}" for what, nbytes in largest)
    return (
        f"{name!r} does not fit {cluster.num_devices} x {cluster.device.name}: the plan with the "
        f"least memory (mesh {mesh}{_parts(microbatches)}) needs {format_bytes(least.total_memory_bytes)} per device, "
        f"of {format_bytes(allowed)} allowed{_headroom(ask, cluster)}, "
        f"{format_bytes(missing)} too much, at {where}; largest: {terms}; {change}"
    )


def _parts(microbatches: int) -> str:
    return f", {microbatches} microbatches" if microbatches > 1 else ""


def _headroom(ask: Ask, cluster: Cluster) -> str:
    """The memory that is kept free, in words."""
    if not ask.memory_headroom:
        return ""
    return (
        f" ({100 * ask.memory_headroom:g} % of {format_bytes(cluster.device.usable_memory)} is "
        "kept free: --memory-headroom)"
    )


def nearest_change(
    ask: Ask,
    batch: int,
    seq: int | None,
    cluster: Cluster,
    may: Fits,
    fits: Fits,
    *,
    more: bool = True,
) -> str:
    """What would fit, in words: the largest halving of the batch and, if there may be `more`
    devices, the smallest doubling of these; if neither, the largest halving of `seq`, the sequence
    length (None if it cannot be set). `may` is a quick test whether a change is worth a search,
    `fits` whether there is a plan; both may raise OutOfTime."""
    found: list[str] = []
    try:
        for look in (_smaller_batch, _more_devices) if more else (_smaller_batch,):
            found += look(ask, batch, cluster, may, fits)
        if not found and seq is not None:
            found += _shorter(ask, seq, cluster, may, fits)
    except OutOfTime as over:
        if not found:
            return (
                f"the time limit of {over.limit:g} s was reached before a change that fits was found: "
                "take a smaller batch or more devices"
            )
    none = (
        "neither a smaller batch nor more of these devices helps"
        if more
        else "no smaller batch helps on this mesh"
    )
    if not found:
        return f"{none}: take a smaller model or larger devices"
    return (
        f"{none}; what fits: {found[0]}"
        if found[0].startswith("--seq")
        else f"what fits: {' or '.join(found)}"
    )


def _shorter(ask: Ask, seq: int, cluster: Cluster, may: Fits, fits: Fits) -> list[str]:
    shorter = [s for s in _halvings(seq) if s >= _SHORTEST]
    found = _first(
        shorter,
        lambda s: may(replace(ask, seq=s), cluster),
        lambda s: fits(replace(ask, seq=s), cluster),
    )
    return [f"--seq {s}" for s in found]


def _smaller_batch(ask: Ask, batch: int, cluster: Cluster, may: Fits, fits: Fits) -> list[str]:
    """The largest batch that fits, in words, as long as every device has a part of some sample;
    none or one."""
    n = cluster.num_devices
    # Preferably a batch that the devices divide.
    even = dict.fromkeys(b - b % n if b > n else b for b in _halvings(batch))
    smaller = list(itertools.takewhile(lambda b: b >= n or math.gcd(b, n) > 1, even))
    found = _first(
        smaller,
        lambda b: may(replace(ask, batch=b), cluster),
        lambda b: fits(replace(ask, batch=b), cluster),
    )
    return [f"--batch {b}" for b in found]


def _more_devices(ask: Ask, batch: int, cluster: Cluster, may: Fits, fits: Fits) -> list[str]:
    larger: dict[int, tuple[Ask, Cluster]] = {}
    devices, most = cluster.num_devices * 2, cluster.devices_per_node * cluster.max_nodes
    while devices <= most and batch >= devices:
        try:
            count, nodes, width = place(cluster, devices, None)
        except UserError:
            break
        on = replace(cluster, num_devices=count, num_nodes=nodes, node_width=width)
        larger[devices] = replace(ask, batch=batch, num_devices=devices), on
        devices *= 2
    found = _first(list(larger), lambda d: may(*larger[d]), lambda d: fits(*larger[d]))
    return [f"--gpus {d} --batch {batch}" for d in found]


def _halvings(whole: int) -> Iterator[int]:
    """A half, a quarter and so on of `whole`, rounded down, as long as they are at least 1."""
    while whole > 1:
        whole //= 2
        yield whole


def _first(
    options: Sequence[int], may: Callable[[int], bool], fits: Callable[[int], bool]
) -> list[int]:
    """The first option that fits, in a list of none or one. Bisection by `may` finds where options
    may begin to fit (usually at the first); the few from there on are tried."""
    at = _begin(options, may)
    return next(([option] for option in options[at : at + _LOOKS] if fits(option)), [])


def _begin(options: Sequence[int], may: Callable[[int], bool]) -> int:
    """The index of the first option that may fit, if all after it may too; the length if none
    may."""
    if not options or may(options[0]):
        return 0
    below, above = 0, len(options) - 1
    if below == above or not may(options[above]):
        return len(options)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if may(options[middle]) else (middle, above)
    return above
