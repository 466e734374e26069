"""Several communications as one, on one flat buffer."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from planner.program.program import Communicate
from planner.strategy.costing import Costing

__all__ = ["kind_key", "merge"]


def merge(parts: list[Communicate], costing: Costing) -> Communicate:
    """Several communications as one, on one flat buffer."""
    if len(parts) == 1:
        return parts[0]
    nbytes = sum(p.nbytes for p in parts)
    first = parts[0]
    return replace(
        first,
        id=f"{first.id}+{len(parts) - 1}",
        path=f"{first.path} +{len(parts) - 1}",
        nbytes=nbytes,
        sources=tuple(s for p in parts for s in p.sources),
        results=tuple(r for p in parts for r in p.results),
        expanded=tuple(e for p in parts for e in p.expanded),
        shapes=tuple(s for p in parts for s in p.shapes),
        gather_pieces=tuple(g for p in parts for g in p.gather_pieces),
        split_pieces=tuple(s for p in parts for s in p.split_pieces),
        dtypes=tuple(d for p in parts for d in p.dtypes),
        time=costing.messages.communication(first.kind, first.axes, float(nbytes)),
    )


def kind_key(part: Communicate) -> Hashable:
    """The key that communications must share to go in one buffer."""
    return (part.kind, part.axes, part.gather, part.split, part.reduce, part.dtypes[0])
