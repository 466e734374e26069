"""The `Library` record: how a collective library (NCCL, gloo) behaves, by algorithm, protocol and
kind of link.

A protocol moves a message over one hop in `hop_latency[link kind]` seconds and reaches a share
`bandwidth_share` of the links' bandwidth. NCCL has three (LL, LL128, Simple), which trade latency
for bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.errors import BadHardware

__all__ = ["ALGORITHMS", "COLLECTIVES", "MEASURED", "Library", "Protocol"]

#: The collectives. `slice` keeps a part of the tensor that a rank already holds: nothing is sent.
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "slice")
#: What a measured table may have: the collectives, and a message from one rank to another.
MEASURED = (*COLLECTIVES, "send")

#: The algorithms that `collectives` can cost, and that of `point_to_point`.
ALGORITHMS = ("ring", "tree", "halving_doubling", "hierarchical", "nvls", "pairwise", "send")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One protocol of one algorithm. `hop_latency` is seconds by link kind, `base_latency` seconds
    per call."""

    algorithm: str
    name: str
    base_latency: float
    bandwidth_share: float
    hop_latency: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise BadHardware(
                f"protocol {self.name!r}: unknown algorithm {self.algorithm!r}, known: {', '.join(ALGORITHMS)}"
            )
        if not 0 < self.bandwidth_share <= 1:
            raise BadHardware(
                f"protocol {self.name!r}: bandwidth_share must be in (0, 1], got "
                f"{self.bandwidth_share}"
            )

    def hop(self, link_kind: str) -> float:
        """Seconds of one hop over a link of `link_kind`. Raises `BadHardware` for a kind that
        the library does not list."""
        for name, seconds in self.hop_latency:
            if name == link_kind:
                return seconds
        known = ", ".join(name for name, _ in self.hop_latency)
        raise BadHardware(
            f"protocol {self.algorithm}/{self.name} has no hop latency for {link_kind!r} links: it lists {known}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A collective library: its protocols by algorithm. It must have `pairwise`, its all-to-all."""

    name: str
    protocols: tuple[Protocol, ...]

    def __post_init__(self) -> None:
        for algorithm in ("ring", "pairwise"):
            if not self.of(algorithm):
                raise BadHardware(
                    f"library {self.name!r} needs at least one protocol of the algorithm {algorithm!r}"
                )

    def of(self, algorithm: str) -> tuple[Protocol, ...]:
        """The protocols of `algorithm`; empty if the library does not have it."""
        return tuple(protocol for protocol in self.protocols if protocol.algorithm == algorithm)
