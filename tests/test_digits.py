"""The example of the Python API: digits learned on two ranks, shortened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_digits_are_recognised_after_a_few_epochs(tmp_path: Path) -> None:
    assert (EXAMPLES / "data" / "digits.csv.gz").stat().st_size <= 2_000_000
    assert "BSD 3-Clause" in (EXAMPLES / "data" / "LICENSE.digits").read_text()
    command = [sys.executable, str(EXAMPLES / "digits.py"), "--epochs", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("held-out accuracy 0.9"), done.stdout
    assert "30 steps on 2 ranks" in done.stdout
