"""The solver on a folder of instances in the contest's format: cost, bound, gap, seconds, ratio to
a reference.

python benchmarks/solver.py [FOLDER] [--only A,B] [--reference FILE.csv] [--out FILE.json]

One process of `plan solve` an instance, under the contest's time limit for its letter (60 s for a
name without one). A reference is a CSV with the columns instance and cost. FOLDER is by default
iopddl in the folder that SHARDWRIGHT_DATA names.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from provenance import provenance

#: Seconds that the contest gave, by the letter of the instance: 60 for A to E, 120 to I or J, and
#: so on.
LIMITS = {60: "ABCDE", 120: "FGHIJ", 180: "KLMNO", 240: "PQRST", 300: "UVWXYZ"}


def limit_of(name: str) -> int:
    """The contest's time limit of an instance."""
    return next((seconds for seconds, letters in LIMITS.items() if name in letters), 60)


def run(file: Path, name: str) -> dict[str, Any]:
    """One instance: what `plan solve --json` says, wall and CPU seconds and peak GiB of the
    whole process."""
    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "planner",
        "solve",
        str(file),
        "--time-limit",
        str(limit_of(name)),
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return {
        "instance": name,
        **told,
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "load": os.getloadavg()[0],
    }


def line(row: dict[str, Any], reference: dict[str, float]) -> str:
    """A row of the table."""
    if "error" in row:
        return f"{row['instance']:4s} {row['error']['message']}"
    ratio = (
        f"{row['cost'] / reference[row['instance']]:.5f}" if row["instance"] in reference else "-"
    )
    gap, bound = (
        ("-", "-") if row["bound"] is None else (f"{100 * row['gap']:.3f} %", f"{row['bound']:,}")
    )
    return (
        f"{row['instance']:4s} {row['status']:9s} {row['cost']:>20,} {bound:>20s} {gap:>9s} {ratio:>8s} "
        f"{row['wall_s']:7.1f} {row['cpu_s']:7.1f} {row['peak_gib']:6.2f} {row['load']:5.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("SHARDWRIGHT_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("folder", nargs="?", default=f"{data}/iopddl")
    parser.add_argument("--only", default="", help="names of instances, comma between")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    reference = {}
    if asked.reference is not None:
        with asked.reference.open(encoding="utf-8") as lines:
            reference = {
                row["instance"]: float(row["cost"].replace(",", ""))
                for row in csv.DictReader(lines)
            }
    named = {
        path.name.partition(".")[0].rpartition("-")[2]: path
        for path in sorted(Path(asked.folder).glob("*.json*"))
    }
    wanted = asked.only.split(",") if asked.only else list(named)
    print(
        "     status                    cost                bound       gap    ratio    wall     cpu    GiB  load",
        flush=True,
    )
    rows = []
    for name in wanted:
        rows.append(run(named[name], name))
        print(line(rows[-1], reference), flush=True)
        if asked.out is not None:
            record = {
                "provenance": provenance("benchmarks/solver.py " + " ".join(wanted)),
                "rows": rows,
            }
            asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
