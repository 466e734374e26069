"""Whether a step leaves a model's Python state unchanged; and if not, whether the next step still
computes the same.

Changes made by the first trace -> nothing, or a refusal by name. A cache, a log, or a count that
nothing reads does not change what is computed: two steps are recorded and compared (`fold.py`). A
number that keeps changing is then replaced by one that reports every use (`watched.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cost_models.errors import NotTraceable
from planner.state.snapshot import ABSENT, Change, Snapshot
from planner.state.watched import Watched, plain

__all__ = ["Steps", "check_carried"]

#: At most this many changes are tried one by one, to name the one that matters.
_TRIED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The model under test: its name, and a function that records a step of it in its present
    state and returns a digest."""

    name: str
    module: nn.Module
    loss: Any
    record: Callable[[], str]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.module, self.loss)


def check_carried(steps: Steps, before: Snapshot, changed: Sequence[Change]) -> None:
    """Raises NotTraceable, naming the change, if what a first step `changed` makes the next step
    differ. Restores everything."""
    for change in changed:
        if change.holder.put is None or change.holder.chance:
            raise _drawn(steps, change)
    try:
        before.restore()
        first = steps.record()
        middle = steps.snapshot()
        if _differs(steps, first):
            raise _refusal(steps, _culprits(steps, before, changed, first))
        again = middle.changes()
        growing = [change for change in again if change.resizes]
        if growing:
            raise NotTraceable(
                f"model {steps.name!r}: {growing[0].name!r} grows or shrinks with every step, "
                "but a plan runs the same step each time; empty it in forward, or keep it "
                "outside the model"
            )
        counts = [
            change
            for change in again
            if _is_number(change.new) and change.holder.put is not _no_place
        ]
        middle.restore()
        asked = _asked(steps, counts, first)
        if asked:
            raise _refusal(steps, asked)
    finally:
        before.restore()


def _differs(steps: Steps, first: str) -> bool:
    """Whether the next step differs from the first, or fails."""
    try:
        return steps.record() != first
    except Exception:  # noqa: BLE001 - the first step did not fail: what the step left behind is why
        return True


def _asked(steps: Steps, counts: Sequence[Change], first: str) -> list[Change]:
    """The changes of numbers, among those that keep changing, that a step uses other than to count
    on from them."""
    watched = []
    for change in counts:
        watched.append(Watched(change.old))
        change.holder.put({**change.holder.get(), change.key: watched[-1]})  # type: ignore[misc]
    if watched and _differs(steps, first):
        return list(counts)
    return [change for change, one in zip(counts, watched, strict=True) if one.asked]


def _culprits(
    steps: Steps, before: Snapshot, changed: Sequence[Change], first: str
) -> list[Change]:
    """The changes that each alone make the step differ; all of them if none does."""
    found = []
    for change in changed[:_TRIED]:
        before.restore()
        now = change.holder.get()
        if change.new is ABSENT:
            now.pop(change.key, None)
        else:
            now[change.key] = change.new
        assert change.holder.put is not None
        change.holder.put(now)
        if _differs(steps, first):
            found.append(change)
    return found or list(changed)


def _no_place(_: Any) -> None:
    """A `put` that does nothing, for changes without a holder."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _drawn(steps: Steps, change: Change) -> NotTraceable:
    what = "draws random numbers from" if change.holder.chance else "takes the next of"
    return NotTraceable(
        f"model {steps.name!r}: a step {what} {change.name!r} in Python, and a plan would repeat "
        "the first one in every step: draw with torch (torch.rand, torch.bernoulli), or make it "
        "an input of the batch"
    )


def _refusal(steps: Steps, changed: Sequence[Change]) -> NotTraceable:
    """The error that names what a step changes and the next one uses, and where to keep it
    instead."""
    tensors = [change for change in changed if isinstance(change.new, Tensor)]
    first = (tensors or list(changed))[0]
    name = first.name
    said = f"model {steps.name!r} keeps {name!r} from one step to the next, outside its parameters and buffers"
    if isinstance(first.new, Tensor):
        shape = ", ".join(map(str, first.new.shape)) or "()"
        return NotTraceable(
            f"{said}: register it, self.register_buffer({name.rpartition('.')[2]!r}, "
            f"torch.zeros({shape})), and set it to a detached tensor; or make it an input of "
            "the batch"
        )
    shown = (_short(first.old), _short(first.new))
    was = " ({}, then {})".format(*shown) if shown[0] != shown[1] else ""
    others = [f"{change.name!r}" for change in changed if change is not first]
    also = f", as {', '.join(others[:3])}" if others else ""
    return NotTraceable(
        f"{said}{was}{also}: make it a buffer that the step reads as a tensor, "
        "self.register_buffer(...), or an input of the batch"
    )


def _short(value: Any) -> str:
    text = repr(plain(value))
    return text if len(text) <= 40 and " object at " not in text else f"a {type(value).__name__}"
