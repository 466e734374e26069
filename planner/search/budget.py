"""The time that a search may take, and the share of each of its parts.

One `Budget` is shared by all parts of a search: its meshes and objectives, making plans fit, the
baselines, a larger vocabulary, the search for what would fit. The clock is an argument, so that a
test can set the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cost_models.errors import BadValue

__all__ = ["TIME_LIMIT", "Budget"]

#: Seconds that a search may take by default.
TIME_LIMIT = 60.0

#: Seconds reserved for every part that has not begun yet.
_EACH = 2.0


@dataclass(frozen=True, slots=True)
class Budget:
    """A time limit: `limit` seconds from `began` on, by `clock`."""

    limit: float
    clock: Callable[[], float]
    began: float

    @staticmethod
    def start(limit: float = TIME_LIMIT, clock: Callable[[], float] = time.perf_counter) -> Budget:
        """A budget that begins now. Raises BadValue if `limit` is not positive."""
        if not limit > 0:
            raise BadValue(f"a time limit of {limit:g} s: give a positive number of seconds")
        return Budget(limit, clock, clock())

    @staticmethod
    def unlimited() -> Budget:
        """A budget that is never over."""
        return Budget(math.inf, time.perf_counter, time.perf_counter())

    @property
    def left(self) -> float:
        """Seconds left, 0 after the end."""
        return max(0.0, self.began + self.limit - self.clock())

    def over(self) -> bool:
        """Whether the time is up."""
        return self.left <= 0.0

    def until(self, share: float) -> Budget:
        """The same budget, but over after a share of its time."""
        return Budget(self.limit * share, self.clock, self.began)

    def rest(self) -> Budget:
        """A new budget of the time that is left, which begins now."""
        return Budget(self.left, self.clock, self.clock())

    def one_of(self, parts: int) -> Budget:
        """The budget of the next of `parts` similar parts: the time left less a reserve for each of
        the others, or an even share if that is more. The others get what it leaves."""
        left = self.left
        return Budget(max(left / parts, left - _EACH * (parts - 1)), self.clock, self.clock())
