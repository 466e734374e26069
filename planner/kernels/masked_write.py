"""Writing under a mask (`h[mask] = row`) as a `where`, whose shape does not depend on the mask's
values, nor does its derivative's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable

__all__ = ["WRITES", "written"]

#: The functions that write at an index; arguments: the tensor, the index, the values.
WRITES: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.__setitem__, Tensor.index_put_, Tensor.index_put, torch.index_put_, torch.index_put}
)


def written(
    func: Callable[..., Any], *args: Any, known: Callable[[Tensor], bool], **kwargs: Any
) -> Any:
    """What the function returns. One row for all places of the mask becomes a `where`; a row per
    place is written by the indices of the places, if the mask's values are `known`. A single
    number is left to the decompositions.

    Raises NotTraceable if the mask is data: the number of rows would depend on its values.
    """
    x, index, value, *rest = (*args, *kwargs.values())
    items = tuple(index) if isinstance(index, tuple | list) else (index,)
    masks = [item for item in items if isinstance(item, Tensor) and item.dtype == torch.bool]
    if not masks or (len(items) == 1 and _is_number(value)) or any(rest):
        return func(*args, **kwargs)
    mask = masks[0]
    fits = mask.shape == x.shape[: mask.dim()]  # else the function itself raises its error
    if (
        len(items) == 1
        and fits
        and isinstance(value, Tensor)
        and value.dim() <= x.dim() - mask.dim()
    ):
        return _chosen(
            func, x, mask.reshape(*mask.shape, *(1 for _ in range(x.dim() - mask.dim()))), value
        )
    if all(map(known, masks)):
        places = [
            item.nonzero(as_tuple=True) if any(item is m for m in masks) else (item,)
            for item in items
        ]
        return func(x, tuple(place for found in places for place in found), value)
    if _is_number(value):
        return func(*args, **kwargs)
    raise NotTraceable("a tensor of several numbers is written under a mask: use torch.where")


def _chosen(func: Callable[..., Any], x: Tensor, mask: Tensor, value: Tensor) -> Tensor | None:
    made = torch.where(mask, value.to(x.dtype), x)
    if func in (Tensor.index_put, torch.index_put):
        return made
    x.copy_(made)
    return None if func is Tensor.__setitem__ else x


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1
