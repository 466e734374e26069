"""Published measurements beside the model: rows of `SHARDWRIGHT_DATA` and the model's seconds for
them; nothing is fitted here.

python tests/cost_models/measurements.py     prints every group of rows with its errors and the
one-constant baseline
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cost_models.cluster import load_cluster, load_device
from cost_models.collectives import collective_time
from cost_models.roofline import op_time

DATA = (
    Path(os.environ.get("SHARDWRIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "measurements"
)

#: Device file and torch dtype of the rows of gemm.csv that we can predict.
_GEMM_SOURCES = {
    ("V100", "fp32"): ("v100", "float32"),
    ("V100", "fp16 in/fp32 acc"): ("v100", "float16"),
    ("A100-SXM4-80GB", "fp16"): ("a100-80gb", "float16"),
    ("A100-SXM4-80GB", "bf16/fp16 (unstated; A100 has no fp8)"): ("a100-80gb", "bfloat16"),
    ("NVIDIA A100 SXM", "bf16"): ("a100-80gb", "bfloat16"),
    ("NVIDIA H100 SXM", "bf16"): ("h100-sxm", "bfloat16"),
}
#: Seconds that a source's harness adds to every row: its smallest product takes that long whatever
#: its size, so this is the time of a launch and a synchronisation, not of a kernel (LLMCompass:
#: 29.6 us for 8192 x 64 x 64).
_HARNESS = {"LLMCompass ISCA24 artifact": 24e-6}
_CLUSTERS = {
    "A100-SXM4": "dgx-a100",
    "A100-SXM4-80GB": "dgx-a100",
    "A100 (assumed; repo default cluster)": "dgx-a100",
    "H100-SXM5-80GB": "dgx-h100",
    "H200-SXM-141GB": "dgx-h200",
    "H200-SXM": "dgx-h200",
    "V100-SXM2": "p3.16xlarge",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement and the model's figure for it, in seconds; `group` is what errors are
    reported by."""

    group: str
    what: str
    work: float
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def _table(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gemm_rows() -> Iterator[Row]:
    """Products on V100 (DeepBench), A100 (LLMCompass, Azure, MAMF) and H100 (MAMF); not the fp8
    rows: torch.mm has no fp8."""
    for row in _table("gemm.csv"):
        known = _GEMM_SOURCES.get((row["gpu_model"], row["dtype"]))
        if row["kind"] != "gemm" or known is None:
            continue
        name, dtype = known
        m, n, k = (int(float(row[key])) for key in "mnk")
        nbytes = (m * k + k * n + m * n) * {"float32": 4}.get(dtype, 2)
        device, work = load_device(name), 2.0 * m * n * k
        predicted = op_time(
            device, kind="gemm", flops=work, nbytes=nbytes, dtype=dtype, gemm=(1, m, n, k)
        )
        yield Row(
            group=f"gemm {name} {dtype} {row['source'].split()[0]}",
            what=f"{m}x{n}x{k} {row['trans_a']}{row['trans_b']}",
            work=work,
            measured=float(row["time_ms"]) * 1e-3,
            predicted=predicted + _HARNESS.get(row["source"], 0.0),
        )


def collective_rows() -> Iterator[Row]:
    """Collectives inside one node of A100, H100, H200 and V100 machines; with a time, and no
    algorithm forced by hand."""
    for row in _table("collectives.csv"):
        name = _CLUSTERS.get(row["gpu_model"])
        forced = "NVLS off" in row["algo"] or "-z 1" in row["notes"]
        if (
            name is None
            or not row["time_us"]
            or int(row["n_nodes"]) > 1
            or row["op"] == "sendrecv"
            or forced
        ):
            continue
        size, nbytes = int(row["n_gpus"]), float(row["nbytes"])
        cluster = load_cluster(name, num_devices=size)
        yield Row(
            group=f"{row['op']} {name} {row['source'].split()[0]}",
            what=f"{size} x {nbytes:.0f} B",
            work=nbytes,
            measured=float(row["time_us"]) * 1e-6,
            predicted=collective_time(cluster, (size,), (0,), row["op"], nbytes),
        )


def multi_node_rows() -> Iterator[Row]:
    """All-reduces over 2 and 4 nodes, from 512 MiB on, with the NICs of the machine that was
    measured in place of the DGX's.

    Smaller ones say more about their network (GPUDirect-TCPXO, EFA) than about InfiniBand, which no
    public row here has.
    """
    nics = {
        "GCP A3 Mega 8x200Gb/s GPUDirect-TCPXO per node": 8,
        "AWS EFA v3 16x200Gb/s per node": 16,
    }
    for row in _table("collectives.csv"):
        count, name = nics.get(row["inter_node"]), _CLUSTERS.get(row["gpu_model"])
        if (
            count is None
            or name is None
            or not row["nbytes"]
            or float(row["nbytes"]) < 2**29
            or "forced" in row["algo"]
        ):
            continue
        size, nbytes = int(row["n_gpus"]), float(row["nbytes"])
        cluster = load_cluster(name, num_devices=size)
        assert cluster.inter is not None
        cluster = replace(
            cluster, inter=replace(cluster.inter, bandwidth=25e9, nics_per_node=count)
        )
        yield Row(
            group=f"{row['op']} nodes {row['source'].split()[0]}",
            what=f"{size} x {nbytes:.0f} B",
            work=nbytes,
            measured=float(row["time_us"]) * 1e-6,
            predicted=collective_time(cluster, (size,), (0,), row["op"], nbytes),
        )


def domain_rows() -> Iterator[Row]:
    """All-reduces and all-to-alls in one NVL72 domain and over two and three, 64 GPUs of each."""
    for row in _table("collectives.csv"):
        if not row["source"].startswith("OCI GB200"):
            continue
        size, nbytes = int(row["n_gpus"]), float(row["nbytes"])
        cluster = load_cluster("gb200-nvl72", num_devices=size, num_nodes=-(-size // 64))
        yield Row(
            group=f"{row['op']} domains of 72",
            what=f"{size} x {nbytes:.0f} B",
            work=nbytes,
            measured=float(row["time_us"]) * 1e-6,
            predicted=collective_time(cluster, (size,), (0,), row["op"], nbytes),
        )


def summary(rows: list[Row]) -> dict[str, float]:
    """n, mean, median and largest absolute error, signed bias, and the mean error of the best
    single rate (the baseline)."""
    errors = np.array([row.error for row in rows])
    rates = np.array([row.work / row.measured for row in rows])
    baseline = min(np.abs(rates / rate - 1).mean() for rate in rates)
    absolute = np.abs(errors)
    return {
        "n": len(rows),
        "mean": absolute.mean(),
        "median": float(np.median(absolute)),
        "max": absolute.max(),
        "bias": errors.mean(),
        "baseline": baseline,
    }


def by_group(rows: Iterator[Row]) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row.group, []).append(row)
    return out


def main() -> None:
    for rows in (
        list(gemm_rows()),
        list(collective_rows()),
        list(multi_node_rows()),
        list(domain_rows()),
    ):
        for group, members in {"all": rows, **by_group(iter(rows))}.items():
            s = summary(members)
            print(
                f"{group:42} n {s['n']:4.0f}  mean {s['mean']:6.1%}  median {s['median']:6.1%}  max {s['max']:6.1%}"
                f"  bias {s['bias']:+6.1%}  one rate {s['baseline']:6.1%}"
            )


if __name__ == "__main__":
    main()
