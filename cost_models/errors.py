"""The error tree. Everything a user can cause is a `UserError`; our own bugs are `assert`s.

UserError(ValueError)        printed as one line, exit code 2 ├── UnknownName              a model,
hardware, option or pin that does not exist ├── BadValue                 a value out of its range or
of the wrong type ├── BadHardware              a hardware file with a missing, negative or unknown
key ├── BadPlan                  a plan file: truncated, of another version, for another graph ├──
DoesNotFit               no plan fits the memory ├── NoPlan                   the pins, or the
batch, leave no plan at all ├── NotTraceable             the model cannot become one static graph
├── OutOfRange(IndexError)   an index of a batch, or one that a step computed, points past what it
indexes └── RunFailed                a process of a run failed, or could not start

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
    """A mistake of the user's, or a limit of theirs: the message says what, the values, and what
    to change."""

    @property
    def kind(self) -> str:
        """The name of the error as it stands in `{"error": {"kind": ...}}`."""
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
    """An `IndexError` too, as it is in plain torch."""


class RunFailed(UserError):
    pass


class FailedCheck(Exception):
    """A graph, problem or program that is not as all are to be. It is no mistake of the user's
    and no `UserError`: what falls back on another way when a model cannot be planned in one must
    not hide it."""

    @property
    def kind(self) -> str:
        """As of `UserError`."""
        return type(self).__name__


#: Of more names than `_MOST` only the `_SHOWN` nearest are listed: the model types of Hugging Face
#: are twelve kilobytes.
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
