"""Compiled kernels: `torch._inductor`'s entry for a graph of ops.

`torch.compile` is public, but looks at Python frames and guards at every call, which takes 10 us on a
CPU. A fused op has one call with fixed shapes: its graph goes to the same compiler directly, and a
call of the kernel takes 4 us.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["compiled_kernel", "missing_compiler"]


def compiled_kernel(
    function: Callable[..., tuple[Tensor, ...]], operands: Sequence[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """The function as compiled kernels, for operands of the shapes, strides, dtypes and device of
    these."""
    with torch.no_grad(), warnings.catch_warnings():
        # Of torch about itself: its compiler imports what it deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch import _inductor

        graph = make_fx(function, tracing_mode="fake")(*operands)
        compiled: Callable[..., Sequence[Tensor]] = _inductor.compile(graph, list(operands))
    return compiled


def missing_compiler(device: torch.device) -> str:
    """What a device's kernels cannot be compiled without, on this machine; empty if all is
    there."""
    if device.type == "cuda":
        return "" if find_spec("triton") else "triton (pip install triton)"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler (g++ or clang++)"
    return ""
