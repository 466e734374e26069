"""Builds the workload under fake tensors or, if its builder needs real ones, for real, and then
replaces its tensors by fake ones.

A builder that reads values (an initialisation that draws until all is in range, a permutation or a
lazy layer's first call, a table made by numpy) cannot run on fake tensors. Then the model is built
for real, once, as in every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from cost_models.errors import UserError
from planner.state.chance import seed_all
from planner.state.known import LARGEST, Known
from planner.torch_private.fake_tensors import FakeTensorMode
from planner.torch_private.modes import without_modes
from planner.workload.workload import Workload

__all__ = ["FAILURES", "built", "really_built", "worth_building"]

#: A model of more elements than this is not built for real only to learn its buffers.
_LARGEST = 1 << 28

#: Exceptions that user code may raise because it runs under fake tensors.
FAILURES = (
    UserError,
    RuntimeError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    AssertionError,
    ArithmeticError,
)


def built(build: Callable[[], Workload], mode: FakeTensorMode, known: Known, seed: int) -> Workload:
    """The workload that `build` returns, with fake tensors; to be called under the mode. Raises
    whatever `build` raises."""
    try:
        return build()
    except FAILURES as fake:
        try:
            return really_built(build, mode, known, seed)
        except UserError:
            raise
        except FAILURES:
            raise fake from None


def really_built(
    build: Callable[[], Workload], mode: FakeTensorMode, known: Known, seed: int
) -> Workload:
    """The workload as a run under the seed begins with it, its tensors then replaced by fake ones.
    The values of buffers and of plain attributes stay known."""
    with without_modes():
        seed_all(seed)
        real = build()
    return _Fakes(mode, known).workload(real)


def worth_building(workload: Workload, known: Known) -> bool:
    """Whether a step that could not be traced might be if the values of buffers were known that
    come from random numbers or from data: edges of a graph, a permutation, a mask."""
    state = workload.state()
    return (
        not known.names >= set(state.kept)
        and sum(t.numel() for t in state.tensors.values()) <= _LARGEST
    )


class _Fakes:
    """Replaces real tensors by fake ones, each once. Tensors in plain attributes are constants, and
    stay known."""

    def __init__(self, mode: FakeTensorMode, known: Known) -> None:
        self.mode, self.known = mode, known
        self.made: dict[int, Tensor] = {}

    def workload(self, real: Workload) -> Workload:
        batch = tuple(map(self.tensor, real.batch))
        for module in (real.module, real.loss):
            for part in module.modules() if isinstance(module, nn.Module) else ():
                for name, value in vars(part).items():
                    vars(part)[name] = self.value(value)
        return replace(real, batch=batch)

    def value(self, value: Any) -> Any:
        """The value with fake tensors in it; lists and dicts remain the same objects."""
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, list):
            value[:] = [self.value(item) for item in value]
        elif isinstance(value, dict):
            value.update({key: self.value(item) for key, item in value.items()})
        elif type(value) is tuple:
            return tuple(self.value(item) for item in value)
        return value

    def tensor(self, real: Tensor) -> Tensor:
        if id(real) not in self.made:
            fake = self.mode.from_tensor(real)
            self.made[id(real)] = fake
            if real.numel() <= LARGEST and not isinstance(real, nn.Parameter):
                with without_modes():
                    self.known.values[fake] = real.detach()
        return self.made[id(real)]
