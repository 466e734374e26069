"""A model given as an object: the module with its values, its example batch and its loss in one file, which every rank reads.

`saved:PATH` names such a file as a model. All ranks start from the very values that the module had. The file is a pickle: it holds
references to the module's class and to the loss, which must be importable, and is to be read only where one trusts who wrote it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cost_models.atomic_write import write_atomically
from cost_models.errors import BadValue, UnknownName

__all__ = ["is_saved", "read_saved", "write_saved"]

_PREFIX = "saved:"


def is_saved(spec: str) -> bool:
    """Whether `spec` names a saved model."""
    return spec.startswith(_PREFIX)


def write_saved(path: Path, module: torch.nn.Module, batch: Any, loss: Callable[[Any, Any], Any], more: dict[str, Any]) -> str:
    """Writes the file and returns the name of the model. Raises BadValue for a class or loss that another process cannot import."""
    for thing in (*map(type, module.modules()), loss):
        if getattr(thing, "__module__", "") == "__main__":
            name = getattr(thing, "__qualname__", str(thing))
            raise BadValue(f"{name} is defined in the script or notebook itself: put it in a file that ranks can import")
    held = io.BytesIO()
    try:
        torch.save({"module": module, "batch": batch, "loss": loss, "more": more}, held)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadValue(
            f"the model cannot be given to other processes: {error}; use functions and classes of a module"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, held.getvalue())
    return f"{_PREFIX}{path.resolve()}"


def read_saved(spec: str) -> dict[str, Any]:
    """The module, batch, loss and what else the workload has. Raises UnknownName where there is no such file."""
    path = Path(spec.removeprefix(_PREFIX))
    if not path.is_file():
        raise UnknownName(f"model {spec!r}: there is no such file; plan again with planner.plan")
    try:
        found: dict[str, Any] = torch.load(path, weights_only=False)
    except (pickle.UnpicklingError, AttributeError, ImportError, EOFError, RuntimeError) as error:
        raise BadValue(f"model {spec!r} cannot be read ({type(error).__name__}: {error})") from error
    return found
