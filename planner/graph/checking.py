"""Whether each pass's output is checked where it is made, which a person asks for (`--check`) and
tests do.

Name of a pass, faults -> nothing, or one line that names the pass and the node or instruction. A
context says whether, since passes lie deep in the search and most callers are not to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from cost_models.errors import FailedCheck

__all__ = ["checked", "checking", "is_checking", "passes_words"]

#: How often each pass was checked, None where nobody asked.
_passes: ContextVar[Counter[str] | None] = ContextVar("passes", default=None)


@contextmanager
def checking(wanted: bool = True) -> Iterator[Counter[str]]:
    """Within it, what each pass makes is checked, if `wanted`; gives how often each pass was.
    Processes forked within it check too, and count for themselves."""
    counts: Counter[str] = Counter()
    token = _passes.set(counts if wanted else None)
    try:
        yield counts
    finally:
        _passes.reset(token)


def is_checking() -> bool:
    """Whether it is asked for: for what only a check needs."""
    return _passes.get() is not None


def checked(name: str, faults: Callable[[], Iterable[str]]) -> None:
    """Raises `FailedCheck` with the first of the `faults` of what the pass `name` made, if that
    is asked for."""
    counts = _passes.get()
    if counts is None:
        return
    counts[name] += 1
    for fault in faults():
        raise FailedCheck(f"after {name}: {fault}")


def passes_words(counts: Counter[str]) -> str:
    """`checked: graph 1, problem 14, early 12; no faults`."""
    return f"checked: {', '.join(f'{name} {count:,}' for name, count in counts.items())}; no faults"
