"""The verdict of a comparison with one process: one word, the values that are furthest apart, and
an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "EQUAL", "EXIT_CODES", "MOST_LEFT_OUT", "NO_PROOF", "ROUNDING", "WRONG", "Apart", "apart",
    "judge", "largest", "relative_error", "worst_of",
]  # fmt: skip

EQUAL = "equal"  # to the last bit
ROUNDING = "equal to rounding"
WRONG = "WRONG"
NO_PROOF = "no proof"

#: The exit code of a process that verifies; 2 is for a mistake of the user's.
EXIT_CODES = {EQUAL: 0, ROUNDING: 0, WRONG: 1, NO_PROOF: 3}

#: If rounding may explain more than this share of all elements, the rest proves nothing.
MOST_LEFT_OUT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """The element of a tensor (named by `what` and `name`) that is furthest from the one-process
    run's, and the relative error of the tensor."""

    what: str
    name: str
    index: tuple[int, ...]
    ours: float
    theirs: float
    error: float


def judge(
    worst: Sequence[Apart], *, limit: float, same: bool, left_out: float, vanished: bool
) -> str:
    """The verdict. `same`: no number differs. `left_out`: the share of the parameters' elements
    that rounding may explain. `vanished`: every gradient is only rounding, so nothing was
    compared."""
    if not all(map(_is_number, (one.theirs for one in worst))) or vanished:
        return NO_PROOF  # the training itself gives NaN
    if any(one.error > limit for one in worst):
        return WRONG
    if left_out > MOST_LEFT_OUT:
        return NO_PROOF
    return EQUAL if same else ROUNDING


def _is_number(value: float) -> bool:
    return abs(value) <= sys.float_info.max


def worst_of(
    what: str,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    floors: Mapping[str, float],
    shown: Mapping[str, Tensor] | None = None,
) -> Apart | None:
    """The tensor with the largest relative error; if its elements are below its floor, the error is
    relative to that. `shown` has the values to report, if they are not the values compared."""
    found = [
        apart(what, name, tensor, theirs[name], floors.get(name, 0.0))
        for name, tensor in ours.items()
    ]
    worst = max(found, key=lambda one: one.error, default=None)
    if worst is None or shown is None or not shown[worst.name].numel():
        return worst
    return Apart(
        what=what,
        name=worst.name,
        index=worst.index,
        ours=float(shown[worst.name][worst.index]),
        theirs=worst.theirs,
        error=worst.error,
    )


def apart(what: str, name: str, ours: Tensor, theirs: Tensor, floor: float) -> Apart:
    """The element of one tensor that is furthest off; NaN is furthest of all."""
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    if not ours.numel():
        return Apart(what=what, name=name, index=(), ours=0.0, theirs=0.0, error=0.0)
    at = torch.unravel_index((ours - theirs).abs().nan_to_num(nan=torch.inf).argmax(), ours.shape)
    index = tuple(int(i) for i in at)
    return Apart(
        what=what,
        name=name,
        index=index,
        ours=float(ours[index]),
        theirs=float(theirs[index]),
        error=relative_error(ours, theirs, floor),
    )


def relative_error(ours: Tensor, theirs: Tensor, floor: float) -> float:
    """The largest |ours - theirs| over the largest |theirs|, or over the floor if that is larger;
    infinite for NaN."""
    error = largest(ours.double() - theirs.double()) / max(
        largest(theirs), floor, sys.float_info.min
    )
    return float("inf") if error != error else error


def largest(tensor: Tensor) -> float:
    """The largest |element|; 0 for an empty tensor."""
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0
