"""Writes a file whole or not at all: into a temporary file beside it, then renames that."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

from cost_models.errors import BadValue

__all__ = ["write_atomically"]


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes `content` (text as UTF-8) to `path`. A reader sees the old file or the new one, never
    a part.

    Raises `BadValue` if the folder does not exist or cannot be written.
    """
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = ""
    # Else the signal may end the process and leave the temporary file behind.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        handle, temporary = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part"
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise BadValue(f"{target} cannot be written: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
