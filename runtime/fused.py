"""Fused ops as compiled kernels, one for each body and the strides of its operands.

A kernel is compiled when its strides are first met. A run meets all of them in `Executor.warm`,
before the first step that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import RunFailed
from planner.graph.fused import FUSED, Body
from planner.program.operators import run_body
from planner.program.program import Compute, Program
from planner.torch_private.compiling import compiled_kernel, missing_compiler

__all__ = ["Fused", "Kernels", "check_compiler", "share_memory"]

#: The fused ops of a program by body: like layers share one.
Kernels = dict[Body, "Fused"]


def check_compiler(program: Program, device: torch.device) -> None:
    """Raises RunFailed if the program has fused ops and this machine cannot compile them."""
    if not any(isinstance(i, Compute) and i.op == FUSED for i in program.written):
        return
    missing = missing_compiler(device)
    if missing:
        raise RunFailed(
            f"the plan runs compiled kernels (--compile), which need {missing} on this machine: "
            "install it, or plan again without --compile"
        )


class Fused:
    """A fused op: called like any other op, with its operands in order. `by_strides` are its kernels
    by the strides of the operands."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.by_strides: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *operands: Tensor) -> Any:
        key = tuple([operand.stride() for operand in operands])
        kernel = self.by_strides.get(key)
        if kernel is None:
            kernel = self.by_strides[key] = self._compiled(operands)
        return kernel(*operands)

    def _compiled(self, operands: Sequence[Tensor]) -> Callable[..., Any]:
        body = self.body

        def every(*given: Tensor) -> tuple[Tensor, ...]:
            made = run_body(body, *given)
            return tuple(map(_stored, made if isinstance(made, tuple) else (made,)))

        kernel = compiled_kernel(every, [operand.detach() for operand in operands])
        if share_memory(kernel(*operands), operands):
            # A compiler may give one tensor for two equal results. A program's values are apart.
            return _apart(kernel)
        return kernel if len(body.results) > 1 else _single(kernel)


def _stored(result: Tensor) -> Tensor:
    """A result as a kernel writes it. A compiled CPU kernel stores bools one by one, in 4 ns or more
    an element (torch 2.13); as bytes, which have the same bits, it takes 0.6 (one core of an EPYC
    with AVX-512, float32, 2026-11-28)."""
    if result.dtype != torch.bool or result.device.type != "cpu":
        return result
    return result.to(torch.float32).to(torch.uint8).view(torch.bool)


def _single(kernel: Callable[..., Sequence[Tensor]]) -> Callable[..., Tensor]:
    def call(*operands: Tensor) -> Tensor:
        (made,) = kernel(*operands)
        return made

    return call


def _apart(kernel: Callable[..., Sequence[Tensor]]) -> Callable[..., Any]:
    def call(*operands: Tensor) -> Any:
        made = [result.clone() for result in kernel(*operands)]
        return made if len(made) > 1 else made[0]

    return call


def share_memory(results: Sequence[Tensor], operands: Sequence[Tensor]) -> bool:
    """Whether a result shares memory with another, or with an operand."""
    made = [t.untyped_storage().data_ptr() for t in results if t.numel()]
    given = {t.untyped_storage().data_ptr() for t in operands}
    return len(set(made)) < len(made) or not given.isdisjoint(made)
