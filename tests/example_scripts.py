"""Runs an example in this process as `python examples/NAME.py` does, its neighbours in reach: a
Python of its own would import torch anew, and so would its ranks."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

import pytest

__all__ = ["EXAMPLES", "run_example"]

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(
    folder: Path, capfd: pytest.CaptureFixture[str], name: str, *options: str
) -> tuple[str, str]:
    """What an example prints on stdout and stderr, run in a folder; ranks import it by its path,
    as they would a script."""
    script = str(EXAMPLES / name)
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # as where no test runs
        patch.chdir(folder)
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(sys, "argv", [script, *options])
        runpy.run_path(script, run_name="__main__")
    return capfd.readouterr()
