"""The figures that calibration does not measure: those of the nearest shipped cluster, with this
machine's memory and processors as the system reports them."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

import torch

from cost_models.cluster import load_cluster
from cost_models.machine import Cluster

__all__ = ["base_cluster", "cores", "cpu_name", "shipped_for"]


def base_cluster(kind: str) -> Cluster:
    """The shipped cluster that supplies figures that are not measured (links, tiles), with this
    machine's memory and processors."""
    if kind == "cuda":
        return _cuda_base()
    base = load_cluster("cpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = cores()
    return replace(
        base,
        device=replace(
            base.device, name=f"1 of {count} cores, {cpu_name()}", memory=memory // max(count, 4)
        ),
    )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda_base() -> Cluster:
    properties = torch.cuda.get_device_properties(0)
    # A shipped cluster stands in for an unknown card: it supplies only what is not measured.
    base = load_cluster(shipped_for(properties.name, properties.total_memory) or "dgx-a100")
    device = replace(
        base.device,
        name=properties.name,
        memory=properties.total_memory,
        num_sms=properties.multi_processor_count,
    )
    return replace(
        base, device=device, devices_per_node=max(1, torch.cuda.device_count()), max_nodes=1
    )


def shipped_for(card: str, memory: int) -> str:
    """The shipped cluster whose devices are `card` (the driver's name) with `memory` bytes; empty
    if there is none: a PCIe card has fewer multiprocessors and slower memory than the SXM card of
    the same name."""
    slower = any(word in card for word in ("PCIe", "PCIE", "NVL", "MIG"))
    for word, cluster in _SHIPPED:
        if word in card.split() or (
            not slower and any(part.startswith(f"{word}-SXM") for part in card.split())
        ):
            small = word == "A100" and memory < 60 * 10**9
            return "" if slower else "dgx-a100-40gb" if small else cluster
    return ""


#: Words of a card's name, and the cluster that has such cards.
_SHIPPED = (
    ("H200", "dgx-h200"),
    ("H100", "dgx-h100"),
    ("A100", "dgx-a100"),
    ("V100", "p3.16xlarge"),
    ("L4", "g6.48xlarge"),
)


def cpu_name() -> str:
    """The processor's name, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
