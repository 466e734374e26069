"""The script for a GPU: what it goes on with, what it names, how it ends what takes too long.
Its measurements are tried by hand."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    yield gpu_check
    for name in ("gpu_check", "gpu_cases", "gpu_table"):
        sys.modules.pop(name, None)


def check_of(
    script: Any, folder: Path, *, environment: dict[str, Any] | None = None, **changes: Any
) -> Any:
    asked = {
        "minutes": 8.0,
        "only": None,
        "force": False,
        "device": "cpu",
        "tiny": True,
        "out": folder / "found.json",
        **changes,
    }
    check = script.Check(argparse.Namespace(**asked), folder / "work")
    (folder / "work").mkdir(exist_ok=True)
    check.measure = lambda part: (
        environment or {"card": "NVIDIA H100 80GB HBM3", "shipped": "dgx-h100"}
    )
    check.open()
    return check


def test_a_second_run_goes_on_where_the_first_ended(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "_commit", lambda: "abc")
    first = check_of(script, tmp_path)
    first.keep("gpt2/ours", {"step_s": 0.1})
    first.keep("gpt2/eager", {"failed": "CUDA error"})
    (tmp_path / "work" / "calibrated.toml").write_text("name = 'x'")
    first.keep("calibrate", {"seconds": 1.0})
    (tmp_path / "work" / "calibrated.toml").unlink()
    again = check_of(script, tmp_path)
    left = {part.name for part in script.parts() if again.wanted(part)}
    assert {"gpt2/eager", "gpt2/compile", "tests"} <= left and not {
        "gpt2/ours",
        "calibrate",
        "environment",
    } & left
    assert (tmp_path / "work" / "calibrated.toml").read_text() == "name = 'x'"
    assert again.request["shipped"] == "dgx-h100"
    assert check_of(script, tmp_path, force=True).wanted(script.Part("gpt2/ours", 1, 1))
    monkeypatch.setattr(script, "_commit", lambda: "another")
    assert check_of(script, tmp_path).wanted(script.Part("gpt2/ours", 1, 1))


def test_some_parts_alone(script: Any, tmp_path: Path) -> None:
    check = check_of(script, tmp_path, only=["gpt2/*", "calibrate"])
    assert [part.name for part in script.parts() if check.wanted(part)] == [
        "calibrate",
        "gpt2/ours",
        "gpt2/eager",
        "gpt2/compile",
    ]


def test_what_no_longer_fits_the_time_is_named(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = check_of(script, tmp_path, minutes=0.1)
    check.run(script.Part("gpt2/compile", 90, 25))
    written = json.loads((tmp_path / "found.json").read_text())
    assert (
        "of 0.1 minutes are left, it needs at least 25 s"
        in written["skipped"]["gpt2/compile"]["skipped"]
    )
    assert "gpt2/compile" in capsys.readouterr().out


def test_a_failure_keeps_the_end_of_what_was_said(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = script.Check(
        argparse.Namespace(minutes=1.0, device="cpu", tiny=True, out=tmp_path / "found.json"),
        tmp_path,
    )
    monkeypatch.setattr(script, "HERE", tmp_path)
    (tmp_path / "gpu_measure.py").write_text(
        "print('one')\nraise SystemExit('RuntimeError: the last word')"
    )
    assert check.measure(script.Part("x", 30, 0))["failed"] == "RuntimeError: the last word"
    missing = "import json, sys\njson.dump({'missing': 'No module'}, open(sys.argv[3], 'w'))"
    (tmp_path / "gpu_measure.py").write_text(missing)
    assert check.measure(script.Part("x", 30, 0)) == {"skipped": "No module"}


def test_what_takes_too_long_is_ended(script: Any, tmp_path: Path) -> None:
    """With what it started."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)'])"
    assert script._wait([sys.executable, "-c", child], tmp_path / "log", 1.0) is None


def test_the_table_has_a_row_for_each_model_measured(script: Any) -> None:
    from gpu_table import table

    predicted = {"shipped": {"step_s": 0.08, "error": -0.2}}
    ours = {
        "step_s": 0.1,
        "peak_bytes": 2**30,
        "predicted_peak_bytes": 2**29,
        "predicted": predicted,
    }
    parts = {
        "gpt2/ours": ours,
        "gpt2/eager": {"step_s": 0.15, "peak_bytes": 2**31},
        "tests": {"counts": {"passed": 3}},
    }
    record = {
        "card": "H100",
        "date": "d",
        "commit": "c",
        "parts": parts,
        "skipped": {"hf/ours": {"failed": "oh"}},
    }
    _, _, row, *rest = table(record).splitlines()
    assert re.split(r"  +", row) == [
        "gpt2",
        "100.00 ms",
        "80.00 ms (-20%)",
        "-",
        "150.00 ms (1.50 x ours)",
        "-",
        "1,024 MiB",
        "512 MiB",
        "2,048 MiB",
    ]
    assert rest == ["tests: 3 passed", "hf/ours: oh"]


def test_every_package_of_the_list_names_a_module(script: Any) -> None:
    lines = [
        line.split()
        for line in (BENCHMARKS / "gpu_wheels.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert {len(line) for line in lines} == {2}
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", text)[0] for text in project["dependencies"]}
    # Machines with a GPU have these, or the Makefile names them beside the list.
    large = {"torch", "numpy", "numba", "matplotlib"}
    assert needed - large <= {package for package, _ in lines}
