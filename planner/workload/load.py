"""A model's name and its sizes -> `Workload`, cast to the dtype that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from cost_models.errors import unknown_name
from planner.models import MODELS, ModelSpec
from planner.state.hung import check_hooks
from planner.state.state import cast_constants, trained_parts
from planner.workload.precision import DTYPES
from planner.workload.sources import Sizes, source_of
from planner.workload.workload import Workload

__all__ = ["known_models", "load_workload", "resolve_options"]


def known_models() -> Mapping[str, ModelSpec]:
    """The built-in models by name: each with its description, its options and their defaults,
    and its presets."""
    return dict(MODELS)


def resolve_options(
    spec: str, *, batch: int | None, seq: int | None, settings: Mapping[str, str], num_devices: int
) -> Mapping[str, Any]:
    """All sizes that `load_workload` would build with, checked, without building anything.

    Of the user's own `module:function` only the sizes that were given are known before it is
    called. Raises `UnknownName` for a model or an option that does not exist, `BadValue` for a
    value out of range.
    """
    sizes = Sizes(batch=batch, seq=seq, settings=settings, num_devices=num_devices)
    return source_of(spec).options(spec, sizes)


def load_workload(
    spec: str,
    *,
    batch: int | None,
    seq: int | None,
    settings: Mapping[str, str],
    num_devices: int,
    dtype: str = "float32",
    compute: str = "",
    clip_norm: float | None = None,
) -> Workload:
    """The workload of a built-in model or preset, or of the user's `module:function` or
    `path/to/file.py:function`.

    `batch` is the global batch; its default is the model's batch per device times `num_devices`.
    `dtype` becomes that of the parameters and of every floating tensor of the batch. Initial values
    come from the generator as it stands and are drawn in float32 whatever `dtype` is, so that the
    same seed starts every dtype at the same point. `compute` and `clip_norm`, if given, replace
    the workload's own. Allocates nothing under `FakeTensorMode`.

    Raises `UnknownName` and `BadValue` as `resolve_options` does, and if the user's code fails.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, list(DTYPES))
    options = resolve_options(
        spec, batch=batch, seq=seq, settings=settings, num_devices=num_devices
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        workload = source_of(spec).load(spec, options, dtype)
    finally:
        torch.set_default_dtype(before)
    workload = replace(
        workload,
        compute=compute or workload.compute,
        clip_norm=workload.clip_norm if clip_norm is None else clip_norm,
    )
    for part in (workload.module, workload.loss):
        if isinstance(part, torch.nn.Module):
            # Before the cast, which takes a parameter's AccumulateGrad node from it.
            check_hooks(workload.name, part)
    return _cast(workload, DTYPES[dtype])


def _cast(workload: Workload, dtype: torch.dtype) -> Workload:
    batch = tuple(
        tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in workload.batch
    )
    for _, part in trained_parts(workload.module, workload.loss):
        _cast_module(part, dtype)
    cast_constants(workload.module, workload.loss, dtype)
    return replace(workload, batch=batch)


def _cast_module(root: torch.nn.Module, dtype: torch.dtype) -> None:
    """`root.to(dtype)`, which fails on fake tensors. Tensors stay the objects that they are,
    with all that refers to them: modules that share one, a plain list that ties one."""
    for tensor in (*root.parameters(), *root.buffers()):
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)
