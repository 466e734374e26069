"""The description of a built-in model, and how its sizes are resolved: `--batch`, `--seq` and
`--set name=value`.

Sizes are resolved without building anything, so that a wrong one is reported before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cost_models.errors import BadValue, unknown_name

__all__ = [
    "ModelSpec",
    "Options",
    "Parts",
    "Preset",
    "check_divides",
    "check_given_once",
    "padding_mask",
    "parse_value",
    "per_device_batch",
    "built_in_options",
    "token_ids",
]

Options = Mapping[str, Any]
"""Sizes by name: whole numbers of at least one, or true and false."""

Parts = tuple[
    torch.nn.Module, tuple[torch.Tensor, ...], Callable[[Any, torch.Tensor], torch.Tensor]
]
"""What a builder returns: the model, its example batch (inputs, then target) and its loss."""

_BOOLS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named set of a model's sizes; options that it leaves out keep the model's defaults. If
    devices share a sample, `batch_per_device` is below 1."""

    description: str
    options: Options
    batch_per_device: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A built-in model: its options with their defaults, its presets, and its builder.

    `build` gets every option and `batch`. `check` raises `BadValue` for sizes that contradict each
    other. `sequence` is the name of the option for the tokens per sample, if samples have any.
    """

    name: str
    description: str
    options: Options
    batch_per_device: int
    build: Callable[[Options], Parts]
    dim_names: Mapping[str, tuple[str, ...]]
    presets: Mapping[str, Preset] = field(default_factory=dict)
    check: Callable[[Options], None] | None = None
    sequence: str | None = None
    optimizer: str = "adam"
    learning_rate: float = 1e-3


def built_in_options(
    spec: ModelSpec,
    name: str,
    *,
    batch: int | None,
    seq: int | None,
    settings: Mapping[str, str],
    num_devices: int,
) -> dict[str, Any]:
    """All sizes of the model or preset `name`: `batch` first, then the options in the model's
    order.

    The default batch is the per-device batch times `num_devices` (weak scaling), so any number of
    devices divides it if the per-device batch is an integer. Raises `UnknownName` for an option
    that the model does not have, `BadValue` for a value that it cannot take.
    """
    if num_devices < 1:
        raise BadValue(f"number of devices is {num_devices}: give at least 1")
    defaults = {"batch": max(1, int(per_device_batch(spec, name) * num_devices)), **spec.options}
    if name in spec.presets:
        defaults.update(spec.presets[name].options)
    flags = {"batch": batch, "seq": seq}
    if seq is not None and "seq" not in defaults:
        raise BadValue(f"--seq {seq}: the samples of {name!r} are not sequences; leave out --seq")
    for key in settings:
        if key not in defaults:
            raise unknown_name(f"{name} option", key, list(defaults))
    check_given_once(flags, settings)
    options = dict(defaults)
    options.update(
        {key: parse_value(key, text, like=defaults[key]) for key, text in settings.items()}
    )
    options.update({key: value for key, value in flags.items() if value is not None})
    for key, value in options.items():
        if not isinstance(value, bool) and value < 1:
            raise BadValue(
                f"{key} is {value} for model {name!r}: give a whole number of at least 1"
            )
    if spec.check is not None:
        spec.check(options)
    return options


def check_given_once(flags: Mapping[str, int | None], settings: Mapping[str, str]) -> None:
    """Raises `BadValue` if a size is given both by its flag and by `--set`."""
    for key, value in flags.items():
        if value is not None and key in settings:
            raise BadValue(
                f"--{key} {value} and --set {key}={settings[key]} both set the {key}: give only "
                "one of them"
            )


def per_device_batch(spec: ModelSpec, name: str) -> float:
    """The default number of samples that one device gets."""
    return spec.presets[name].batch_per_device if name in spec.presets else spec.batch_per_device


def parse_value(name: str, text: str, *, like: bool | int) -> bool | int:
    """`text` as the kind of value that `like` is; raises `BadValue` with the kind that was
    wanted."""
    if isinstance(like, bool):
        if text.strip().lower() not in _BOOLS:
            raise BadValue(f"--set {name}={text}: {name} must be true or false")
        return _BOOLS[text.strip().lower()]
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise BadValue(
            f"--set {name}={text}: {name} must be a whole number, as in --set {name}={like}"
        ) from None


def token_ids(options: Options, *shape: int) -> torch.Tensor:
    """Random token ids below `options["vocab"]`, of the given shape."""
    return torch.randint(0, options["vocab"], shape)


def padding_mask(batch: int, seq: int) -> torch.Tensor:
    """Which tokens (batch, seq) are real: the first few of each sample, at least one."""
    lengths = torch.randint(1, seq + 1, (batch, 1))
    return torch.arange(seq)[None, :] < lengths


def check_divides(options: Options, whole: str, part: str) -> None:
    """Raises BadValue where option `part` does not divide option `whole`, with one that does."""
    size, given = options[whole], options[part]
    if size % given:
        near = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - given))
        raise BadValue(
            f"{whole} {size} is not a multiple of {part} {given}: --set {part}={near} divides it"
        )
