"""The `Ask`: the model that the user asked for, with everything needed to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cost_models.device import Device
from cost_models.errors import BadValue
from cost_models.memory import MEMORY_HEADROOM
from planner.models.keras_model import is_keras
from planner.workload.load import load_workload
from planner.workload.optimizers import by_name
from planner.workload.precision import PLAIN, Formats
from planner.workload.workload import Workload

__all__ = ["Ask", "build", "default_precision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """`batch` is the global batch (None: the model's own, for `num_devices`); `settings` are the
    texts of `--set`; `dtype` is that of the parameters, `compute` that of products in mixed
    precision, `formats` has the optimizer's and that of gradients; `memory_headroom` the share of
    usable memory that is kept free. `optimizer`, `learning_rate` and `optimizer_settings`, if
    given, override the model's own. A step runs in `microbatches` equal parts of the batch, one
    after another; modules that match a glob of `per_microbatch` may take statistics over each of
    them, where others would need the whole batch. With `compile`, elementwise chains are compiled
    into one kernel each."""

    model: str
    batch: int | None
    seq: int | None
    settings: Mapping[str, str]
    dtype: str
    num_devices: int
    compute: str = ""
    formats: Formats = PLAIN
    clip_norm: float | None = None
    memory_headroom: float = MEMORY_HEADROOM
    optimizer: str = ""
    learning_rate: float | None = None
    optimizer_settings: Mapping[str, Any] = field(default_factory=dict)
    microbatches: int = 1
    per_microbatch: tuple[str, ...] = ()
    compile: bool = False

    def allowed_memory(self, device: Device) -> int:
        """Bytes per device that a plan may hold: usable memory less the headroom."""
        return int(device.usable_memory * (1 - self.memory_headroom))


def build(ask: Ask) -> Workload:
    """The workload, under the caller's seed or fake tensors."""
    workload = load_workload(
        ask.model,
        batch=ask.batch,
        seq=ask.seq,
        settings=ask.settings,
        num_devices=ask.num_devices,
        dtype=ask.dtype,
        compute=ask.compute,
        clip_norm=ask.clip_norm,
    )
    parts = ask.microbatches if ask.per_microbatch else 1
    return replace(workload, formats=ask.formats, norm_parts=parts, **_optimizer(ask, workload))


def _optimizer(ask: Ask, workload: Workload) -> dict[str, Any]:
    """The workload's fields for the optimizer, as overridden by the ask."""
    if not (ask.optimizer or ask.learning_rate is not None or ask.optimizer_settings):
        return {}
    name = ask.optimizer or workload.optimizer
    own = {} if ask.optimizer else workload.optimizer_settings
    if is_keras(ask.model):
        raise BadValue(
            f"{ask.model} brings its own optimizer: leave out --optimizer, --lr and the "
            "settings, and give them to compile"
        )
    rate = workload.learning_rate if ask.learning_rate is None else ask.learning_rate
    return by_name(name, rate, {**own, **ask.optimizer_settings})


def default_precision(model: str, device: Device) -> str:
    """The default `--precision`: bf16-mixed on devices with units for bfloat16, fp16-mixed on those
    that have them only for float16, else fp32; fp32 for Keras models, whose own dtype policy
    decides on mixed precision."""
    if is_keras(model):
        return "fp32"
    if device.multiplies("bf16"):
        return "bf16-mixed"
    return "fp16-mixed" if device.multiplies("fp16") else "fp32"
