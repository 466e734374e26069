"""The line of the model's own code that an error or an op comes from."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

__all__ = ["from_frames", "from_text", "is_own"]

#: Files in the models' folder that define no model: they build or wrap models of others.
_NO_MODELS = (
    "hugging_face.py",
    "hugging_face_module.py",
    "keras_layers.py",
    "keras_model.py",
    "keras_module.py",
    "reported.py",
    "spec.py",
    "user.py",
)

_PLANNER = Path(__file__).parents[1]
_TRACE = _PLANNER / "trace" / "trace.py"

_Line = tuple[str, str, str]


def from_frames(frames: Iterable[traceback.FrameSummary]) -> str:
    """`FILE:LINE (CODE)` of the innermost frame in the user's code, else in that of an installed
    model; empty if there is none."""
    return _told([(frame.filename, str(frame.lineno), str(frame.line)) for frame in frames])


def from_text(stack: str) -> str:
    """The same, from a stack trace as text."""
    return _told(re.findall(r'File "(.*?)", line (\d+), in .*\n +(.*)', stack))


@cache
def is_own(file: str) -> bool:
    """Whether a file is the user's, or a built-in model."""
    return _is_own(Path(file))


def _told(lines: list[_Line]) -> str:
    """The place among the frames below the trace: the script that asked for a plan is the user's
    too, but says nothing about the model."""
    begin = max((at + 1 for at, line in enumerate(lines) if Path(line[0]) == _TRACE), default=0)
    lines = lines[begin:]
    own = [line for line in lines if _is_own(Path(line[0]))] or [
        line for line in lines if _is_installed_model(Path(line[0]))
    ]
    return "{}:{} ({})".format(*own[-1]) if own else ""


def _is_own(path: Path) -> bool:
    """Whether the file is the user's, or a built-in model: not Python's, not installed, no other
    of ours."""
    python = Path(traceback.__file__).parent
    if _PLANNER in path.parents:
        return path.parent.name == "models" and path.name not in _NO_MODELS
    return path.is_absolute() and not _is_installed(path) and python not in path.parents


def _is_installed_model(path: Path) -> bool:
    """Whether the file is installed and not torch's: of a library of models (transformers,
    Keras)."""
    return _is_installed(path) and Path(torch.__file__).parent not in path.parents


def _is_installed(path: Path) -> bool:
    return (
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or Path(torch.__file__).parent in path.parents
    )
