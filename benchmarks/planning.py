"""Seconds and peak memory of whole planning processes, torch's import included.

python benchmarks/planning.py [--runs 3] [--only llama]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = (
    "--model lstm --gpus 8",
    "--model mlp --gpus 8",
    "--model cnn --gpus 8",
    "--model gpt --gpus 8",
    "--model gpt2-xl --gpus 64",
    "--model llama3-8b --gpus 8",
    "--model llama3-8b --gpus 8 --seq 1024",
    "--model llama3-70b --gpus 64",
    "--model llama --gpus 8 --set layers=8",
    "--model llama --gpus 8 --set layers=126",
    "--model llama3-405b --gpus 1024",
    "--model llama3-405b --gpus 1024 --batch 128 --seq 1024 --precision bf16-mixed",
)


def run(arguments: str) -> tuple[float, float]:
    """Wall seconds and peak GiB of one `plan` process."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "planner",
                *arguments.split(),
                "--out",
                f"{folder}/plan",
                "--json",
            ],
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
    assert status == 0, arguments
    return elapsed, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="commands that have this in them")
    asked = parser.parse_args()
    for arguments in (command for command in COMMANDS if asked.only in command):
        runs = [run(arguments) for _ in range(asked.runs)]
        seconds = sorted(s for s, _ in runs)
        print(
            f"plan {arguments:80s} {statistics.median(seconds):5.1f} s median ({seconds[0]:.1f} to {seconds[-1]:.1f})  "
            f"{max(m for _, m in runs):.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
