"""Reads a recorded FX graph into a `Graph`: aliases removed, one spelling for each op, unused work
dropped.

FX graph, names -> Graph. Refuses what cannot be planned: random ops, changed state, constants made
on the way.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Collection, Hashable
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.graph.graph import (
    Graph,
    Node,
    Parameter,
    Ref,
    Serial,
    Value,
    result_name,
    without_unread,
)
from planner.kernels.functional import is_view_in_place, twin_of
from planner.state.source_line import from_text
from planner.state.state import registered
from planner.torch_private.fake_tensors import is_fake
from planner.torch_private.modes import really
from planner.torch_private.recording import OpOverload
from planner.workload.workload import Workload

__all__ = ["NUMBERED", "ChangedInPlace", "Refused", "read_graph"]


class Refused(NotTraceable):
    """Of one op: traced again with stacks, the message names the line that called it."""


class ChangedInPlace(Refused):
    """An op writes to a tensor in place, and something else sees it."""


#: A constant of more elements than this is refused: it belongs into a buffer.
_CONSTANT = 1 << 16


aten = torch.ops.aten


def read_graph(
    fx_graph: torch.fx.Graph,
    names: list[str],
    losses: list[str],
    workload: Workload,
    unused: Collection[str] = (),
    *,
    functional: bool = False,
) -> Graph:
    """The graph of a recorded step; `names` are those of its parameters and then its buffers, in
    the order of its arguments, `losses` those of its last results. Parameters that are `unused`
    have no gradient, and are as buffers. A `functional` step writes to its arguments last, and
    reads nothing of them that was written."""
    return _Reader(fx_graph, names, losses, workload, unused, functional).graph()


#: Ops that give their operand back, whatever they promise about storage.
_ALIASES = {
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
}
#: Ops that give their operand back where the result has its shape: they take a part of a dim, or
#: stretch it.
_NO_CHANGE = {
    "aten.slice.Tensor", "aten.slice_backward.default", "aten.expand.default", "aten.view.default",
    "aten._unsafe_view.default", "aten.reshape.default", "aten.repeat.default",
    "aten.constant_pad_nd.default",
}  # fmt: skip
_VIEWS = {"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"}
#: Ops that give nothing, and raise where numbers are bad: what they guard is then infinite or not a
#: number, and seen.
_CHECKS = {
    "aten._linalg_check_errors.default",
    "aten._assert_async.default",
    "aten._assert_async.msg",
    "aten._assert_scalar.default",
}
#: Ops that promise to be given indices in range.
_SAFE = {
    "aten._unsafe_index_put.default": "aten.index_put.default",
    "aten._unsafe_index.Tensor": "aten.index.Tensor",
}
#: Where random ops of ours have the number by which those of a step are told apart.
NUMBERED = {"dropout": 3, "uniform": 2}
_RANDOM_HINT = (
    "this random op is not supported: draw from torch.rand, randn, bernoulli, randint, "
    "multinomial or dropout"
)


class _Reader:
    """Reads the recorded FX graph into a `Graph`: aliases removed, views normalised, unused work
    dropped."""

    def __init__(
        self,
        fx_graph: torch.fx.Graph,
        names: list[str],
        losses: list[str],
        workload: Workload,
        unused: Collection[str],
        functional: bool,
    ) -> None:
        fx_graph.eliminate_dead_code()
        self.functional = functional
        self.workload = workload
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.known: dict[torch.fx.Node, int | tuple[int | None, ...]] = {}
        self.fx_graph = fx_graph
        self.names = names
        given = len(registered(workload.module, workload.loss)[0])
        self.trained = [number for number, name in enumerate(names[:given]) if name not in unused]
        self.roots = _roots(fx_graph)
        self.zeros: set[int] = set()
        self.losses = losses
        self.casts: dict[Hashable, int] = {}
        self.counts: Counter[str] = Counter()
        self.changed: dict[int, int] = {}  # a buffer's value -> the value that it has now

    def graph(self) -> Graph:
        placeholders = [n for n in self.fx_graph.nodes if n.op == "placeholder"]
        trained = set(self.trained)
        named, key, batch = (
            placeholders[: len(self.names)],
            placeholders[len(self.names)],
            placeholders[len(self.names) + 1 :],
        )
        for position, node in enumerate(named):
            kind = "parameter" if position in trained else "buffer"
            self.known[node] = self._value(node.meta["val"], kind, self.names[position])
        for position, node in enumerate(batch):
            self.known[node] = self._value(node.meta["val"], "input", str(position))
        if key.users:
            self.known[key] = self._value(key.meta["val"], "key", "key")
        for node in self.fx_graph.nodes:
            if node.op == "call_function":
                self._read(node)
            elif node.op == "get_attr":
                self._constant(node)
        return self._finish()

    def _constant(self, node: torch.fx.Node) -> None:
        """A tensor made of numbers while running: an op of ours that holds the numbers."""
        tensor = getattr(self.fx_graph.owning_module, str(node.target))
        if not isinstance(tensor, Tensor) or is_fake(tensor) or tensor.numel() > _CONSTANT:
            raise NotTraceable(
                f"model {self.workload.name!r} makes a constant tensor while running ({node.target}): register it as a buffer"
            )
        values = really(lambda: tuple(tensor.reshape(-1).tolist()))
        kwargs = {"dtype": str(tensor.dtype)}
        node.meta.setdefault("val", tensor)
        self._add(node, "shardwright.constant", (values, tuple(tensor.shape)), kwargs)

    def _finish(self) -> Graph:
        output = next(n for n in self.fx_graph.nodes if n.op == "output")
        loss, *rest = (self._id(n) for n in output.args[0])
        gradients, reported = rest[: len(self.trained)], rest[len(self.trained) :]
        parameters = tuple(
            Parameter(name=self.names[i], value=i, gradient=gradient)
            for i, gradient in zip(self.trained, gradients, strict=True)
        )
        kinds = {
            kind: tuple(v.id for v in self.values if v.kind == kind) for kind in ("input", "buffer")
        }
        graph = Graph(
            nodes=tuple(self.nodes),
            values=tuple(self.values),
            parameters=parameters,
            inputs=kinds["input"],
            buffers=kinds["buffer"],
            loss=loss,
            updates=tuple(sorted(self.changed.items())),
            reported=tuple(zip(self.losses, reported, strict=True)),
        )
        return without_unread(graph)  # of zeros to which a gradient was added nothing is read

    def _value(self, tensor: Tensor, kind: str, name: str, writer: int | None = None) -> int:
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.values.append(
            Value(
                id=len(self.values),
                shape=tuple(tensor.shape),
                dtype=dtype,
                kind=kind,
                name=name,
                writer=writer,
            )
        )
        return len(self.values) - 1

    def _id(self, node: torch.fx.Node) -> int:
        found = self.known[node]
        assert isinstance(found, int), node
        return (
            self.changed.get(found, found)
            if node.op == "placeholder" and not self.functional
            else found
        )

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return Ref(self._id(argument))
        if isinstance(argument, (list, tuple)):
            return tuple(self._argument(item) for item in argument)
        if isinstance(argument, (torch.dtype, torch.device, torch.memory_format, torch.layout)):
            return str(argument)
        return argument

    def _read(self, node: torch.fx.Node) -> None:
        if node.target is operator.getitem:
            source, position = node.args
            found = self.known[source]  # type: ignore[index]
            assert isinstance(found, tuple)
            self.known[node] = found[position]  # type: ignore[index, assignment]
            return
        op = str(node.target)
        if op in _CHECKS:
            return
        self._refuse(node, op)
        if is_view_in_place(node.target):  # type: ignore[arg-type]
            op = str(twin_of(node.target).op)  # type: ignore[union-attr]
        same = self._same_as(node, op)
        if same is None:
            args = tuple(self._argument(a) for a in node.args)
            op, args, kwargs = _normalised(
                op, args, {k: self._argument(v) for k, v in node.kwargs.items()}, node.meta["val"]
            )
            self._cast(node, args, kwargs) if op == "aten._to_copy.default" else self._add(
                node, op, args, kwargs
            )
        else:
            self.known[node] = same
        if self._is_changed_buffer(node):
            self._rebind(self.roots[node], self._id(node))

    def _cast(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Adds a cast, once a phase: under autocast each product casts its operand, and several
        read the same."""
        key = (
            node.meta.get("custom", {}).get("phase", "forward"),
            args,
            tuple(sorted(kwargs.items())),
        )
        if key not in self.casts:
            self._add(node, "aten._to_copy.default", args, kwargs)
            self.casts[key] = self._id(node)
        self.known[node] = self.casts[key]

    def _is_changed_buffer(self, node: torch.fx.Node) -> bool:
        """Whether the op writes a whole buffer, as it is: what is written is then what the
        buffer is from there on."""
        root = self.roots[node]
        if (
            node.target is not aten.copy_.default
            or root.op != "placeholder"
            or root not in self.known
        ):
            return False
        first = self.known[root]
        assert isinstance(first, int)
        if self.values[first].kind != "buffer" or self._id(node.args[0]) != self._id(root):  # type: ignore[arg-type]
            return False
        if self.functional:
            return True
        same = self.known[node.args[0]]  # type: ignore[index]
        return all(self.known[n] == same for n in self._seen_after(node))

    def _rebind(self, buffer: torch.fx.Node, value: int) -> None:
        """From here on, the buffer and what is the same as it have the value."""
        first = self.known[buffer]
        assert isinstance(first, int)
        before = self.changed.get(first, first)
        for node, root in self.roots.items() if not self.functional else ():
            if root is buffer and node is not buffer and self.known.get(node) == before:
                self.known[node] = value
        self.changed[first] = value

    def _same_as(self, node: torch.fx.Node, op: str) -> int | None:
        """The value that the op gives back unchanged, if it does."""
        first = node.args[0] if node.args else None
        if not isinstance(first, torch.fx.Node):
            return None
        if op == "aten.constant_pad_nd.default" and any(node.args[1]):  # type: ignore[arg-type]
            return None  # one before and one less behind: a shift
        if op == "aten.copy_.default":
            source = node.args[1]
            assert isinstance(source, torch.fx.Node)
            same = first.meta["val"].dtype == source.meta["val"].dtype
            return self._id(source) if same and not self._must_be_copied(first, source) else None
        if op in _ALIASES or (
            op in _NO_CHANGE and first.meta["val"].shape == node.meta["val"].shape
        ):
            return self._id(first)
        if op == "aten.add.Tensor" and not node.kwargs:
            return self._other_than_zero(node)
        return None

    def _must_be_copied(self, destination: torch.fx.Node, source: torch.fx.Node) -> bool:
        """Whether what is written outlives the step and is part of what it is given: the
        optimizer writes to parameters in place."""
        given = (
            self.roots[source].op == "placeholder"
            or self.values[self._id(source)].kind != "activation"
        )
        return given and self.roots[destination].op == "placeholder"

    def _other_than_zero(self, node: torch.fx.Node) -> int | None:
        """The operand of an addition whose other operand is a tensor of zeros just made, as
        gradients begin."""
        for zero, other in (node.args, node.args[::-1]):
            if (
                isinstance(zero, torch.fx.Node)
                and isinstance(other, torch.fx.Node)
                and self._id(zero) in self.zeros
            ):
                ours, theirs = other.meta["val"], node.meta["val"]
                if ours.shape == theirs.shape and ours.dtype == theirs.dtype:
                    return self._id(other)
        return None

    def _refuse(self, node: torch.fx.Node, op: str) -> None:
        target: Any = node.target
        path = node.meta.get("custom", {}).get("path", "")
        where = f"module {path or '(top)'!r} of {self.workload.name!r}{_line(node)}"
        if torch.Tag.nondeterministic_seeded in target.tags:
            raise Refused(f"{where} runs {op}: {_RANDOM_HINT}")
        if op.startswith("aten.index_put") and any(_is_mask(i) for i in node.args[1]):  # type: ignore[union-attr]
            raise Refused(
                f"{where} writes a tensor of several numbers under a mask ({op}): use torch.where"
            )
        if op == "aten.native_batch_norm.default" and node.args[5] and node.args[3] is not None:
            raise Refused(
                f"{where} normalises by the statistics of a sample or group and changes running ones in place: "
                "set track_running_stats=False"
            )
        if not target._schema.is_mutable or self._harmless(node) or self._is_changed_buffer(node):
            return
        if target is not aten.copy_.default and not is_view_in_place(target):
            raise Refused(
                f"{where} runs {op}, which changes a tensor in place and has no out-of-place "
                "form: use another op"
            )
        op = node.meta.get("custom", {}).get("writes", op)
        raise ChangedInPlace(
            f"{where} changes a tensor in place ({op}) that is a parameter, an input, part of a buffer, or read "
            "again: use the out-of-place op; a whole buffer may be changed"
        )

    def _harmless(self, node: torch.fx.Node) -> bool:
        """Whether nobody sees that the op wrote in place: no view of what it wrote to, made
        before, is read after it."""
        changed: Any = node.args[0]
        if is_view_in_place(node.target):  # type: ignore[arg-type]
            return bool(changed.op != "placeholder")
        if node.target is aten.resize_.default:  # an empty tensor for what is written to it next
            return self.roots[node].op != "placeholder" and changed.meta["val"].numel() == 0
        return (
            node.target is aten.copy_.default
            and self.roots[node].op != "placeholder"
            and not self._seen_after(node)
        )

    def _seen_after(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """What shares memory with what the op writes to, was made before and is read after it."""
        root = self.roots[node]
        return [
            n
            for n, r in self.roots.items()
            if r is root and n < node and any(user > node for user in n.users)
        ]

    def _add(
        self, node: torch.fx.Node, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        result = node.meta["val"]
        many = isinstance(result, (tuple, list))
        name = result_name(op, self.counts)
        tensors = list(result) if many else [result]
        read = {n.args[1] for n in node.users if n.target is operator.getitem} if many else {0}
        labels = node.meta.get("custom", {})
        index = len(self.nodes)
        ids = tuple(
            self._value(t, "activation", name, index)
            if i in read and isinstance(t, Tensor)
            else None
            for i, t in enumerate(tensors)
        )
        present = [t if isinstance(t, Tensor) else torch.empty(0) for t in tensors]
        self.nodes.append(
            Node(
                index=index,
                op=op,
                args=args,
                kwargs=tuple(sorted(kwargs.items())),
                results=ids,
                result_shapes=tuple(tuple(t.shape) for t in present),
                result_dtypes=tuple(str(t.dtype).removeprefix("torch.") for t in present),
                phase=labels.get("phase", "forward"),
                path=labels.get("path", ""),
            )
        )
        self.known[node] = ids if many else ids[0]  # type: ignore[assignment]
        if op == "aten.full.default" and args[1] == 0:
            self.zeros.update(i for i in ids if i is not None)


def _is_mask(index: Any) -> bool:
    """Whether what a tensor is indexed by is a mask."""
    return isinstance(index, torch.fx.Node) and index.meta["val"].dtype == torch.bool


def _line(node: torch.fx.Node) -> str:
    """Where in the user's code the op was called, if that was recorded."""
    place = from_text(str(node.meta.get("stack_trace") or ""))
    return f" at {place}" if place else ""


def _roots(fx_graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
    """For every node, the node whose memory its result is a view of, or is written to: itself,
    where it has its own."""
    roots: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in fx_graph.nodes:
        shares = node.target is operator.getitem
        if isinstance(node.target, OpOverload):
            shares = any(r.alias_info is not None for r in node.target._schema.returns)
        first = node.args[0] if node.args else None
        roots[node] = roots[first] if shares and isinstance(first, torch.fx.Node) else node
    return roots


def _normalised(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """One spelling for each op: views as `shardwright.reshape`, transposes as permutes, copies
    as casts; arguments that only say where a tensor lies (device, layout, pinning) are dropped.
    So is a memory format, which the device of the trace chose (`kernels/formats.py`), unless it
    is the copy into plain order that a view to come needs."""
    format_of_copy = kwargs.get("memory_format") if op == "aten.clone.default" else None
    for name in ("device", "layout", "pin_memory", "memory_format", "non_blocking"):
        kwargs.pop(name, None)
    if format_of_copy == "torch.contiguous_format":
        kwargs["memory_format"] = format_of_copy
    namespace, name, _ = op.split(".")
    if namespace == "shardwright" and name in NUMBERED:
        at = NUMBERED[name]
        args = (*args[:at], Serial(args[at]), *args[at + 1 :])
    if namespace == "shardwright":
        return f"{namespace}.{name}", args, kwargs
    if op == "aten.copy_.default":
        return "aten._to_copy.default", (args[1],), {"dtype": str(result.dtype)}
    filled = _fill_value(op, args)
    op = _SAFE.get(op, op)
    if op in _VIEWS:
        return "shardwright.reshape", (args[0], tuple(result.shape)), {}
    rank = result.dim() if isinstance(result, Tensor) else 0
    if filled is not None:
        return (
            "aten.full.default",
            (tuple(result.shape), _in_range(filled, result.dtype)),
            {"dtype": str(result.dtype)},
        )
    if op == "aten.t.default":
        return "aten.permute.default", (args[0], tuple(reversed(range(rank)))), {}
    if op == "aten.transpose.int":
        order = list(range(rank))
        if rank:
            a, b = args[1] % rank, args[2] % rank
            order[a], order[b] = order[b], order[a]
        return "aten.permute.default", (args[0], tuple(order)), {}
    if op == "aten.permute.default":
        return op, (args[0], tuple(d % rank for d in args[1])), {}
    if op in (
        "aten.unsqueeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.default",
        "aten.squeeze.dims",
    ):
        return "shardwright.reshape", (args[0], tuple(result.shape)), {}
    if op == "aten.expand.default":
        return op, (args[0], tuple(result.shape)), {}
    return op, args, kwargs


def _in_range(value: Any, dtype: torch.dtype) -> Any:
    """The number as a cast gives it: one that the dtype is too small for is infinite."""
    if dtype.is_floating_point and isinstance(value, float) and abs(value) > torch.finfo(dtype).max:
        return math.copysign(math.inf, value)
    return value


def _fill_value(op: str, args: tuple[Any, ...]) -> Any:
    """The number that an op fills a new tensor with, None if it is no such op."""
    name = op.split(".")[1]
    if name in (
        "zeros",
        "zeros_like",
        "new_zeros",
        "ones",
        "ones_like",
        "new_ones",
        "empty",
        "empty_like",
        "new_empty",
    ):
        return 1 if "ones" in name else 0  # what is empty is written before it is read
    if name in ("zero", "resize_"):
        return 0
    if name in ("full_like", "full") or op == "aten.fill.Scalar":
        return args[1]
    return args[2] if name == "new_full" else None
