"""Which line of the user's own code an error or an op comes from."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

__all__ = ["from_frames", "from_text"]


def from_frames(frames: Iterable[traceback.FrameSummary]) -> str:
    """`FILE:LINE (CODE)` of the innermost frame in the user's code; empty where there is none."""
    own = [f for f in frames if not _is_library(Path(f.filename))]
    return f"{own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""


def from_text(stack: str) -> str:
    """The same, of a stack trace as text."""
    found = re.findall(r'File "(.*?)", line (\d+), in .*\n +(.*)', stack)
    own = [(file, line, code) for file, line, code in found if not _is_library(Path(file))]
    return "{}:{} ({})".format(*own[-1]) if own else ""


def _is_library(path: Path) -> bool:
    """Whether the file is ours (but for the built-in models), Python's or installed, and not the user's."""
    ours, python = Path(__file__).parent, Path(traceback.__file__).parent
    installed = "site-packages" in path.parts or "dist-packages" in path.parts or Path(torch.__file__).parent in path.parents
    return (
        installed or python in path.parents or (ours in path.parents and path.parent.name != "models") or not path.is_absolute()
    )
