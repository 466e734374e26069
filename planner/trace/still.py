"""Makes `module.to(...)` during a step (`self.experts.to(x.device)`) do nothing if the module is
already there.

torch moves a module by replacing its parameters' tensors, which fails for fake tensors, even if
nothing changes.
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
    """A context in which `module.to(...)` does nothing if each of the module's tensors already has
    that device and dtype."""
    ordinary = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if all(t.to(*args, **kwargs) is t for t in (*self.parameters(), *self.buffers())):
            return self
        return ordinary(self, *args, **kwargs)

    with patch.object(nn.Module, "to", to):
        yield
