"""Reads a recorded FX graph into a `Graph`: aliases removed, one spelling for each op, unused work
dropped.

FX graph, names -> Graph. Refuses ops that cannot be planned: random ops, changed state, constants
made on the way.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Hashable
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.graph.graph import (
    Graph,
    Parameter,
    Ref,
    without_unread,
)
from planner.kernels.functional import is_view_in_place, twin_of
from planner.state.state import registered
from planner.torch_private.fake_tensors import is_fake
from planner.torch_private.modes import really
from planner.trace.numbered import Numbered
from planner.trace.refused import check_op, refused_write
from planner.trace.spelling import normalised
from planner.trace.storages import Storages
from planner.workload.workload import Workload

__all__ = ["read_graph"]


#: A constant of more elements than this is refused: it belongs in a buffer.
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
    the order of its arguments, `losses` those of its last results. Parameters in `unused` have no
    gradient and count as buffers. A `functional` step writes to its arguments last, and never reads
    what it wrote."""
    return _Reader(fx_graph, names, losses, workload, unused, functional).graph()


#: Ops that return their operand unchanged, whatever they promise about storage.
_ALIASES = {
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
}

#: Ops that return their operand unchanged if the result has its shape: they take a part of a dim,
#: or expand it.
_NO_CHANGE = {
    "aten.slice.Tensor", "aten.slice_backward.default", "aten.expand.default", "aten.view.default",
    "aten._unsafe_view.default", "aten.reshape.default", "aten.repeat.default",
    "aten.constant_pad_nd.default",
}  # fmt: skip

#: Ops that return nothing and raise for bad numbers. Without them the values that they guard are
#: infinite or NaN, which shows.
_CHECKS = {
    "aten._linalg_check_errors.default",
    "aten._assert_async.default",
    "aten._assert_async.msg",
    "aten._assert_scalar.default",
}


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
        self.made = Numbered()
        self.known: dict[torch.fx.Node, int | tuple[int | None, ...]] = {}
        self.fx_graph = fx_graph
        self.names = names
        given = len(registered(workload.module, workload.loss)[0])
        self.trained = [number for number, name in enumerate(names[:given]) if name not in unused]
        self.storages = Storages(fx_graph)
        self.zeros: set[int] = set()
        self.losses = losses
        self.casts: dict[Hashable, int] = {}
        self.changed: dict[int, int] = {}  # a buffer's value -> its current value

    def graph(self) -> Graph:
        placeholders = [n for n in self.fx_graph.nodes if n.op == "placeholder"]
        trained = set(self.trained)
        count, scaled = len(self.names), self.workload.formats.scaled
        named, key, batch = placeholders[:count], placeholders[count], placeholders[count + 1 :]
        scale = batch.pop(0) if scaled else None
        for position, node in enumerate(named):
            kind = "parameter" if position in trained else "buffer"
            self.known[node] = self.made.value(node.meta["val"], kind, self.names[position])
        for position, node in enumerate(batch):
            self.known[node] = self.made.value(node.meta["val"], "input", str(position))
        if key.users:
            self.known[key] = self.made.value(key.meta["val"], "key", "key")
        if scale is not None:
            self.known[scale] = self.made.value(scale.meta["val"], "scale", "scale")
        for node in self.fx_graph.nodes:
            if node.op == "call_function":
                self._read(node)
            elif node.op == "get_attr":
                self._constant(node)
        return self._finish()

    def _constant(self, node: torch.fx.Node) -> None:
        """Adds an op of ours for a tensor made of numbers during the step; it holds the numbers."""
        tensor = getattr(self.fx_graph.owning_module, str(node.target))
        if not isinstance(tensor, Tensor) or is_fake(tensor) or tensor.numel() > _CONSTANT:
            raise NotTraceable(
                f"model {self.workload.name!r} makes a constant tensor while running "
                f"({node.target}): register it as a buffer"
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
            kind: tuple(v.id for v in self.made.values if v.kind == kind)
            for kind in ("input", "buffer")
        }
        graph = Graph(
            nodes=tuple(self.made.nodes),
            values=tuple(self.made.values),
            parameters=parameters,
            inputs=kinds["input"],
            buffers=kinds["buffer"],
            loss=loss,
            updates=tuple(sorted(self.changed.items())),
            reported=tuple(zip(self.losses, reported, strict=True)),
        )
        return without_unread(graph)  # zeros to which a gradient was added are no longer read

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
            op, args, kwargs = normalised(
                op, args, {k: self._argument(v) for k, v in node.kwargs.items()}, node.meta["val"]
            )
            self._cast(node, args, kwargs) if op == "aten._to_copy.default" else self._add(
                node, op, args, kwargs
            )
        else:
            self.known[node] = same
        if self._is_changed_buffer(node):
            self._rebind(self.storages.roots[node], self._id(node))

    def _cast(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Adds a cast, once per phase: under autocast each product casts its operand, and several
        may read the same one."""
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
        """Whether the op overwrites a whole buffer: the value written is then the buffer's from
        there on."""
        root = self.storages.roots[node]
        if (
            node.target is not aten.copy_.default
            or root.op != "placeholder"
            or root not in self.known
        ):
            return False
        first = self.known[root]
        assert isinstance(first, int)
        if self.made.values[first].kind != "buffer" or self._id(node.args[0]) != self._id(root):  # type: ignore[arg-type]
            return False
        if self.functional:
            return True
        same = self.known[node.args[0]]  # type: ignore[index]
        return all(self.known[n] == same for n in self.storages.seen_after(node))

    def _rebind(self, buffer: torch.fx.Node, value: int) -> None:
        """From here on, the buffer and its aliases have the value."""
        first = self.known[buffer]
        assert isinstance(first, int)
        before = self.changed.get(first, first)
        for node, root in self.storages.roots.items() if not self.functional else ():
            if root is buffer and node is not buffer and self.known.get(node) == before:
                self.known[node] = value
        self.changed[first] = value

    def _same_as(self, node: torch.fx.Node, op: str) -> int | None:
        """The value that the op returns unchanged, or None if it does not."""
        first = node.args[0] if node.args else None
        if not isinstance(first, torch.fx.Node):
            return None
        if op == "aten.constant_pad_nd.default" and any(node.args[1]):  # type: ignore[arg-type]
            return None  # padded in front and cropped behind: a shift
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
        """Whether the value written outlives the step and is (a view of) one of its arguments: the
        optimizer writes to parameters in place."""
        given = (
            self.storages.roots[source].op == "placeholder"
            or self.made.values[self._id(source)].kind != "activation"
        )
        return given and self.storages.roots[destination].op == "placeholder"

    def _other_than_zero(self, node: torch.fx.Node) -> int | None:
        """The operand of an addition whose other operand is a new tensor of zeros, as at the start
        of accumulating gradients; else None."""
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
        check_op(node, op, self.workload.name)
        mutable = node.target._schema.is_mutable  # type: ignore[union-attr]
        if mutable and not self.storages.harmless(node) and not self._is_changed_buffer(node):
            raise refused_write(node, op, self.workload.name)

    def _add(
        self, node: torch.fx.Node, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        ids = self.made.node(node, op, args, kwargs)
        many = isinstance(node.meta["val"], (tuple, list))
        self.known[node] = ids if many else ids[0]  # type: ignore[assignment]
        if op == "aten.full.default" and args[1] == 0:
            self.zeros.update(i for i in ids if i is not None)
