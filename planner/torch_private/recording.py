"""Recording a step as an FX graph, with labels on its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch._decomp import get_decompositions
from torch._ops import OpOverload  # the class of what a recorded node calls has no public name

# The only tracer that records through `torch.autograd.grad`.
from torch.fx.experimental.proxy_tensor import make_fx

from planner.torch_private.trees import tree_leaves

__all__ = [
    "OpOverload", "decompositions", "distributions_unchecked", "functional", "joint_trace",
    "label_new_nodes", "sequence_number", "writing_as",
]  # fmt: skip


def decompositions(ops: list[Any]) -> dict[Any, Callable[..., Any]]:
    """torch's own decompositions of the given ops. Private: the table has no public home outside
    `torch.export`."""
    return get_decompositions(ops)


@contextmanager
def distributions_unchecked() -> Iterator[None]:
    """A context in which `torch.distributions` checks no values unless asked to
    (`validate_args=True`): there are none while tracing."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def label_new_nodes(labels: dict[str, Any]) -> None:
    """From now on, nodes that are traced carry `labels` in `meta["custom"]` (what
    `torch.fx.traceback.annotate` sets, but open-ended: module hooks begin and end a label in
    different calls)."""
    fx_traceback.current_meta["custom"] = labels


@contextmanager
def writing_as(op: str) -> Iterator[None]:
    """A context in which traced nodes are also labelled with the writing op that the user called,
    of which they are part."""
    labels = fx_traceback.current_meta.get("custom", {})
    label_new_nodes({**labels, "writes": op})
    try:
        yield
    finally:
        label_new_nodes(labels)


def sequence_number(node: Any) -> int:
    """The number that autograd gave to a grad_fn when its forward op ran. Private: no public way
    to pair the two."""
    return int(node._sequence_nr())


@contextmanager
def _labels_kept() -> Iterator[None]:
    with fx_traceback.preserve_node_meta():
        yield


def joint_trace(
    step: Callable[..., Any],
    arguments: tuple[Any, ...],
    table: dict[Any, Any],
    *,
    lines: bool = False,
) -> torch.fx.Graph:
    """The FX graph of `step(*arguments)`, with labels and sequence numbers on its nodes; with
    `lines`, the stack that called each."""
    with _labels_kept():
        record = make_fx(
            step, decomposition_table=table, tracing_mode="real", record_stack_traces=lines
        )
        return record(*arguments).graph


def functional(
    graph: torch.fx.Graph, arguments: tuple[Any, ...], table: dict[Any, Any]
) -> torch.fx.Graph:
    """The recorded graph again, with its in-place ops as ops that give a new tensor, and the same
    labels on its nodes.

    Only `torch.func.functionalize` knows which views of a tensor see a write. It knows no autograd:
    the recorded graph has none.
    """
    module = torch.fx.GraphModule(graph.owning_module or torch.nn.Module(), graph)

    def again(*inputs: Any) -> Any:
        return torch.fx.Interpreter(module).run(*inputs, enable_io_processing=False)

    with _labels_kept(), torch.no_grad():
        flat = tuple(tree_leaves(arguments))
        made = make_fx(
            torch.func.functionalize(again, remove="mutations"),
            decomposition_table=table,
            tracing_mode="real",
        )
        return made(*flat).graph
