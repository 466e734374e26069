"""Labels every op, as it is recorded, with the module that runs: in forward by hooks, in backward
by the owner of each autograd node.

A module -> labels (`path`, `phase`, `sequence`) on the ops that are recorded while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planner.torch_private.checkpoints import running_in
from planner.torch_private.recording import label_new_nodes, sequence_number
from planner.torch_private.trees import tree_leaves

__all__ = ["IN_MODULE", "Paths", "paths_of"]

#: The beginning of an error's note that names the module that was running.
IN_MODULE = " in module "


class Paths:
    """The module that is running in forward, and the module of each autograd node, for backward."""

    def __init__(self) -> None:
        self.stack: list[str] = [""]
        self.owner: dict[Any, str] = {}

    def enter(self, path: str, inputs: Any) -> None:
        self._own(inputs, self.stack[-1])
        self.stack.append(path)
        label_new_nodes(_in_forward(path))

    def leave(self, output: Any) -> None:
        self._own(output, self.stack.pop())
        label_new_nodes(_in_forward(self.stack[-1]))

    def _own(self, output: Any, path: str) -> None:
        """Makes `path` the owner of every autograd node behind `output` that has none yet."""
        pending: list[Any] = [
            t.grad_fn for t in tree_leaves(output) if isinstance(t, Tensor) and t.grad_fn
        ]
        while pending:
            node = pending.pop()
            if node is None or node in self.owner:
                continue
            self.owner[node] = path
            pending.extend(following for following, _ in node.next_functions)

    def label_backward(self, loss: Tensor) -> None:
        """Installs hooks that, before each autograd node runs, set the label to its owner."""
        self._own(loss, "")
        for node, path in self.owner.items():
            labels = {"phase": "backward", "path": path, "sequence": sequence_number(node)}
            node.register_prehook(lambda *_, labels=labels: label_new_nodes(labels))
        label_new_nodes({"phase": "backward", "path": ""})


def _in_forward(path: str) -> dict[str, Any]:
    """The labels of the ops that a module runs in forward."""
    return {"phase": "forward", "path": path, "checkpoint": running_in()}


def _enter(paths: Paths, path: str, _: Any, args: Any, kwargs: Any) -> None:
    paths.enter(path, (args, kwargs))


@contextmanager
def paths_of(module: torch.nn.Module) -> Iterator[Paths]:
    """A context in which recorded ops are labelled with the module that runs; an error gets a note
    that names the module."""
    paths, handles = Paths(), []
    for path, child in module.named_modules():
        entering = partial(_enter, paths, path)
        handles.append(child.register_forward_pre_hook(entering, with_kwargs=True))
        handles.append(child.register_forward_hook(lambda _m, _a, out: paths.leave(out)))
    try:
        yield paths
    except Exception as error:
        if paths.stack[-1]:
            error.add_note(f"{IN_MODULE}{paths.stack[-1]!r}")
        raise
    finally:
        for handle in handles:
            handle.remove()
