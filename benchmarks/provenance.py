"""What a result must name beside its figures: machine, date, commit, versions, command."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

__all__ = ["provenance"]


def provenance(command: str) -> dict[str, str]:
    """`machine`, `date`, `commit`, `versions` and `command` of a result measured now."""
    root = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    return {
        "machine": f"{os.cpu_count()} x {name}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.stdout.strip() or "unknown",
        "command": command,
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
    }
