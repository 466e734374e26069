"""Traces a model's whole training step into one `Graph`, without running it or holding its memory.

Workload builder -> Graph. Invariant: the graph does not depend on the machine it was traced on (fused attention, recurrent
layers and the loss are captured as our own ops), and every node knows its module and whether it is forward or backward.
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable, UserError
from planner.graph import Graph, Node, Parameter, Ref, Value
from planner.kernels import Canonical
from planner.torch_private import FakeTensorMode, decompositions, joint_trace, label_new_nodes, sequence_number
from planner.workload import Workload

__all__ = ["Traced", "trace"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The graph, and the workload it was traced from (its tensors are fake: shapes without memory)."""

    graph: Graph
    workload: Workload


def trace(build: Callable[[], Workload]) -> Traced:
    """The graph of one training step of the workload that `build` makes.

    Raises NotTraceable, naming the line of the model, where the step is not one static graph of tensors.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    with mode:
        workload = build()
        try:
            fx_graph, names = _record(workload)
        except UserError:
            raise
        except Exception as error:
            raise NotTraceable(_explain(error, workload.name)) from error
    return Traced(graph=_Reader(fx_graph, names, workload).graph(), workload=workload)


# ------------------------------------------------------------------------------------------------- recording


def _record(workload: Workload) -> tuple[torch.fx.Graph, list[str]]:
    module = workload.module
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    buffers = dict(module.named_buffers()) | frozen
    if not parameters:
        raise NotTraceable(f"model {workload.name!r} has no parameter that requires a gradient: there is nothing to train")

    def step(weights: dict[str, Tensor], state: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, ...]:
        with _paths(module) as paths:
            label_new_nodes({"phase": "forward", "path": ""})
            with Canonical():
                outputs = torch.func.functional_call(module, {**weights, **state}, tuple(batch[:-1]))
                loss = workload.loss(outputs, batch[-1])
            _check_loss(loss, workload.name)
            paths.label_backward(loss)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        return (loss, *_all_used(gradients, weights))

    graph = joint_trace(step, (parameters, buffers, *workload.batch), _table())
    return graph, [*parameters, *buffers]


def _check_loss(loss: Any, name: str) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise NotTraceable(f"model {name!r}: the loss must be one scalar tensor, got {what}; reduce it with .mean() or .sum()")


def _all_used(gradients: tuple[Tensor | None, ...], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    unused = [name for name, g in zip(weights, gradients, strict=True) if g is None]
    if unused:
        raise NotTraceable(f"parameters {', '.join(unused)} do not take part in the loss: freeze them (requires_grad_(False))")
    return tuple(g for g in gradients if g is not None)


class _Paths:
    """Which module is running, forward; and which module each autograd node belongs to, for the backward."""

    def __init__(self) -> None:
        self.stack: list[str] = [""]
        self.owner: dict[Any, str] = {}

    def enter(self, path: str, inputs: Any) -> None:
        self._own(inputs, self.stack[-1])
        self.stack.append(path)
        label_new_nodes({"phase": "forward", "path": path})

    def leave(self, output: Any) -> None:
        self._own(output, self.stack.pop())
        label_new_nodes({"phase": "forward", "path": self.stack[-1]})

    def _own(self, output: Any, path: str) -> None:
        """Gives every autograd node behind `output` that has no owner yet to `path`."""
        pending: list[Any] = [t.grad_fn for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor) and t.grad_fn]
        while pending:
            node = pending.pop()
            if node is None or node in self.owner:
                continue
            self.owner[node] = path
            pending.extend(following for following, _ in node.next_functions)

    def label_backward(self, loss: Tensor) -> None:
        """Before each autograd node runs, labels what it will record with the node's owner."""
        self._own(loss, "")
        for node, path in self.owner.items():
            labels = {"phase": "backward", "path": path, "sequence": sequence_number(node)}
            node.register_prehook(lambda *_, labels=labels: label_new_nodes(labels))
        label_new_nodes({"phase": "backward", "path": ""})


def _enter(paths: _Paths, path: str, _: Any, args: Any, kwargs: Any) -> None:
    paths.enter(path, (args, kwargs))


@contextmanager
def _paths(module: torch.nn.Module) -> Iterator[_Paths]:
    paths, handles = _Paths(), []
    for path, child in module.named_modules():
        entering = partial(_enter, paths, path)
        handles.append(child.register_forward_pre_hook(entering, with_kwargs=True))
        handles.append(child.register_forward_hook(lambda _m, _a, out: paths.leave(out)))
    try:
        yield paths
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------------------------------------- decomposing


def _mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    return aten.div.Scalar(aten.sum.default(x, dtype=dtype), x.numel())


def _mean_dim(x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    dims = dim if dim else list(range(x.dim()))
    count = 1
    for d in dims:
        count *= x.shape[d]
    return aten.div.Scalar(aten.sum.dim_IntList(x, dims, keepdim, dtype=dtype), count)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = aten.mm.default(a, b)
    product = product if alpha == 1 else aten.mul.Scalar(product, alpha)
    bias = bias if beta == 1 else aten.mul.Scalar(bias, beta)
    return aten.add.Tensor(product, bias)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    if bias is None:
        return NotImplemented
    out = aten.convolution.default(x, weight, None, *rest)
    return aten.add.Tensor(out, aten.view.default(bias, [1, -1] + [1] * (out.dim() - 2)))


def _mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Any:
    scale = 2.0 / x.numel() if reduction == 1 else 2.0
    return aten.mul.Tensor(aten.mul.Scalar(aten.sub.Tensor(x, target), scale), grad)


def _var(x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    dims = dim if dim else list(range(x.dim()))
    count = 1
    for d in dims:
        count *= x.shape[d]
    square = (x - _mean_dim(x, dims, True)) ** 2
    over = max(0.0, count - (1 if correction is None else correction))
    return aten.div.Scalar(aten.sum.dim_IntList(square, dims, keepdim), over)


def _std(x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    return aten.sqrt.default(_var(x, dim, correction=correction, keepdim=keepdim))


def _index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """The gradient of `table[ids]` as that of an embedding, which can be split over the ids."""
    ids = indices[0]
    if not accumulate or len(indices) != 1 or ids is None or ids.dtype != torch.int64 or x.dim() == 0:
        return NotImplemented
    rows = values.expand(*ids.shape, *x.shape[1:]).reshape(*ids.shape, -1)
    added = aten.embedding_dense_backward.default(rows, aten.remainder.Scalar(ids, x.shape[0]), x.shape[0], -1, False)
    return aten.add.Tensor(x, added.view(x.shape))


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Any:
    """The gradient of `index_select` along the first dim, likewise."""
    if dim % max(x.dim(), 1) or alpha != 1 or x.dim() == 0 or index.dim() != 1:
        return NotImplemented
    return _index_put(x, [index.long()], source, True)


def _table() -> dict[Any, Any]:
    """Ops taken apart so that each piece can be split on its own: a mean is a sum and a division by the global count, and
    a bias is added after the product, where a partial product has been reduced."""
    table = decompositions(
        [
            aten.mse_loss,
            aten.binary_cross_entropy,
            aten.binary_cross_entropy_backward,
            aten.binary_cross_entropy_with_logits,
            aten.nll_loss_forward,
            aten.nll_loss_backward,
            aten.l1_loss,
            aten.smooth_l1_loss,
            aten.smooth_l1_loss_backward,
            aten.huber_loss,
            aten.huber_loss_backward,
            aten.addcmul,
            aten.addcdiv,
            aten.baddbmm,
            aten.stack,
            aten.silu_backward,
            aten.zeros_like,
            aten.ones_like,
            aten.full_like,
            aten.new_zeros,
            aten.new_full,
            aten.rsub,
            aten.celu,
            aten.glu,
            aten.glu_backward,
            aten.log_sigmoid_forward,
            aten.log_sigmoid_backward,
            aten._prelu_kernel,
            aten._prelu_kernel_backward,
            aten.logsumexp,
            aten.linalg_vector_norm,
        ]
    )
    ours: dict[Any, Any] = {
        aten.mean.default: _mean,
        aten.mean.dim: _mean_dim,
        aten.addmm.default: _addmm,
        aten.convolution.default: _convolution,
        aten.mse_loss_backward.default: _mse_loss_backward,
        aten.var.correction: _var,
        aten.std.correction: _std,
        aten.index_put.default: _index_put,
        aten.index_add.default: _index_add,
    }
    return table | ours


# ------------------------------------------------------------------------------------------------- reading

#: Ops that give their operand back, whatever they promise about storage.
_ALIASES = {"aten.detach.default", "aten.alias.default", "aten.lift_fresh_copy.default", "aten.lift_fresh.default"}
#: Ops that give their operand back where the result has its shape: they take a part of a dim, or stretch it.
_NO_CHANGE = {
    "aten.slice.Tensor", "aten.slice_backward.default", "aten.expand.default", "aten.view.default", "aten._unsafe_view.default",
    "aten.reshape.default", "aten.repeat.default", "aten.constant_pad_nd.default",
}  # fmt: skip
_VIEWS = {"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"}
_RANDOM_HINT = "set its dropout to 0: random ops are not planned yet"


class _Reader:
    """Reads the recorded FX graph into a `Graph`: aliases removed, views normalised, unused work dropped."""

    def __init__(self, fx_graph: torch.fx.Graph, names: list[str], workload: Workload) -> None:
        fx_graph.eliminate_dead_code()
        self.workload = workload
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.known: dict[torch.fx.Node, int | tuple[int | None, ...]] = {}
        self.fx_graph = fx_graph
        self.names = names
        self.roots = _roots(fx_graph)
        self.zeros: set[int] = set()

    def graph(self) -> Graph:
        placeholders = [n for n in self.fx_graph.nodes if n.op == "placeholder"]
        num_parameters = sum(p.requires_grad for _, p in self.workload.module.named_parameters())
        for position, node in enumerate(placeholders):
            if position < len(self.names):
                kind = "parameter" if position < num_parameters else "buffer"
                self.known[node] = self._value(node.meta["val"], kind, self.names[position])
            else:
                self.known[node] = self._value(node.meta["val"], "input", str(position - len(self.names)))
        for node in self.fx_graph.nodes:
            if node.op == "call_function":
                self._read(node)
            elif node.op == "get_attr":
                raise NotTraceable(
                    f"model {self.workload.name!r} makes a constant tensor while running ({node.target}): "
                    "register it as a buffer"
                )
        return self._finish(num_parameters)

    def _finish(self, num_parameters: int) -> Graph:
        output = next(n for n in self.fx_graph.nodes if n.op == "output")
        loss, *gradients = (self._id(n) for n in output.args[0])
        parameters = tuple(Parameter(name=self.names[i], value=i, gradient=gradient) for i, gradient in enumerate(gradients))
        kinds = {kind: tuple(v.id for v in self.values if v.kind == kind) for kind in ("input", "buffer")}
        return Graph(
            nodes=tuple(self.nodes), values=tuple(self.values), parameters=parameters,
            inputs=kinds["input"], buffers=kinds["buffer"], loss=loss,
        )  # fmt: skip

    def _value(self, tensor: Tensor, kind: str, name: str, writer: int | None = None) -> int:
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.values.append(
            Value(id=len(self.values), shape=tuple(tensor.shape), dtype=dtype, kind=kind, name=name, writer=writer)
        )
        return len(self.values) - 1

    def _id(self, node: torch.fx.Node) -> int:
        found = self.known[node]
        assert isinstance(found, int), node
        return found

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
        self._refuse(node, op)
        same = self._same_as(node, op)
        if same is not None:
            self.known[node] = same
            return
        args = tuple(self._argument(a) for a in node.args)
        op, args, kwargs = _normalised(op, args, {k: self._argument(v) for k, v in node.kwargs.items()}, node.meta["val"])
        self._add(node, op, args, kwargs)

    def _same_as(self, node: torch.fx.Node, op: str) -> int | None:
        """The value that the op gives back unchanged, if it does."""
        first = node.args[0] if node.args else None
        if not isinstance(first, torch.fx.Node):
            return None
        if op in _ALIASES or (op in _NO_CHANGE and first.meta["val"].shape == node.meta["val"].shape):
            return self._id(first)
        if op == "aten.add.Tensor" and not node.kwargs:
            return self._other_than_zero(node)
        return None

    def _other_than_zero(self, node: torch.fx.Node) -> int | None:
        """The operand of an addition whose other operand is a tensor of zeros just made, as gradients begin."""
        for zero, other in (node.args, node.args[::-1]):
            if isinstance(zero, torch.fx.Node) and isinstance(other, torch.fx.Node) and self._id(zero) in self.zeros:
                ours, theirs = other.meta["val"], node.meta["val"]
                if ours.shape == theirs.shape and ours.dtype == theirs.dtype:
                    return self._id(other)
        return None

    def _refuse(self, node: torch.fx.Node, op: str) -> None:
        target: Any = node.target
        path = node.meta.get("custom", {}).get("path", "")
        where = f"module {path or '(top)'!r} of {self.workload.name!r}"
        if torch.Tag.nondeterministic_seeded in target.tags:
            raise NotTraceable(f"{where} runs {op}: {_RANDOM_HINT}")
        if self._updates_statistics(node, op):
            raise NotTraceable(
                f"{where} is a batch norm in training mode, which changes its running statistics in place: "
                "put it in eval mode, or use nn.GroupNorm"
            )
        if target._schema.is_mutable and not self._harmless(node):
            raise NotTraceable(
                f"{where} changes a tensor in place ({op}) "
                "that is a parameter, a buffer, an input, or read again: use the out-of-place op"
            )

    def _updates_statistics(self, node: torch.fx.Node, op: str) -> bool:
        """Whether the op is a batch norm's that writes its running statistics, or counts its batches."""
        if op == "aten.native_batch_norm.default":
            return bool(node.args[5]) and node.args[3] is not None
        first = node.args[0] if node.args else None
        if op != "aten.add_.Tensor" or not isinstance(first, torch.fx.Node):
            return False
        return self.values[self._id(first)].name.endswith("num_batches_tracked")

    def _harmless(self, node: torch.fx.Node) -> bool:
        """Whether nobody sees that the op wrote in place: no view of what it wrote to, made before, is read after it."""
        target: Any = node.target
        root = self.roots[node]
        seen = [n for n, r in self.roots.items() if r is root and n < node]
        functional = hasattr(aten, str(target._schema.name).split("::")[1].rstrip("_"))
        return functional and root.op != "placeholder" and not any(user > node for n in seen for user in n.users)

    def _add(self, node: torch.fx.Node, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        result = node.meta["val"]
        many = isinstance(result, (tuple, list))
        tensors = list(result) if many else [result]
        read = {n.args[1] for n in node.users if n.target is operator.getitem} if many else {0}
        labels = node.meta.get("custom", {})
        index = len(self.nodes)
        ids = tuple(
            self._value(t, "activation", node.name, index) if i in read and isinstance(t, Tensor) else None
            for i, t in enumerate(tensors)
        )
        present = [t if isinstance(t, Tensor) else torch.empty(0) for t in tensors]
        self.nodes.append(
            Node(
                index=index, op=op, args=args, kwargs=tuple(sorted(kwargs.items())), results=ids,
                result_shapes=tuple(tuple(t.shape) for t in present),
                result_dtypes=tuple(str(t.dtype).removeprefix("torch.") for t in present),
                phase=labels.get("phase", "forward"), path=labels.get("path", ""),
            )
        )  # fmt: skip
        self.known[node] = ids if many else ids[0]  # type: ignore[assignment]
        if op == "aten.full.default" and args[1] == 0:
            self.zeros.update(i for i in ids if i is not None)


def _roots(fx_graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
    """For every node, the node whose memory its result is a view of, or is written to: itself, where it has its own."""
    roots: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in fx_graph.nodes:
        shares = node.target is operator.getitem
        if isinstance(node.target, torch._ops.OpOverload):
            shares = any(r.alias_info is not None for r in node.target._schema.returns)
        first = node.args[0] if node.args else None
        roots[node] = roots[first] if shares and isinstance(first, torch.fx.Node) else node
    return roots


def _normalised(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """One spelling for each op: views as `shardwright.reshape`, transposes as permutes, in-place ops out of place; arguments
    that only say where a tensor lies (device, layout, pinning) are dropped."""
    for name in ("device", "layout", "pin_memory", "memory_format", "non_blocking"):
        kwargs.pop(name, None)
    namespace, name, overload = op.split(".")
    if namespace == "shardwright":
        return f"{namespace}.{name}", args, kwargs
    if name.endswith("_") and not name.endswith("__"):
        op = f"{namespace}.{name[:-1]}.{overload}"
    if op in _VIEWS:
        return "shardwright.reshape", (args[0], tuple(result.shape)), {}
    rank = result.dim() if isinstance(result, Tensor) else 0
    filled = _fill_value(op, args)
    if filled is not None:
        return "aten.full.default", (tuple(result.shape), filled), {"dtype": str(result.dtype)}
    if op == "aten.t.default":
        return "aten.permute.default", (args[0], (1, 0) if rank == 2 else (0,)), {}
    if op == "aten.transpose.int":
        order = list(range(rank))
        a, b = args[1] % rank, args[2] % rank
        order[a], order[b] = order[b], order[a]
        return "aten.permute.default", (args[0], tuple(order)), {}
    if op == "aten.permute.default":
        return op, (args[0], tuple(d % rank for d in args[1])), {}
    if op in ("aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.default", "aten.squeeze.dims"):
        return "shardwright.reshape", (args[0], tuple(result.shape)), {}
    if op == "aten.expand.default":
        return op, (args[0], tuple(result.shape)), {}
    return op, args, kwargs


def _fill_value(op: str, args: tuple[Any, ...]) -> Any:
    """The number that an op fills a new tensor with, None if it is no such op."""
    name = op.split(".")[1]
    if name in ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones"):
        return 0 if "zeros" in name else 1
    if name in ("full_like", "full"):
        return args[1]
    return args[2] if name == "new_full" else None


# ------------------------------------------------------------------------------------------------- explaining


#: What the errors of fake tensors mean to the model's author, by the name of their (private) class.
_REASONS = {
    "DataDependentOutputException": "the value of a tensor is needed to go on (.item(), int(x), `if x:`): use torch.where",
    "DynamicOutputShapeException": "the shape of a tensor depends on values (nonzero, unique, x[mask]): use torch.where",
    "DataDependentOutputError": "the value of a tensor is needed to go on",
}


def _explain(error: Exception, name: str) -> str:
    """One line: what went wrong, and the last line of the user's own code that was running."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _is_library(Path(f.filename))]
    where = f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
    kind = type(error).__name__
    reason = _REASONS.get(kind) or f"{kind}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return f"model {name!r} cannot be traced as one static graph{where}: {reason}"


def _is_library(path: Path) -> bool:
    """Whether the file is ours (but for the built-in models), Python's or installed, and not the user's."""
    ours, python = Path(__file__).parent, Path(traceback.__file__).parent
    installed = "site-packages" in path.parts or "dist-packages" in path.parts or Path(torch.__file__).parent in path.parents
    return (
        installed or python in path.parents or (ours in path.parents and path.parent.name != "models") or not path.is_absolute()
    )
