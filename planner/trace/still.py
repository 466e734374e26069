"""Modules that are moved to where they are while they run (`self.experts.to(x.device)`) stay as
they are.

torch moves a module by putting other tensors in its parameters' places, which fake tensors do not
bear, even if they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn

__all__ = ["still"]


@contextmanager
def still() -> Iterator[None]:
    """Within it `module.to(...)` does nothing if each of the module's tensors is there and of
    that dtype already."""
    ordinary = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if all(t.to(*args, **kwargs) is t for t in (*self.parameters(), *self.buffers())):
            return self
        return ordinary(self, *args, **kwargs)

    with patch.object(nn.Module, "to", to):
        yield
