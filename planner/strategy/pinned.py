"""The options that pins leave a model on a mesh. A pin that would change nothing is refused.

Model, mesh, pins -> `Pins`. An axis named for data splits the batch and nothing else; one named for
tensors never splits the batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial

from cost_models.errors import NoPlan, UnknownName
from planner.dims.subdims import OpDims
from planner.dims.ties import pattern_of
from planner.graph.graph import Node, Parameter
from planner.graph.layout import Mesh
from planner.strategy.mode_pins import check_mode_pins, modes_under, pinned_again
from planner.strategy.pins import MODE_PINS, OP_PINS, PARAMETER_PINS, Pin, role_of
from planner.strategy.strategies import Option, options_of
from planner.strategy.traced_model import Model, Pins

__all__ = ["HEAVY", "batch_words", "check_pins", "matched_nodes", "matching", "pins_for"]

#: Kinds of op that do a model's work: `tensor` must split one of them.
HEAVY = ("gemm", "conv", "attention", "lstm", "embedding")


def pins_for(model: Model, mesh: Mesh, pins: tuple[Pin, ...]) -> Pins:
    """The options that a mesh's names and some pins leave. Raises UnknownName for a pattern that
    matches nothing."""
    filters = _Filters(model, mesh, pins)
    return Pins(
        op=filters.op,
        alike=filters.alike,
        parameter=filters.parameter,
        again=pinned_again(model, pins),
        modes=_modes_by_model(pins),
    )


def _modes_by_model(pins: tuple[Pin, ...]) -> Callable[[Model], Mapping[int, str]]:
    """`modes_under` the pins, found once for each model."""
    known: dict[int, tuple[Model, Mapping[int, str]]] = {}

    def modes(model: Model) -> Mapping[int, str]:
        if id(model) not in known:
            known[id(model)] = model, modes_under(model, pins)
        return known[id(model)][1]

    return modes


def check_pins(model: Model, meshes: Sequence[Mesh], pins: Iterable[Pin]) -> None:
    """Raises UnknownName for a pin that matches nothing, NoPlan for one that changes nothing on any
    of the meshes: no axis is for it, or nothing that it matches can be split as it says. On one
    device nothing is split, and every pin on splits is accepted. Raises BadValue for pins that
    contradict each other."""
    of_modes = [pin for pin in pins if pin.choice in MODE_PINS]
    filters = [
        _Filters(model, mesh, (pin,))
        for mesh in meshes
        for pin in pins
        if mesh.num_devices > 1 or pin in of_modes
    ]
    check_mode_pins(model, tuple(of_modes))
    for pin in pins:
        reasons = [f.why_not(pin) for f in filters if f.pins == (pin,)]
        if reasons and all(reasons):
            raise NoPlan(f"--pin '{pin.pattern}={pin.choice}': {reasons[0]}")


def matching(model: Model, pins: Iterable[Pin]) -> tuple[Pin, ...]:
    """The pins that match a module or a parameter of the model: those of other stages of a pipeline
    do not."""
    modules = {"", *(n.path for n in model.graph.nodes)}
    parameters = {p.name for p in model.graph.parameters}
    return tuple(
        pin
        for pin in pins
        if any(map(pin.matches, parameters if pin.choice in PARAMETER_PINS else modules))
    )


def matched_nodes(model: Model, pins: Iterable[Pin]) -> Hashable:
    """What of a model each pin matches, by number: graphs that differ in the names of their layers
    alone differ to a pin of one layer."""
    return tuple(
        (
            pin,
            tuple(n.index for n in model.graph.nodes if pin.matches(n.path)),
            tuple(p.value for p in model.graph.parameters if pin.matches(p.name)),
        )
        for pin in pins
        if any(map(str.isdigit, pin.pattern))
    )


def batch_words(model: Model) -> str:
    """`a batch of 8`, or `a microbatch of 2`: what the first tensor of the batch holds."""
    what = "a batch" if model.graph.microbatches == 1 else "a microbatch"
    return f"{what} of {model.graph.values[model.graph.inputs[0]].shape[0]}"


def _fewer_parts(model: Model, devices: int) -> str:
    """` or --microbatches 2`: the most microbatches of which each has a sample for each of the
    devices; empty if the batch is not cut, or too small itself."""
    whole = batch = model.graph.values[model.graph.inputs[0]].shape[0]
    whole *= model.graph.microbatches
    most = next((n for n in range(whole // devices, 0, -1) if whole % n == 0), 0)
    return f" or --microbatches {most}" if most and whole > batch else ""


def _near(pattern: str, known: Iterable[str]) -> str:
    """` 'a' or 'b'`: the module names most like the pattern; empty if none is like it."""
    parts = sorted({pattern_of(path) for path in known if path})
    near = difflib.get_close_matches(pattern, parts, n=3) or difflib.get_close_matches(
        pattern.replace("*", ""), parts, n=3
    )
    return f" {' or '.join(map(repr, near))}" if near else ""


def _some(names: Iterable[str]) -> str:
    shown = sorted({pattern_of(name) for name in names})
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


class _Filters:
    def __init__(self, model: Model, mesh: Mesh, pins: tuple[Pin, ...]) -> None:
        self.model, self.mesh, self.pins = model, mesh, pins
        self.roles = tuple(role_of(name) for name in mesh.names)
        self.batch = model.batch_atoms
        self.experts = model.expert_atoms
        self.of_batch_alone = model.of_batch_alone
        self._check_batch()
        for pin in pins:
            self._check_match(pin)
        data = [a for a, role in enumerate(self.roles) if role == "data"]
        self.data_axes = data or list(range(len(mesh.sizes)))
        tensor = [a for a, role in enumerate(self.roles) if role != "data" and mesh.sizes[a] > 1]
        self.tensor_axis = tensor[-1] if tensor else None
        self.light = frozenset(
            pin for pin in pins if pin.choice in ("tensor", "tp") and self._is_light(pin)
        )

    def _check_batch(self) -> None:
        size = 1
        for name, n in zip(self.mesh.names, self.mesh.sizes, strict=True):
            size *= n if role_of(name) == "data" else 1
        if self.model.graph.values[self.model.graph.inputs[0]].shape[0] < size:
            raise NoPlan(
                f"{batch_words(self.model)} has fewer samples than {size} data-parallel devices: "
                f"use --batch {size * self.model.graph.microbatches}{_fewer_parts(self.model, size)}"
            )

    def _check_match(self, pin: Pin) -> None:
        modules = {n.path for n in self.model.graph.nodes if n.path}
        parameters = {p.name for p in self.model.graph.parameters}
        of_ops = pin.choice not in PARAMETER_PINS
        matched = [path for path in parameters if pin.matches(path)]
        if not any(pin.matches(path) for path in (modules | {""} if of_ops else parameters)):
            if of_ops and matched:
                raise UnknownName(
                    f"--pin '{pin.pattern}={pin.choice}' matches parameters only "
                    f"({_some(matched)}), and {pin.choice} is for ops: pin a "
                    f"module{_near(pin.pattern, modules)}, or {', '.join(PARAMETER_PINS)} for "
                    "parameters"
                )
            known = modules | parameters if of_ops else parameters
            shown = sorted({pattern_of(path) for path in known})
            near = _near(pin.pattern, known)
            raise UnknownName(
                f"--pin {pin.pattern!r} matches nothing in the model{': did you mean' + near + '?' if near else ':'} "
                f"its parts are {', '.join(shown)}"
            )
        if pin.choice == "expert" and not self.experts:
            raise NoPlan(
                f"--pin '{pin.pattern}=expert': the model has no experts (a product batched over "
                "the matrices of one parameter): pin data or tensor"
            )

    def _of(self, path: str, choices: tuple[str, ...]) -> Pin | None:
        """The last of the pins that match, which wins; None if none does."""
        return next(
            (p for p in reversed(self.pins) if p.choice in choices and p.matches(path)), None
        )

    def _is_light(self, pin: Pin) -> bool:
        """Whether no op that the pin matches does a model's work: then the other ops that it
        matches must be split themselves."""
        return not any(
            pin.matches(node.path) and self._kind(node) in HEAVY for node in self.model.graph.nodes
        )

    def _kind(self, node: Node) -> str:
        return self.model.dims.ops[node.index].signature.kind

    # --------------------------------------------------------------------------- what a pin changes

    def why_not(self, pin: Pin) -> str:
        """Why the pin changes nothing on this mesh; empty if it does change something."""
        if pin.choice in ("replicate", "ddp", *MODE_PINS):
            return ""
        if pin.choice in PARAMETER_PINS:
            return self._why_not_kept(pin)
        axes: Sequence[int] = [a for a, size in enumerate(self.mesh.sizes) if size > 1]
        if pin.choice != "data" and self.tensor_axis is None:
            return (
                f"mesh {self.mesh} has no axis of more than one device that may split anything but the "
                "batch: add one, such as tp=2"
            )
        if pin.choice != "data" and self.tensor_axis is not None:
            axes = [self.tensor_axis]
        ops = [self.model.dims.ops[n.index] for n in self.model.graph.nodes if pin.matches(n.path)]
        if any(
            self._can_split(dims, axis, partial(self._is_split_of, pin.choice, dims))
            for dims in ops
            for axis in axes
        ):
            return ""
        what = {"data": "the batch", "expert": "the experts"}.get(
            pin.choice, "anything but the batch"
        )
        return (
            f"nothing that it matches can split {what} over "
            f"{' or '.join(str(self.mesh.sizes[a]) for a in axes)} devices"
        )

    def _is_split_of(self, choice: str, dims: OpDims, option: Option) -> bool:
        """Whether the option is a split that the pin asks for."""
        if choice == "expert":
            return self._splits_experts(dims, option)
        return self._splits_batch(dims, option) == (choice == "data")

    def _why_not_kept(self, pin: Pin) -> str:
        matched = [p for p in self.model.graph.parameters if pin.matches(p.name)]
        sizes = [self.mesh.sizes[a] for a in self.data_axes if self.mesh.sizes[a] > 1]
        if any(
            max(self.model.dims.flat(p.value), default=1) >= size for p in matched for size in sizes
        ):
            return ""
        if not sizes:
            return f"mesh {self.mesh} has no data axis of more than one device to keep pieces on: add one, such as dp=2"
        return f"no dim of {_some(p.name for p in matched)} can be cut into {' or '.join(map(str, sizes))} pieces"

    # ------------------------------------------------------------------------------------------ ops

    def alike(self, node: Node) -> Hashable:
        """The key that tied nodes must share for `op` to return the same for them."""
        pin = self._of(node.path, OP_PINS)
        return (
            pin and (pin.choice, pin in self.light),
            self.model.roles[node.index],
            self._kept_in_pieces(node),
        )

    def op(self, node: Node, axis: int, option: Option) -> bool:
        """Whether `option` is allowed for `node` on `axis`."""
        if self.mesh.sizes[axis] == 1:
            return option.kind == "whole"
        dims = self.model.dims.ops[node.index]
        if self._too_few(dims, axis, option):
            return False
        if option.kind == "split" and self._kept_in_pieces(node):
            return True
        pin = self._of(node.path, OP_PINS)
        choice = pin.choice if pin else None
        if choice == "replicate":
            return option.kind == "whole"
        if choice == "data" or (choice is None and self.roles[axis] == "data"):
            return self._data(node, axis, option)
        if choice == "expert" and axis == self.tensor_axis:
            return self._expert(node, axis, option)
        if choice in ("tensor", "tp") and axis == self.tensor_axis:
            return self._tensor(
                dims, axis, option, must=dims.signature.kind in HEAVY or pin in self.light
            )
        if self.roles[axis] == "data":
            return self._data(node, axis, option)
        return (
            self._tensor(dims, axis, option, must=False) if self.roles[axis] == "tensor" else True
        )

    def _splits_batch(self, dims: OpDims, option: Option) -> bool:
        return option.kind == "split" and dims.atoms[option.number] in self.batch

    def _splits_experts(self, dims: OpDims, option: Option) -> bool:
        return option.kind == "split" and dims.atoms[option.number] in self.experts

    def _too_few(self, dims: OpDims, axis: int, option: Option) -> bool:
        """Whether the option splits three elements (not samples) unevenly, such as the three parts
        of a fused QKV over 2 devices. That is never better than the other options, and would add
        many strategies. Fewer elements than devices are reported elsewhere."""
        if option.kind != "split" or self._splits_batch(dims, option):
            return False
        size, count = dims.sizes[option.number], self.mesh.sizes[axis]
        return count <= size < 4 and size % count != 0

    def _data(self, node: Node, axis: int, option: Option) -> bool:
        """Whether a data axis allows the option: an op with the batch splits it, one without runs
        whole or on partial sums. An op that reads only batch tensors (the number of targets that
        count) may run whole too: every rank can read all of them."""
        if node.index in self.of_batch_alone and option.kind == "whole":
            return True
        dims = self.model.dims.ops[node.index]
        able = self._can_split(dims, axis, lambda o: self._splits_batch(dims, o))
        return self._splits_batch(dims, option) if able else option.kind != "split"

    def _kept_in_pieces(self, node: Node) -> bool:
        """Whether the op casts a parameter that may be stored in pieces over the data axes: then
        each rank casts its own piece. Or it adds up over microbatches the gradient of a parameter
        that may be updated in pieces: each rank may add up its own (ZeRO-2)."""
        summed = node.index in self.model.summed
        if not summed and not self.model.casts_parameter(node):
            return False
        parameter = (
            self.model.summed[node.index] if summed else self.model.formats[node.results[0]]  # type: ignore[index]
        )
        pin = self._of(self.model.graph.values[parameter].name, PARAMETER_PINS)
        return pin is None or pin.choice == "zero3" or (summed and pin.choice != "ddp")

    def _can_split(self, dims: OpDims, axis: int, wanted: Callable[[Option], bool]) -> bool:
        """Whether the op has a split that is wanted, of at least as many elements as the axis has
        devices."""
        size = self.mesh.sizes[axis]
        return any(
            o.kind == "split" and dims.sizes[o.number] >= size and wanted(o)
            for o in options_of(dims)
        )

    def _expert(self, node: Node, axis: int, option: Option) -> bool:
        dims = self.model.dims.ops[node.index]

        def splits(other: Option) -> bool:
            return self._splits_experts(dims, other)

        return (
            splits(option)
            if self._can_split(dims, axis, splits)
            else self._data(node, axis, option)
        )

    def _tensor(self, dims: OpDims, axis: int, option: Option, *, must: bool) -> bool:
        if self._splits_batch(dims, option):
            return False
        # A split that is too fine is reported; any other op then runs whole.
        heavy = dims.signature.kind in HEAVY
        able = any(
            o.kind == "split"
            and not self._splits_batch(dims, o)
            and (heavy or dims.sizes[o.number] >= self.mesh.sizes[axis])
            for o in options_of(dims)
            if must
        )
        return option.kind == "split" if must and able else True

    # ----------------------------------------------------------------------------------- parameters

    def parameter(self, parameter: Parameter, axis: int, option: Option) -> bool:
        """Whether `option` is allowed for `parameter` on `axis`."""
        if self.mesh.sizes[axis] == 1:
            return option.kind == "whole"
        pin = self._of(parameter.name, PARAMETER_PINS)
        if pin is None or axis not in self.data_axes:
            return True
        wanted = {"ddp": "whole", "zero1": "update", "zero2": "update", "zero3": "split"}[
            pin.choice
        ]
        able = any(size >= self.mesh.sizes[axis] for size in self.model.dims.flat(parameter.value))
        return option.kind == (wanted if able else "whole")
