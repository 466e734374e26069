"""The examples of the Python API, shortened: digits and letters learned on two ranks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_digits_are_recognised_after_a_few_epochs(tmp_path: Path) -> None:
    assert (EXAMPLES / "data" / "digits.csv.gz").stat().st_size <= 2_000_000
    assert "BSD 3-Clause" in (EXAMPLES / "data" / "LICENSE.digits").read_text()
    out = run(tmp_path, "digits.py", "--epochs", "3")
    assert out.splitlines()[-1].startswith("held-out accuracy 0.9"), out
    assert "30 steps on 2 ranks" in out


def test_letters_are_guessed_better_than_by_their_frequency(tmp_path: Path) -> None:
    assert (EXAMPLES / "data" / "lincoln.txt").stat().st_size <= 2_000_000
    assert "CC0" in (EXAMPLES / "data" / "LICENSE.lincoln").read_text()
    out = run(tmp_path, "language_model.py", "--steps", "60")
    found = re.search(r"held out: ([0-9.]+) bits a letter \(([0-9.]+) by frequency\)", out)
    assert found, out
    assert float(found[1]) < float(found[2]) - 0.3


def run(folder: Path, example: str, *options: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / example), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
