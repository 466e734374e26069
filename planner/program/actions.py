"""The actions of a step: which body of instructions a rank runs for which microbatch, in order.

An action is written as torch writes a pipeline's: the stage, the body, the microbatch (`2F0`).
`parse_actions` and `show_actions` are inverses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cost_models.errors import BadValue

__all__ = ["STEP", "WHOLE_STEP", "Action", "few", "parse_actions", "runs", "show_actions"]

#: The body of a step without microbatches: everything from the first forward op to the update.
STEP = "STEP"

#: The letters of the bodies of pipeline stages.
_OF_SCHEDULES = ("F", "B", "I", "W")

_ACTION = re.compile(r"(\d+)([A-Z_]+)(\d+)")


@dataclass(frozen=True, slots=True)
class Action:
    """One run of `body`, for one microbatch, by the ranks of one pipeline stage."""

    body: str
    microbatch: int = 0
    stage: int = 0

    def __str__(self) -> str:
        return f"{self.stage}{self.body}{self.microbatch}"


#: The actions of a step without microbatches.
WHOLE_STEP = (Action(STEP),)


def show_actions(actions: Sequence[Action]) -> str:
    """The actions as text, in order: `0FIRST0 0MIDDLE1 0LAST2`."""
    return " ".join(map(str, actions))


def parse_actions(text: str) -> tuple[Action, ...]:
    """The actions of a text. Raises BadValue if a word is none."""
    return tuple(map(_parsed, text.split()))


def _parsed(word: str) -> Action:
    match = _ACTION.fullmatch(word)
    if match is None:
        raise BadValue(
            f"{word!r} is no action: write stage, body and microbatch, such as 2F0 or 0MIDDLE1"
        )
    stage, body, microbatch = match.groups()
    return Action(body, int(microbatch), int(stage))


def runs(actions: Sequence[Action]) -> Iterator[tuple[Action, ...]]:
    """The actions in runs of the same body: all actions of a run do the same."""
    for _, alike in itertools.groupby(actions, lambda action: (action.stage, action.body)):
        yield tuple(alike)


def few(actions: Sequence[Action]) -> tuple[Action, ...]:
    """The actions without the third and later ones of a run: what holds for two that follow each
    other holds for all of the run. Of a pipeline stage, whose bodies take turns, those of the first
    two microbatches and of the last."""
    if not any(action.body.partition("_")[0] in _OF_SCHEDULES for action in actions):
        return tuple(action for run in runs(actions) for action in run[:2])
    last = max(action.microbatch for action in actions)
    return tuple(action for action in actions if action.microbatch in (0, 1, last))
