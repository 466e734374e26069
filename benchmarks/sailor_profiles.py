"""Layer profiles, network fits and experiments of the Sailor artefact (SOSP'25), as Python records.

The files lie in `sailor/` of the folder that SHARDWRIGHT_DATA names; its README.md describes them.
No imports beyond the standard library: a search of a few hundredths of a second should not wait
for them.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["DATA", "FLOAT_BYTES", "End", "Held", "Layer", "Network", "Profiles", "ZONE", "rows"]

DATA = (
    Path(os.environ.get("SHARDWRIGHT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    / "sailor"
)
FLOAT_BYTES = 4
#: Where GPUs are that name no zone.
ZONE = "us-central1-a"


def rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file of the artefact's facts."""
    with (DATA / name).open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


class Layer(NamedTuple):
    """Seconds of a layer for a microbatch on one tensor-parallel group; `update` is of the whole
    profiling run."""

    forward: float
    backward: float
    update: float


class Held(NamedTuple):
    """Floats of a layer on one rank: parameters, output, what forward keeps, of one sequence."""

    parameters: int
    output: int
    kept: int


@dataclass(frozen=True)
class Profiles:
    """Of one model: `times[gpu, microbatch, tp]` and `held[tp]`, one entry a layer."""

    times: dict[tuple[str, int, int], tuple[Layer, ...]]
    held: dict[int, tuple[Held, ...]]

    @classmethod
    def of(cls, model: str) -> Profiles:
        """The profiles that the artefact's simulator reads. KeyError if the model has none."""
        times: dict[tuple[str, int, int], dict[int, Layer]] = {}
        for row in rows("layer_times.csv"):
            if row["model"] == model and row["table"] == "referee":
                cell = row["gpu"], int(row["microbatch"]), int(row["tp"])
                layer = Layer(*(float(row[f"{k}_s"]) for k in ("forward", "backward", "update")))
                times.setdefault(cell, {}).update(dict.fromkeys(_layers(row), layer))
        held: dict[int, dict[int, Held]] = {}
        for row in rows("layer_memory.csv"):
            if row["model"] == model:
                floats = ("params_floats", "act_output_floats", "act_mem_floats")
                entry = Held(*(int(row[name]) for name in floats))
                held.setdefault(int(row["tp"]), {}).update(dict.fromkeys(_layers(row), entry))
        if not held:
            raise KeyError(model)
        count = len(held[min(held)])
        return cls(
            {key: tuple(v[i] for i in range(count)) for key, v in times.items()},
            {tp: tuple(v[i] for i in range(count)) for tp, v in held.items()},
        )

    @property
    def layers(self) -> int:
        """Plan layers: the embedding, the blocks, the head."""
        return len(self.held[min(self.held)])


def _layers(row: dict[str, str]) -> range:
    return range(int(row["layer_first"]), int(row["layer_last"]) + 1)


class End(NamedTuple):
    """One side of a message: the kind of GPU, how many of a node send at once, and where it is."""

    gpu: str
    at_once: int
    zone: str = ZONE


@dataclass(frozen=True)
class Network:
    """Fitted bandwidths between nodes."""

    fits: dict[tuple[End, End], tuple[float, float, float]]

    @classmethod
    def read(cls, gpus: Collection[str], zones: Collection[str] = (ZONE,)) -> Network:
        """The fits between the kinds of GPUs and the zones that are named."""
        fits = {}
        for row in rows("network_inter.csv"):
            if (
                row["send_zone"] in zones
                and row["recv_zone"] in zones
                and row["send_gpu"] in gpus
                and row["recv_gpu"] in gpus
            ):
                source = End(row["send_gpu"], int(row["send_count"]), row["send_zone"])
                target = End(row["recv_gpu"], int(row["recv_count"]), row["recv_zone"])
                fits[source, target] = float(row["c2"]), float(row["c1"]), float(row["c0"])
        return cls(fits)

    def seconds(self, nbytes: float, source: End, target: End) -> float:
        """The seconds of a message by the fit; infinite where there is no fit, or its bandwidth is
        not positive."""
        fit = self.fits.get((source, target))
        if fit is None:
            return math.inf
        c2, c1, c0 = fit
        size = math.log2(nbytes / 1e6)
        rate = (c2 * size + c1) * size + c0
        return nbytes / 1e9 / rate if rate > 0 else math.inf

    def best_rate(self, nbytes: float, pair: tuple[End, End]) -> float:
        """Bytes a second that no message of one to `nbytes` bytes exceeds: a quadratic is largest
        at an end or at its vertex."""
        if pair not in self.fits:
            return 0.0
        c2, c1, c0 = self.fits[pair]
        low, high = math.log2(1e-6), math.log2(nbytes / 1e6)
        vertex = min(max(-c1 / 2 / c2, low), high) if c2 else low
        return 1e9 * max((c2 * x + c1) * x + c0 for x in (low, high, vertex))
