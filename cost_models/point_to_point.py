"""Seconds of messages from some ranks to others, all at once, by the links that they cross.

    a + n max over the pair's links of (bytes that cross the link) / (bytes/s of the link)

for a pair that sends n bytes, with a the latency of the library's protocol over the links' hops.
The links are the ports and buses inside a node, else the sender's NICs, the links out of the blocks
of nodes that the message leaves and into those that it enters, and the receiver's NICs. The two
directions of a link do not share. Source: MODELLING 5.1 (p2p hop `a + n / B`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from cost_models.collective_algorithms import Line
from cost_models.collective_table import MeasuredTable, measured_tables
from cost_models.errors import BadValue
from cost_models.group_cells import unique_rows
from cost_models.group_links import LinkClass
from cost_models.library import Protocol
from cost_models.mixed import Machine, MixedCluster
from cost_models.pair_links import PairLinks, pair_links

__all__ = ["SendModel", "links_between", "send_model", "send_time"]


class SendModel:
    """The seconds until all of some pairs of devices have sent; made by `send_model`."""

    __slots__ = ("_kinds", "_measured", "link_class")

    def __init__(self, machine: Machine, links: PairLinks) -> None:
        first = machine.groups[0] if isinstance(machine, MixedCluster) else machine
        self.link_class: LinkClass = "network" if links.crosses else "node"
        protocols = first.library.of("send") or first.library.of("pairwise")
        self._kinds = tuple(_kinds(links, protocols))
        self._measured: MeasuredTable | None = None
        if not links.crosses and links.num_pairs and first.collective_table:
            tables = measured_tables(first.collective_table, 2, links.num_pairs)
            self._measured = tables.get("send")

    @overload
    def time(self, nbytes: float) -> float: ...
    @overload
    def time(self, nbytes: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def time(self, nbytes: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        """Seconds until every pair has sent `nbytes` times its weight: a number or an array.

        0 for 0 bytes, and if every device sends to itself. Never falls with `nbytes`. Measured rows
        of `send` take precedence inside a node.
        """
        if isinstance(nbytes, np.ndarray):
            return np.array([self.time(float(n)) for n in nbytes.ravel()]).reshape(nbytes.shape)
        if nbytes <= 0 or not self._kinds:
            return 0.0
        if self._measured is not None:
            return float(self._measured.time(nbytes))
        return max(min(a + b * nbytes for a, b in lines) for lines in self._kinds)


def _kinds(links: PairLinks, protocols: tuple[Protocol, ...]) -> Iterator[tuple[Line, ...]]:
    """For each kind of pair (pairs over links of the same kinds and as crowded are one), the line
    of each protocol."""
    if not links.num_pairs:
        return
    columns = [links.hops.astype(float), links.latency, links.per_byte]
    for pair in unique_rows(columns)[0].tolist():
        kinds, latency = links.hop_kinds[links.hops[pair]], float(links.latency[pair])
        yield tuple(
            (
                protocol.base_latency + sum(protocol.hop(kind) for kind in kinds) + latency,
                float(links.per_byte[pair]) / protocol.bandwidth_share,
            )
            for protocol in protocols
        )


@lru_cache(maxsize=4096)
def send_model(
    machine: Machine,
    pairs: tuple[tuple[int, int], ...],
    weights: tuple[float, ...] | None = None,
) -> SendModel:
    """The model of messages from the first to the second device of every pair at once. A pair of
    weight w sends w times the bytes that one asks for (by default 1: all the same); a device that
    sends to itself takes no time. Raises `BadValue` for devices that are not there."""
    for pair in pairs:
        if not all(0 <= device < machine.num_devices for device in pair):
            raise BadValue(
                f"a message from device {pair[0]} to device {pair[1]}: {machine.name!r} has devices "
                f"0 to {machine.num_devices - 1}"
            )
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    share = np.ones(len(ends)) if weights is None else np.array(weights, float)
    away = (ends[:, 0] != ends[:, 1]) & (share > 0)
    return SendModel(machine, pair_links(machine, ends[away], share[away]))


def links_between(machine: Machine, first: int, other: int, count: int) -> SendModel:
    """The model of messages from device `first + i` to device `other + i`, for all i below `count`:
    from one stage to another of the same mesh."""
    return send_model(machine, tuple((first + i, other + i) for i in range(count)))


def send_time(machine: Machine, pairs: tuple[tuple[int, int], ...], nbytes: float) -> float:
    """Seconds until all pairs have sent `nbytes` each; see `SendModel.time`."""
    return send_model(machine, pairs).time(nbytes)
