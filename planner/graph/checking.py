"""Checks the output of each pass as soon as it is made, if the user asks for it (`--check`) or a
test does.

Name of a pass, faults -> nothing, or one line that names the pass and the node or instruction. A
context variable turns checks on: passes lie deep in the search, and most callers need not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from cost_models.errors import FailedCheck

__all__ = ["checked", "checking", "is_checking", "passes_words"]

#: How often each pass was checked; None if checks are off.
_passes: ContextVar[Counter[str] | None] = ContextVar("passes", default=None)


@contextmanager
def checking(wanted: bool = True) -> Iterator[Counter[str]]:
    """A context in which every pass's output is checked, if `wanted`; yields the checks per pass.
    Processes forked within it check too, and keep counts of their own."""
    counts: Counter[str] = Counter()
    token = _passes.set(counts if wanted else None)
    try:
        yield counts
    finally:
        _passes.reset(token)


def is_checking() -> bool:
    """Whether checks are on. Callers skip work that only a check needs."""
    return _passes.get() is not None


def checked(name: str, faults: Callable[[], Iterable[str]]) -> None:
    """Raises `FailedCheck` with the first of the `faults` in the output of pass `name`, if checks
    are on."""
    counts = _passes.get()
    if counts is None:
        return
    counts[name] += 1
    for fault in faults():
        raise FailedCheck(f"after {name}: {fault}")


def passes_words(counts: Counter[str]) -> str:
    """`checked: graph 1, problem 14, early 12; no faults`."""
    return f"checked: {', '.join(f'{name} {count:,}' for name, count in counts.items())}; no faults"
