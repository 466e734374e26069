"""Model in, plan out. `planner.plan(model, batch, loss, cluster=...)` plans the user's module: see
docs/api.md.

The API is imported when it is first used: the command line begins without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.api import Planned, plan

__all__ = ["Planned", "plan"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from planner import api

    return getattr(api, name)
