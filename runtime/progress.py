"""What a rank does, in a file that the process which launched it reads if the rank is killed: one
that is ended by a signal cannot tell."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

__all__ = ["FOLDER", "Progress", "progress_of"]

#: The environment's name for the folder of the files, if there is one.
FOLDER = "SHARDWRIGHT_PROGRESS"

_BYTES = 128


class Progress:
    """This rank's file; none if nobody reads it."""

    def __init__(self) -> None:
        self._file: mmap.mmap | None = None
        if folder := os.environ.get(FOLDER):
            with _path(folder, int(os.environ.get("RANK", "0"))).open("w+b") as file:
                file.truncate(_BYTES)
                self._file = mmap.mmap(file.fileno(), _BYTES)

    def note(self, words: str) -> None:
        """Notes what begins."""
        if self._file is not None:
            self._file[:] = words.encode()[:_BYTES].ljust(_BYTES, b"\0")


def progress_of(folder: str, rank: int) -> str:
    """What a rank noted last; empty if nothing."""
    try:
        return _path(folder, rank).read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def _path(folder: str, rank: int) -> Path:
    return Path(folder) / f"progress-{rank}"
