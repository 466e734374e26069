"""One call that calibration measures, and the row that it becomes: its work as the planner's own
rules count it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cost_models.device import OpRow
from cost_models.memory import dtype_bytes
from planner.graph.fused import FUSED
from planner.graph.graph import Ref
from planner.kernels.formats import tensors_in
from planner.program.operators import callable_of
from planner.rules import RULES, Call, OpCost
from runtime.fused import Fused, Kernels

__all__ = ["Arguments", "Case", "ids", "on_a_gpu", "random", "row_of", "several"]


#: The arguments of one call.
Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one shape: `make()` returns new arguments; `shared` cases are measured again while
    other ranks compute too."""

    op: str
    make: Callable[[], Arguments]
    kwargs: tuple[tuple[str, Any], ...] = ()
    shared: bool = False

    def call(self) -> Callable[..., Any]:
        """The callable that the executor uses for the op."""
        if self.op == FUSED:
            return _compiled
        function, kwargs = callable_of(self.op), dict(self.kwargs)
        return (lambda *arguments: function(*arguments, **kwargs)) if kwargs else function


def row_of(case: Case, arguments: Arguments, seconds: float) -> OpRow:
    """The measured row, with the work as counted by the op's rule, as the planner will look it
    up."""
    results = callable_of(case.op)(*arguments, **dict(case.kwargs))
    call = Call(
        op=case.op,
        args=_refs(arguments),
        kwargs=case.kwargs,
        operands=_shapes(arguments),
        results=_shapes(results),
    )
    if case.op == "shardwright.lstm_backward":
        call = _with_reserve(call)
    signature = RULES[case.op].signature(call)
    counted = signature.cost or (
        lambda sizes: OpCost(flops=0.0, elements=signature.elements(sizes))
    )
    cost = counted(signature.sizes)
    dtype = next(
        str(t.dtype).removeprefix("torch.") for t in tensors_in(results) if t.is_floating_point()
    )
    return OpRow(
        op=case.op,
        kind=signature.kind,
        dtype=dtype,
        flops=max(cost.flops, 1.0),
        nbytes=max(cost.elements, 1.0) * dtype_bytes(dtype),
        gemm=cost.gemm or (1, 1, 1, 1),
        steps=cost.steps,
        seconds=seconds,
    )


#: The compiled chains, each of which is called many times.
_KERNELS: Kernels = {}


def _compiled(*arguments: Any) -> Any:
    """A fused op as the executor runs it; the last argument is its body."""
    *operands, body = arguments
    return _KERNELS.setdefault(body, Fused(body))(*operands)


def _with_reserve(call: Call) -> Call:
    """The call with its opaque reserve as [T, B, 5H], the shape that rules expect."""
    t, b, hidden = call.operands[-3]
    return replace(call, operands=(*call.operands[:-1], (t, b, 5 * hidden)))


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(t.shape) for t in tensors_in(value))


def _refs(arguments: Arguments) -> Arguments:
    counter = iter(range(1000))

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Ref(next(counter))
        return tuple(map(walk, value)) if isinstance(value, tuple | list) else value

    return tuple(map(walk, arguments))


def random(device: torch.device, *shape: int) -> Tensor:
    """A tensor of random float32."""
    return torch.randn(shape, device=device)


def several(device: torch.device, count: int, *shape: int) -> Arguments:
    """`count` random tensors of one shape."""
    return tuple(random(device, *shape) for _ in range(count))


def on_a_gpu(device: torch.device, *sizes: Any) -> tuple[Any, ...]:
    """Sizes that are only measured on a GPU: they exceed its caches, and take long on a CPU."""
    return sizes if device.type == "cuda" else ()


def ids(device: torch.device, rows: int, tokens: int) -> Tensor:
    """Random row numbers below `rows`, one for each token."""
    return torch.randint(0, rows, (tokens,), device=device)
