"""Plain torch's batch norms in training, with statistics over equal parts of the batch: those of
microbatches (`--per-microbatch`), while all else sees the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["norms_of_parts"]

#: Calls that normalise a batch, with the place of their argument `training`.
_NORMS = {F.batch_norm: 5, torch.batch_norm: 5}
#: Modules that count the batches that their running statistics have seen.
_COUNTING = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


@contextmanager
def norms_of_parts(module: torch.nn.Module, parts: int) -> Iterator[None]:
    """While active, batch norms in training normalise each of `parts` parts of the batch by itself,
    and change their running statistics by one after the other. One part is the whole batch."""
    if parts == 1:
        yield
        return
    with _Parts(parts):
        yield
    for norm in module.modules():
        if not isinstance(norm, _COUNTING) or not norm.training:
            continue
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += parts - 1  # its forward has counted one


class _Parts(TorchFunctionMode):
    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        at = _NORMS.get(func)
        if at is None or not (args[at] if len(args) > at else kwargs.get("training", False)):
            return func(*args, **kwargs)
        x, *rest = args
        parts: tuple[Tensor, ...] = x.chunk(self.parts)
        return torch.cat([func(part, *rest, **kwargs) for part in parts])
