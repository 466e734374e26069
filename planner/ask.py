"""The `Ask`: a model as a person asked for it, with everything that building it again needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.workload import Workload, load_workload

__all__ = ["Ask", "build"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """`batch` is the global batch (None: the model's own, for `num_devices`); `settings` are the texts of `--set`."""

    model: str
    batch: int | None
    seq: int | None
    settings: Mapping[str, str]
    dtype: str
    num_devices: int


def build(ask: Ask) -> Workload:
    """The workload, under the caller's seed or fake tensors."""
    return load_workload(
        ask.model, batch=ask.batch, seq=ask.seq, settings=ask.settings, num_devices=ask.num_devices, dtype=ask.dtype
    )  # fmt: skip
