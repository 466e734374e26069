"""One CUDA device, looked at in a few minutes: `make gpu-check`, or

    python benchmarks/gpu_check.py [--minutes 8] [--only 'gpt2/*'] [--force] [--out FILE] [--device cpu --tiny]

Environment, the tests that need a device, `plan calibrate`, and for each model of `gpu_cases.py`
the plan's predicted step and peak memory beside the measured ones, plain torch and `torch.compile`
on the same card in the same run. Every measurement is a process of its own, with a limit on its
time; its result is written as soon as it is there, and a second run goes on where the first ended.
What is missing, fails or no longer fits the time is named. No network is needed: see `make
gpu-wheels`. Where the checkout comes without its history, the environment's COMMIT names it.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_cases import CASES
from gpu_table import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: Where missing packages are installed from, and to; git ignores both.
WHEELS, SITE = ROOT / "gpu-wheels", ROOT / ".gpu-site"


#: What the limits of the parts are made for; with more, each has more.
MINUTES = 8.0


@dataclass(frozen=True)
class Part:
    """A measurement: its name, the seconds that it may take, and those below which it is not
    begun."""

    name: str
    limit: float
    least: float


def parts() -> list[Part]:
    """All measurements, what says most first; plans are made beside the others, by the host."""
    out = [Part("environment", 60, 5), Part("tests", 120, 20), Part("calibrate", 150, 20)]
    out += [Part(f"{model}/{measure}", 75, 15) for model in CASES for measure in ("ours", "eager")]
    return out + [Part(f"{model}/compile", 90, 25) for model in CASES if model != "keras"]


class Check:
    """The state of a check: what is known, what was left out and why, and the time that is left."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        self.end = time.monotonic() + 60 * asked.minutes
        self.request = {
            "device": asked.device,
            "tiny": asked.tiny,
            "steps": 5 if asked.tiny else 20,
            "folder": str(folder),
            "shipped": "",
        }
        self.file: Path = asked.out or Path()
        self.record: dict[str, Any] = {
            "command": "python benchmarks/gpu_check.py " + " ".join(sys.argv[1:]),
            "parts": {},
            "skipped": {},
        }

    def open(self) -> None:
        """Measures the environment, and takes what a run on the same card, day and commit has
        written."""
        found = self.measure(Part("environment", 60, 0))
        if "failed" in found or "skipped" in found:
            sys.exit(f"gpu-check: {found.get('failed') or found['skipped']}")
        card, date = found.get("card") or self.asked.device, datetime.now(UTC).strftime("%Y-%m-%d")
        if self.asked.out is None:
            name = re.sub(r"[^a-z0-9]+", "-", str(card).removeprefix("NVIDIA ").lower()).strip("-")
            self.file = (
                HERE / "results" / f"gpu-{name}{'-tiny' if self.asked.tiny else ''}-{date}.json"
            )
        head = {"card": card, "date": date, "commit": _commit()}
        if self.file.is_file() and not self.asked.force:
            before = json.loads(self.file.read_text())
            if all(before.get(key) == value for key, value in head.items()):
                self.record["parts"] = before["parts"]
                self._take_calibration(before)
        self.record = {**head, **self.record}
        self.record["parts"]["environment"] = found
        self.request["shipped"] = found.get("shipped") or ""
        self.write()

    def _take_calibration(self, before: dict[str, Any]) -> None:
        """The hardware file of the run before lies beside its results."""
        kept = self.file.with_suffix(".toml")
        if kept.is_file():
            (self.folder / "calibrated.toml").write_text(kept.read_text())
        else:
            before["parts"].pop("calibrate", None)

    def wanted(self, part: Part) -> bool:
        """Whether the part is asked for and still to be done."""
        only = self.asked.only
        return (
            not only or any(fnmatch.fnmatch(part.name, o) for o in only)
        ) and part.name not in self.record["parts"]

    def run(self, part: Part) -> None:
        """Measures a part where there is time for it, and writes what came of it."""
        left = self.end - time.monotonic()
        if left < part.least:
            found = {
                "skipped": f"{left:.0f} s of {self.asked.minutes:g} minutes are left, it needs at "
                f"least {part.least:.0f} s"
            }
        else:
            found = self.measure(part)
        self.keep(part.name, found)

    def measure(self, part: Part) -> dict[str, Any]:
        """The result of a part, or why there is none."""
        limit = min(
            part.limit * max(1.0, self.asked.minutes / MINUTES),
            max(self.end - time.monotonic(), 1.0),
        )
        with tempfile.TemporaryDirectory() as place:
            request, result, log = (
                Path(place) / name for name in ("request.json", "result.json", "log")
            )
            request.write_text(json.dumps(self.request))
            command = [
                sys.executable,
                str(HERE / "gpu_measure.py"),
                part.name,
                str(request),
                str(result),
            ]
            code = _wait(command, log, limit)
            if result.is_file():
                found: dict[str, Any] = json.loads(result.read_text())
                return {"skipped": found["missing"]} if "missing" in found else found
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if code is None:
            return {"skipped": f"not done in {limit:.0f} s"}
        return {"failed": said[-1][:500] if said else f"exit code {code}", "log": said[-40:]}

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Writes a part's result, or names it as left out."""
        self.record["skipped"].pop(name, None)
        if "skipped" in found or "failed" in found:
            self.record["skipped"][name] = found
        else:
            self.record["parts"][name] = found
        print(f"{name:20s} {found.get('skipped') or found.get('failed') or 'done'}", flush=True)
        self.write()

    def write(self) -> None:
        """The file as a whole, or as it was."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".part")
        new.write_text(json.dumps(self.record, indent=1) + "\n")
        new.replace(self.file)
        calibrated = self.folder / "calibrated.toml"
        if calibrated.is_file():
            self.file.with_suffix(".toml").write_text(calibrated.read_text())


def _wait(command: list[str], log: Path, limit: float) -> int | None:
    """The exit code of a command, None where it took longer than `limit`; all that it started is
    then ended."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE, SITE))),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # its time is over, or ours
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _commit() -> str:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or os.environ.get("COMMIT", "unknown")


def install_missing() -> list[str]:
    """Installs the packages of `gpu_wheels.txt` that Python does not find, from the folder of
    wheels; those still missing."""
    lines = [
        line.split()
        for line in (HERE / "gpu_wheels.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    missing = [(package, module) for package, module, *_ in lines if not _is_there(module)]
    for package, _ in missing if WHEELS.is_dir() else ():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--find-links",
            str(WHEELS),
        ]
        subprocess.run([*command, "--target", str(SITE), package], capture_output=True, check=False)
    importlib.invalidate_caches()
    return [package for package, module in missing if not _is_there(module)]


def _is_there(module: str) -> bool:
    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    return importlib.util.find_spec(module) is not None


def _plans(check: Check) -> dict[str, Future[dict[str, Any]]]:
    """Plans under way, by model: the host makes them while the device does something else."""
    pool = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) // 4))
    models = {
        part.name.partition("/")[0]
        for part in parts()
        if part.name.endswith("/ours") and check.wanted(part)
    }
    return {
        model: pool.submit(check.measure, Part(f"{model}/plan", 200, 0))
        for model in CASES
        if model in models
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument(
        "--only", action="append", metavar="PART", help="parts, by name or pattern, as 'gpt2/*'"
    )
    parser.add_argument("--force", action="store_true", help="measure again what is done")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/gpu-CARD-DATE.json")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what is under way, too
    missing = install_missing()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(asked, Path(folder))
        check.open()
        check.record["missing_packages"] = missing
        plans = _plans(check)
        for part in parts():
            model, _, measure = part.name.partition("/")
            if not check.wanted(part):
                continue
            if measure == "ours":
                planned = plans[model].result()
                check.keep(f"{model}/plan", planned)
                if "skipped" in planned or "failed" in planned:
                    check.keep(part.name, {"skipped": "there is no plan"})
                    continue
            check.run(part)
        check.write()
    print(table(check.record))
    print(
        f"written to {check.file}"
        + (f"; missing packages: {', '.join(missing)}" if missing else "")
    )
    failed = [name for name, found in check.record["skipped"].items() if "failed" in found]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
