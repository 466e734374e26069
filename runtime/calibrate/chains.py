"""The fused chains that calibration measures: a gate, and a residual sum with its norm, compiled as
the executor compiles them. Their seconds by bytes are those of any chain."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from planner.fusion.compose import composed
from planner.graph.fused import FUSED, Body, Member
from planner.graph.graph import Ref
from planner.torch_private.compiling import missing_compiler
from runtime.calibrate.case import Arguments, Case, on_a_gpu, random, several

__all__ = ["chains"]


def chains(device: torch.device) -> Iterator[Case]:
    """Chains by rows and width; none if this machine cannot compile them."""
    if missing_compiler(device):
        return
    for rows, width in ((64, 64), (256, 256), (1024, 1024), *on_a_gpu(device, (16384, 4096))):
        shared = rows == 1024
        yield Case(FUSED, partial(_gate, device, rows, width), shared=shared)
        yield Case(FUSED, partial(_sum_and_norm, device, rows, width), shared=shared)


def _gate(device: torch.device, rows: int, width: int) -> Arguments:
    """SwiGLU's gate: silu(x) y."""
    shape = (rows, width)
    members = (
        _member("aten.silu.default", (Ref(0),), (2,), (shape,)),
        _member("aten.mul.Tensor", (Ref(2), Ref(1)), (3,), (shape,)),
    )
    return *several(device, 2, *shape), _body((shape, shape), members, (3,))


def _sum_and_norm(device: torch.device, rows: int, width: int) -> Arguments:
    """x + y and its norm by the root of the mean square; both are read outside."""
    shape, norm = (rows, width), (Ref(3), Ref(2), 1, width, 1e-5)
    members = (
        _member("aten.add.Tensor", (Ref(0), Ref(1)), (3,), (shape,)),
        _member("shardwright.rms_norm", norm, (4, 5), (shape, (rows, 1))),
    )
    body = _body((shape, shape, (width,)), members, (3, 4, 5))
    return *several(device, 2, *shape), random(device, width), body


def _member(
    op: str, args: tuple[Any, ...], results: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]
) -> Member:
    dtypes = ("float32",) * len(shapes)
    return Member(op=op, args=args, kwargs=(), results=results, shapes=shapes, dtypes=dtypes)


def _body(
    shapes: tuple[tuple[int, ...], ...], members: tuple[Member, ...], results: tuple[int, ...]
) -> Body:
    operands = tuple((shape, "float32") for shape in shapes)
    body = Body(operands=operands, members=members, results=results)
    composed(body)  # its rule, which rows are counted by, is registered with this import
    return body
