"""Pins: a mesh with named axes, and choices for modules and parameters by pattern.

`--mesh dp=4,tp=2`: an axis named dp (data, fsdp, zero) splits nothing of an op but the batch; one
named tp (tensor) never splits the batch; any other name leaves the axis free. `--pin
'h.*.attn=tensor'`: see `PINS`.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from cost_models.errors import BadValue, unknown_name
from planner.graph.layout import Mesh

__all__ = [
    "OP_PINS",
    "MODE_PINS",
    "PARAMETER_PINS",
    "PINS",
    "Pin",
    "RECOMPUTE",
    "parse_mesh",
    "parse_pin",
    "recompute_pins",
    "role_of",
]

_ROLES = {
    "dp": "data",
    "ddp": "data",
    "data": "data",
    "fsdp": "data",
    "zero": "data",
    "tp": "tensor",
    "tensor": "tensor",
    "mp": "tensor",
}

#: The choices of a pin. The first five say how ops run, the next four how parameters are kept on data
#: axes, the last three what is kept from forward to backward.
PINS = {
    "data": "split the batch on every axis",
    "tensor": "split something other than the batch on the innermost tensor axis",
    "tp": "the same as tensor",
    "expert": "split the experts on the innermost tensor axis; ops without experts split the batch",
    "replicate": "run whole on every device",
    "ddp": "parameters and optimizer state whole on every device",
    "zero1": "parameters whole in a step, held and updated in pieces (ZeRO-1; gradients are "
    "reduce-scattered, as ZeRO-2)",
    "zero2": "the same as zero1",
    "zero3": "parameters, gradients and optimizer state in pieces, gathered where they are used",
    "keep": "results that backward reads stay in memory from forward to backward",
    "recompute": "results are freed in forward, and the ops run again in backward; of a layer, only "
    "what it reads is kept",
    "selective": "in layers, products with parameters and fused attention are kept, and what is "
    "cheap between them runs again",
}
OP_PINS = ("data", "tensor", "tp", "expert", "replicate")
PARAMETER_PINS = ("ddp", "zero1", "zero2", "zero3")
MODE_PINS = ("keep", "recompute", "selective")

#: `--recompute`: the first pin that it stands for, if any.
RECOMPUTE = {"none": "keep", "selective": "selective", "full": "recompute", "chosen": None}


@dataclass(frozen=True, slots=True)
class Pin:
    """A rule: modules or parameters that match `pattern` must take `choice`."""

    pattern: str
    choice: str

    def matches(self, path: str) -> bool:
        """Whether the path, or a module that it is in, matches."""
        return fnmatch.fnmatchcase(path, self.pattern) or fnmatch.fnmatchcase(
            path, f"{self.pattern}.*"
        )


def parse_mesh(text: str, num_devices: int) -> Mesh:
    """`dp=4,tp=2` as a mesh of `num_devices`. Raises BadValue for anything else."""
    names, sizes = [], []
    for part in text.split(","):
        name, equals, size = part.strip().partition("=")
        if (
            not equals
            or not name.isidentifier()
            or not re.fullmatch(r"[0-9]+", size)
            or int(size) < 1
        ):
            raise BadValue(
                f"--mesh {text!r}: {part.strip()!r} is not NAME=SIZE with a size of at least 1; "
                "write --mesh dp=4,tp=2"
            )
        names.append(name)
        sizes.append(int(size))
    mesh = Mesh(tuple(names), tuple(sizes))
    if mesh.num_devices != num_devices:
        raise BadValue(
            f"--mesh {text!r} has {mesh.num_devices} devices and --gpus is {num_devices}: make them equal"
        )
    if len(sizes) > 3:
        raise BadValue(f"--mesh {text!r} has {len(sizes)} axes: at most three are supported")
    return mesh


def parse_pin(text: str) -> Pin:
    """`PATTERN=CHOICE` as a Pin. Raises UnknownName or BadValue."""
    pattern, equals, choice = text.rpartition("=")
    if not equals or not pattern:
        raise BadValue(f"--pin {text!r} is not PATTERN=CHOICE; write --pin 'h.*.attn=tensor'")
    if choice not in PINS:
        raise unknown_name("pin", choice, tuple(PINS))
    return Pin(pattern, choice)


def recompute_pins(name: str) -> tuple[Pin, ...]:
    """The pins that `--recompute NAME` stands for. Raises UnknownName."""
    if name not in RECOMPUTE:
        raise unknown_name("recompute", name, tuple(RECOMPUTE))
    choice = RECOMPUTE[name]
    return () if choice is None else (Pin("*", choice),)


def role_of(axis: str) -> str:
    """The role of an axis by its name: `data`, `tensor` or `free`."""
    return _ROLES.get(axis.rstrip("0123456789"), "free")
