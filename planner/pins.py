"""What a person pins: a mesh with named axes, and choices for modules and parameters by pattern.

`--mesh dp=4,tp=2`: an axis named dp (data, fsdp, zero) splits the batch and nothing else of an op; one named tp (tensor) never
splits the batch; any other name leaves the axis free. `--pin 'h.*.attn=tensor'`: see `PINS`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Hashable
from dataclasses import dataclass

from cost_models.errors import BadValue, NoPlan, UnknownName, unknown_name
from planner.graph import Node, Parameter
from planner.layout import Mesh
from planner.model import Model, Pins
from planner.strategies import Option, options_of
from planner.subdims import OpDims
from planner.ties import pattern_of

__all__ = ["PINS", "Pin", "parse_mesh", "parse_pin", "pins_for", "role_of"]

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

#: What a pattern can be pinned to. The first five say how ops run, the others how parameters are kept on data axes.
PINS = {
    "data": "split the batch on every axis",
    "tensor": "split something other than the batch on the innermost tensor axis",
    "tp": "the same as tensor",
    "expert": "split the experts on the innermost tensor axis, and the batch where there are none",
    "replicate": "run whole on every device",
    "ddp": "parameters and optimizer state whole on every device",
    "zero1": "parameters whole, optimizer state and update in pieces (ZeRO-1; gradients are reduce-scattered, as ZeRO-2)",
    "zero2": "the same as zero1",
    "zero3": "parameters, gradients and optimizer state in pieces, gathered where they are used",
}  # fmt: skip
_OP_PINS = ("data", "tensor", "tp", "expert", "replicate")

#: Kinds of op that do a model's work: what `tensor` must split.
HEAVY = ("gemm", "conv", "attention", "lstm", "embedding")


@dataclass(frozen=True, slots=True)
class Pin:
    """Modules or parameters that match `pattern` are kept to `choice`."""

    pattern: str
    choice: str

    def matches(self, path: str) -> bool:
        """Whether the path, or a module that it is in, matches."""
        return fnmatch.fnmatchcase(path, self.pattern) or fnmatch.fnmatchcase(path, f"{self.pattern}.*")


def parse_mesh(text: str, num_devices: int) -> Mesh:
    """`dp=4,tp=2` as a mesh of `num_devices`. Raises BadValue for anything else."""
    names, sizes = [], []
    for part in text.split(","):
        name, equals, size = part.strip().partition("=")
        if not equals or not name.isidentifier() or not re.fullmatch(r"[0-9]+", size) or int(size) < 1:
            raise BadValue(f"--mesh {text!r}: {part.strip()!r} is not NAME=SIZE with a size from 1 on; write --mesh dp=4,tp=2")
        names.append(name)
        sizes.append(int(size))
    mesh = Mesh(tuple(names), tuple(sizes))
    if mesh.num_devices != num_devices:
        raise BadValue(f"--mesh {text!r} has {mesh.num_devices} devices and --gpus is {num_devices}: make them equal")
    if len(sizes) > 3:
        raise BadValue(f"--mesh {text!r} has {len(sizes)} axes: at most three are planned")
    return mesh


def parse_pin(text: str) -> Pin:
    """`PATTERN=CHOICE` as a Pin. Raises UnknownName or BadValue."""
    pattern, equals, choice = text.rpartition("=")
    if not equals or not pattern:
        raise BadValue(f"--pin {text!r} is not PATTERN=CHOICE; write --pin 'h.*.attn=tensor'")
    if choice not in PINS:
        raise unknown_name("pin", choice, tuple(PINS))
    return Pin(pattern, choice)


def role_of(axis: str) -> str:
    """`data`, `tensor` or `free`."""
    return _ROLES.get(axis.rstrip("0123456789"), "free")


def pins_for(model: Model, mesh: Mesh, pins: tuple[Pin, ...]) -> Pins:
    """The options that a mesh's names and some pins leave. Raises UnknownName for a pattern that matches nothing."""
    filters = _Filters(model, mesh, pins)
    return Pins(op=filters.op, alike=filters.alike, parameter=filters.parameter)


class _Filters:
    def __init__(self, model: Model, mesh: Mesh, pins: tuple[Pin, ...]) -> None:
        self.model, self.mesh, self.pins = model, mesh, pins
        self.roles = tuple(role_of(name) for name in mesh.names)
        self.batch, self.experts, self.of_batch_alone = model.batch_atoms, model.expert_atoms, model.of_batch_alone
        self._check_batch()
        for pin in pins:
            self._check_match(pin)
        data = [a for a, role in enumerate(self.roles) if role == "data"]
        self.data_axes = data or list(range(len(mesh.sizes)))
        tensor = [a for a, role in enumerate(self.roles) if role != "data" and mesh.sizes[a] > 1]
        self.tensor_axis = tensor[-1] if tensor else None

    def _check_batch(self) -> None:
        size = 1
        for name, n in zip(self.mesh.names, self.mesh.sizes, strict=True):
            size *= n if role_of(name) == "data" else 1
        batch = self.model.graph.values[self.model.graph.inputs[0]].shape[0]
        if batch < size:
            raise NoPlan(f"a batch of {batch} has fewer samples than {size} data-parallel devices: use --batch {size}")

    def _check_match(self, pin: Pin) -> None:
        known = {n.path for n in self.model.graph.nodes} if pin.choice in _OP_PINS else set()
        known |= {p.name for p in self.model.graph.parameters}
        if not any(pin.matches(path) for path in known):
            shown = sorted({pattern_of(path) for path in known if path})
            raise UnknownName(f"--pin {pin.pattern!r} matches nothing in the model: its parts are {', '.join(shown)}")
        if pin.choice == "expert" and not self.experts:
            raise NoPlan(
                f"--pin '{pin.pattern}=expert': the model has no experts (a product batched over the matrices of one parameter): "
                "pin data or tensor"
            )

    def _of(self, path: str, choices: tuple[str, ...]) -> str | None:
        """The last pin that matches wins."""
        return next((p.choice for p in reversed(self.pins) if p.choice in choices and p.matches(path)), None)

    # ---------------------------------------------------------------------------------------------- ops

    def alike(self, node: Node) -> Hashable:
        """What tied nodes must share for `op` to say the same of them."""
        return self._of(node.path, _OP_PINS) if self.pins else None, self.model.roles[node.index]

    def op(self, node: Node, axis: int, option: Option) -> bool:
        """Whether `option` is allowed for `node` on `axis`."""
        if self.mesh.sizes[axis] == 1:
            return option.kind == "whole"
        dims = self.model.dims.ops[node.index]
        if self._too_few(dims, axis, option):
            return False
        choice = self._of(node.path, _OP_PINS)
        if choice == "replicate":
            return option.kind == "whole"
        if choice == "data" or (choice is None and self.roles[axis] == "data"):
            return self._data(node, axis, option)
        if choice == "expert" and axis == self.tensor_axis:
            return self._expert(node, axis, option)
        if choice in ("tensor", "tp") and axis == self.tensor_axis:
            return self._tensor(dims, option, must=dims.signature.kind in HEAVY)
        if self.roles[axis] == "data":
            return self._data(node, axis, option)
        return self._tensor(dims, option, must=False) if self.roles[axis] == "tensor" else True

    def _splits_batch(self, dims: OpDims, option: Option) -> bool:
        return option.kind == "split" and dims.atoms[option.number] in self.batch

    def _too_few(self, dims: OpDims, axis: int, option: Option) -> bool:
        """Whether the option splits three things unevenly that are not samples, as those of a fused QKV over 2 devices: never better
        than what else there is, and so many more strategies. Fewer things than devices cannot be split, which is told elsewhere."""
        if option.kind != "split" or self._splits_batch(dims, option):
            return False
        size, count = dims.sizes[option.number], self.mesh.sizes[axis]
        return count <= size < 4 and size % count != 0

    def _data(self, node: Node, axis: int, option: Option) -> bool:
        """An op that has the batch splits it; one that has not runs whole, or on partial sums. What reads the batch tensors alone (the
        number of targets that count) may run whole too: every rank can read them all."""
        if node.index in self.of_batch_alone and option.kind == "whole":
            return True
        size, dims = self.mesh.sizes[axis], self.model.dims.ops[node.index]
        able = any(self._splits_batch(dims, o) and dims.sizes[o.number] >= size for o in options_of(dims))
        return self._splits_batch(dims, option) if able else option.kind != "split"

    def _expert(self, node: Node, axis: int, option: Option) -> bool:
        dims = self.model.dims.ops[node.index]

        def splits(other: Option) -> bool:
            return other.kind == "split" and dims.atoms[other.number] in self.experts

        able = any(splits(o) and dims.sizes[o.number] >= self.mesh.sizes[axis] for o in options_of(dims))
        return splits(option) if able else self._data(node, axis, option)

    def _tensor(self, dims: OpDims, option: Option, *, must: bool) -> bool:
        if self._splits_batch(dims, option):
            return False
        able = any(o.kind == "split" and not self._splits_batch(dims, o) for o in options_of(dims))
        return option.kind == "split" if must and able else True

    # ---------------------------------------------------------------------------------------------- parameters

    def parameter(self, parameter: Parameter, axis: int, option: Option) -> bool:
        """Whether `option` is allowed for `parameter` on `axis`."""
        if self.mesh.sizes[axis] == 1:
            return option.kind == "whole"
        choice = self._of(parameter.name, ("ddp", "zero1", "zero2", "zero3"))
        if choice is None or axis not in self.data_axes:
            return True
        wanted = {"ddp": "whole", "zero1": "update", "zero2": "update", "zero3": "split"}[choice]
        flat = [size for dim in self.model.dims.shapes[parameter.value] for size in dim]
        able = any(size >= self.mesh.sizes[axis] for size in flat)
        return option.kind == (wanted if able else "whole")
