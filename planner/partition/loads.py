"""Loads of the parts between many pairs of ideals at once, as products of matrices.

For ideals I in J, what a device pays for J - I follows from how many units of each net lie in I and
in J. A net is open in an ideal that has some of its units, not all. A part pays for a net if it has
some of it but not all: for every net that is open in J, and every net that is open in I, but once
if it is open in both, and not at all if J has no more of it than I. With B the seconds of the open
nets of an ideal,

    sent(I, J) = B(I) + B(J) - <open(I), open(J)> - <counts(I), counts(J)>

where open() has a column for a net, counts() one for a net and a number of its units, both over the
open nets alone, and products are weighted by the seconds of the nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.partition.dag import Dag

__all__ = ["Ideals", "ideals_of"]

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ideals:
    """Ideals in the order of the work of the first kind of device, whose last one is the whole.

    members[ideal, unit]; features[ideal, column] and weights[column] of the open nets, opened[ideal]
    their seconds; seconds[kind, ideal], banned[kind, ideal] the units that a kind cannot run;
    nbytes[ideal]."""

    names: tuple[int, ...]
    members: Bytes
    features: Bytes
    weights: Floats
    opened: Floats
    seconds: Floats
    banned: Floats
    nbytes: Floats

    def loads(self, dag: Dag, kind: int, rows: NDArray[np.intp], first: int, end: int) -> Floats:
        """loads[i, j]: of a device of the kind with the part between the ideal `rows[i]` and the
        ideal first + j, infinite if there is no such part or it does not fit."""
        device, later = dag.devices[kind], slice(first, end)
        outside = 1.0 - self.members[later].astype(np.float32)
        missing = self.members[rows].astype(np.float32) @ outside.T
        loads = self.seconds[kind, None, later] - self.seconds[kind, rows, None]
        if device.pays:
            weighted = self.features[rows] * self.weights
            loads += self.opened[None, later] + self.opened[rows, None]
            loads -= weighted @ self.features[later].astype(np.float64).T
        impossible = missing > 0
        if self.banned[kind, -1]:
            impossible |= self.banned[kind, None, later] > self.banned[kind, rows, None]
        if self.nbytes[-1] > device.limit:
            impossible |= self.nbytes[None, later] - self.nbytes[rows, None] > device.limit
        loads[impossible] = np.inf
        return loads


def ideals_of(dag: Dag, names: Sequence[int]) -> Ideals:
    """The tables of some ideals, of which the empty set and the whole must be two."""
    units, kinds = len(dag.before), dag.devices
    width = (units + 7) // 8
    raw = np.frombuffer(b"".join(name.to_bytes(width, "little") for name in names), np.uint8)
    members = np.unpackbits(raw.reshape(-1, width), axis=1, count=units, bitorder="little")
    table = np.array([device.seconds for device in kinds])
    able = np.where(np.isfinite(table), table, 0.0)
    seconds = able @ members.T.astype(np.float64)
    order = np.lexsort((members.sum(1), seconds[0]))
    members = members[order]
    features, weights, opened = _open_nets(dag, members)
    return Ideals(
        names=tuple(names[i] for i in order),
        members=members,
        features=features,
        weights=weights,
        opened=opened,
        seconds=seconds[:, order],
        banned=(~np.isfinite(table)).astype(np.float64) @ members.T,
        nbytes=members.astype(np.float64) @ np.array(dag.nbytes),
    )


def _open_nets(dag: Dag, members: Bytes) -> tuple[Bytes, Floats, Floats]:
    """(features, their weights, seconds of the open nets) of each ideal."""
    nets = [net for net in dag.nets if len(net.units) > 1 and net.seconds > 0]
    incidence = np.zeros((members.shape[1], len(nets)), np.float32)
    for column, net in enumerate(nets):
        incidence[list(net.units), column] = 1
    counts = (members.astype(np.float32) @ incidence).astype(np.int32)
    sizes = np.array([len(net.units) for net in nets], np.int32)
    seconds = np.array([net.seconds for net in nets])
    is_open = (counts > 0) & (counts < sizes)
    columns, weights = [is_open], [seconds]
    for count in range(1, int(sizes.max(initial=1))):
        larger = sizes > count
        columns.append(counts[:, larger] == count)
        weights.append(seconds[larger])
    return (
        np.concatenate(columns, axis=1).astype(np.uint8),
        np.concatenate(weights),
        is_open @ seconds,
    )
