"""The settings that a calibration's processes get, and the measurements that they return."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.device import GemmRow, OpRow
from cost_models.machine import CollectiveRow

__all__ = ["Measured", "Settings", "counts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How many ranks, on which device, with how many cores, and whether only the smallest shapes
    are measured."""

    num_ranks: int
    device: str
    num_cores: int
    quick: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Rank 0's measurements. `shared` has (ranks at once, kind, core seconds together / core
    seconds alone) per call."""

    ops: tuple[OpRow, ...]
    gemms: tuple[GemmRow, ...]
    shared: tuple[tuple[int, str, float], ...]
    collectives: tuple[CollectiveRow, ...]
    op_overhead: float
    step_overhead: float


def counts(num_ranks: int) -> list[int]:
    """The numbers of ranks that are measured at once, in turn."""
    return [n for n in (1, 2, 4, 8) if n <= num_ranks]
