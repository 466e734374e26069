"""What a result must name beside its figures: machine, date, commit, versions, command."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["provenance", "write_results"]


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


def write_results(asked: argparse.Namespace, **results: Any) -> None:
    """Writes results and what they must name to the file `asked.out`, if there is one; `asked` has
    the options of the command."""
    if asked.out is not None:
        record = {**provenance(_command(asked)), **results}
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _command(asked: argparse.Namespace) -> str:
    """The command with all of its options, but for `--out`: a default may change. Of a path, the
    name says enough."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    for name, value in vars(asked).items():
        if name != "out" and value not in (None, ""):
            words += [f"--{name.replace('_', '-')}", Path(str(value)).name]
    return shlex.join(words)
