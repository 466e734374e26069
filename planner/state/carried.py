"""Whether a step leaves Python's part of a model as it finds it; and if not, whether the next step
computes the same all the same.

What the first trace changed -> nothing, or a refusal by name. A cache, a log of what was seen, or a
count that nothing reads changes nothing that is computed: two steps are recorded and compared
(`fold.py`). A number that goes on changing is then held as one that tells of every use.
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

#: So many changes are tried one by one to name the one that counts.
_TRIED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What is looked at: a model by its name, and a way to record a step of it as it now stands,
    as a digest."""

    name: str
    module: nn.Module
    loss: Any
    record: Callable[[], str]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.module, self.loss)


def check_carried(steps: Steps, before: Snapshot, changed: Sequence[Change]) -> None:
    """Raises NotTraceable, naming what changed, where what a first step `changed` makes the next
    one another. All is restored."""
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
    """Whether the next step is another than the first, or fails."""
    try:
        return steps.record() != first
    except Exception:  # noqa: BLE001 - the first step did not fail: what the step left behind is why
        return True


def _asked(steps: Steps, counts: Sequence[Change], first: str) -> list[Change]:
    """Those of numbers that go on changing that a step uses, otherwise than to count them on."""
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
    """Those of the changes each of which alone makes another step; all where none does."""
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
    """Of no holder."""


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
    """What a step changes and the next one uses, and where to keep it instead."""
    tensors = [change for change in changed if isinstance(change.new, Tensor)]
    first = (tensors or list(changed))[0]
    name = first.name
    said = f"model {steps.name!r} keeps {name!r} from one step to the next, outside its parameters and buffers"
    if isinstance(first.new, Tensor):
        shape = ", ".join(map(str, first.new.shape)) or "()"
        return NotTraceable(
            f"{said}: register it, self.register_buffer({name.rpartition('.')[2]!r}, torch.zeros({shape})), and set it to a "
            "detached tensor; or make it an input of the batch"
        )
    shown = (_short(first.old), _short(first.new))
    was = " ({}, then {})".format(*shown) if shown[0] != shown[1] else ""
    others = [f"{change.name!r}" for change in changed if change is not first]
    also = f", as {', '.join(others[:3])}" if others else ""
    return NotTraceable(
        f"{said}{was}{also}: make it a buffer that the step reads as a tensor, self.register_buffer(...), or an input of the batch"
    )


def _short(value: Any) -> str:
    text = repr(plain(value))
    return text if len(text) <= 40 and " object at " not in text else f"a {type(value).__name__}"
