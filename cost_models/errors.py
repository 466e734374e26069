"""The error tree. Everything a user can cause is a `UserError`; our own bugs are `assert`s.

UserError(ValueError)        printed as one line, exit code 2
├── UnknownName              a model, hardware, option or pin that does not exist
├── BadValue                 a value out of its range or of the wrong type
├── BadHardware              a hardware file with a missing, negative or unknown key
├── BadPlan                  a plan file: truncated, of another version, for another graph
├── DoesNotFit               no plan fits the memory
├── NoPlan                   the pins, or the batch, leave no plan at all
├── NotTraceable             the model cannot become one static graph
├── OutOfRange(IndexError)   an index, of a batch or computed in a step, is out of range
└── RunFailed                a process of a run failed, or could not start

FailedCheck(Exception)       printed as one line, exit code 4: `--check` found a fault of ours
"""

from __future__ import annotations

__all__ = [
    "BadHardware",
    "BadPlan",
    "BadValue",
    "DoesNotFit",
    "FailedCheck",
    "NoPlan",
    "NotTraceable",
    "OutOfRange",
    "RunFailed",
    "UnknownName",
    "UserError",
    "unknown_name",
]


class UserError(ValueError):
    """A mistake of the user's, or a limit of their hardware. The message says what, the actual
    values, and what to change."""

    @property
    def kind(self) -> str:
        """The name of the error in `{"error": {"kind": ...}}`."""
        return type(self).__name__


class UnknownName(UserError):
    pass


class BadValue(UserError):
    pass


class BadHardware(UserError):
    pass


class BadPlan(UserError):
    pass


class DoesNotFit(UserError):
    pass


class NoPlan(UserError):
    pass


class NotTraceable(UserError):
    pass


class OutOfRange(UserError, IndexError):
    """An index out of range: also an `IndexError`, as in plain torch."""


class RunFailed(UserError):
    pass


class FailedCheck(Exception):
    """A graph, problem or program that breaks an invariant. This is our fault, so it is no
    `UserError`: code that tries another way if a model cannot be planned in one must not hide
    it."""

    @property
    def kind(self) -> str:
        """As in `UserError`."""
        return type(self).__name__


#: If there are more than `_MOST` names, only the `_SHOWN` nearest are listed: Hugging Face's model
#: types would fill twelve kilobytes.
_MOST, _SHOWN = 100, 8


def unknown_name(what: str, name: str, known: list[str] | tuple[str, ...]) -> UnknownName:
    """The error for `name` not among `known`, with the nearest known name first."""
    import difflib

    near = difflib.get_close_matches(
        name, known, n=_SHOWN, cutoff=0.0 if len(known) > _MOST else 0.6
    )
    likely = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {likely[0]!r}? " if likely else ""
    if len(known) > _MOST:
        return UnknownName(
            f"unknown {what} {name!r}: {hint}nearest of {len(known)}: {', '.join(near)}"
        )
    return UnknownName(f"unknown {what} {name!r}: {hint}known: {', '.join(sorted(known))}")
