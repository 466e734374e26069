"""A model given as an object: the module with its values, its example batch and its loss in one
file, which every rank reads.

`saved:PATH` names such a file as a model. All ranks start from exactly the module's values. The
file is a pickle: it refers to objects that can be imported (the module's class, the loss) and holds
those that cannot. Read it only if you trust whoever wrote it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cost_models.atomic_write import write_atomically
from cost_models.errors import BadValue, UnknownName
from planner.state import pickles
from planner.state.digests import digests
from planner.state.known import learn
from planner.state.state import state_of
from planner.torch_private.fake_tensors import fake_mode_is_on, load_fake
from planner.torch_private.hooks import gradient_hooks
from planner.torch_private.modes import really

__all__ = ["is_saved", "read_saved", "write_saved"]

_PREFIX = "saved:"

#: The errors that pickling raises: pickle's, those of a class's own __getstate__, and torch's.
_FAILURES = (
    pickle.PicklingError,
    AttributeError,
    TypeError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)

#: The attributes of every module whose contents are looked through separately.
_PARTS = ("_modules", "_parameters", "_buffers")


def is_saved(spec: str) -> bool:
    """Whether `spec` names a saved model."""
    return spec.startswith(_PREFIX)


def write_saved(
    path: Path,
    module: torch.nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Any],
    more: dict[str, Any],
) -> str:
    """Writes the file and returns the name of the model. Raises BadValue for a model that cannot be
    written, or that differs when it is read again."""
    held = io.BytesIO()
    try:
        torch.save(
            {"module": module, "batch": batch, "loss": loss, "more": more},
            held,
            pickle_module=pickles,
        )
        held.seek(0)
        again: torch.nn.Module = torch.load(held, weights_only=False)["module"]
    except _FAILURES as error:
        what = next(_culprits(module, batch, loss), "")
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadValue(
            f"the model cannot be sent to other processes{what}: {first}; keep it out of the "
            "module, or plan a function that makes "
            "the model (plan --model FILE.py:FUNCTION)"
        ) from error
    _check_same(module, again)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, held.getvalue())
    return f"{_PREFIX}{path.resolve()}"


def _check_same(module: torch.nn.Module, again: torch.nn.Module) -> None:
    """Raises BadValue, naming the tensor, if the module read differs from the one written."""
    before, after = (digests((*m.named_parameters(), *m.named_buffers())) for m in (module, again))
    for name in (*before, *after):
        if before.get(name) != after.get(name):
            raise BadValue(
                f"the model cannot be sent to other processes: {name!r} changes when the model "
                "is pickled and read back (does it have its own __getstate__ or __setstate__?)"
            )
    hooks = [{n: len(gradient_hooks(p)) for n, p in m.named_parameters()} for m in (module, again)]
    assert hooks[0] == hooks[1], hooks


def _culprits(module: torch.nn.Module, batch: Any, loss: Any) -> Iterator[str]:
    """The parts of a model that cannot be written, in words."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in _PARTS and not _can_be_written(value):
                yield f" for {name!r} of {path or type(module).__name__!r}, a {type(value).__name__}"
    for what, value in (("the batch", batch), ("the loss", loss)):
        if not _can_be_written(value):
            yield f" for {what}, a {type(value).__name__}"


def _can_be_written(value: Any) -> bool:
    try:
        pickles.Shallow(io.BytesIO()).dump(value)
    except _FAILURES:
        return False
    return True


def read_saved(spec: str) -> dict[str, Any]:
    """The module, batch, loss and other fields of the workload. Raises UnknownName if there is no
    such file."""
    path = Path(spec.removeprefix(_PREFIX))
    if not path.is_file():
        raise UnknownName(f"model {spec!r}: there is no such file; plan again with planner.plan")
    try:
        if not fake_mode_is_on():
            found: dict[str, Any] = torch.load(path, weights_only=False)
        else:
            found = load_fake(path)
            _learn(found, really(torch.load, path, weights_only=False, mmap=True))
    except (pickle.UnpicklingError, AttributeError, ImportError, EOFError, RuntimeError) as error:
        raise BadValue(
            f"model {spec!r} cannot be read ({type(error).__name__}: {error})"
        ) from error
    return found


def _learn(found: dict[str, Any], real: dict[str, Any]) -> None:
    """Makes the file's values known for the fake tensors: a model may branch on a buffer that
    never changes."""
    values = state_of(real["module"], real["loss"]).kept
    for name, tensor in state_of(found["module"], found["loss"]).kept.items():
        if name in values:
            learn(tensor, values[name])
