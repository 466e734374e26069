"""What a model may not do if its batch is to be cut into microbatches, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cost_models.errors import NoPlan
from planner.graph.graph import Graph, Node

__all__ = ["PER_MICROBATCH", "CannotSplit", "across", "shown", "with_line"]

#: The option that allows it.
PER_MICROBATCH = "--per-microbatch"


class CannotSplit(NoPlan):
    """The batch cannot be cut into microbatches; `op` of module `path` stands in the way, if it is
    an op."""

    def __init__(self, message: str, op: str = "", path: str = "") -> None:
        super().__init__(message)
        self.op, self.path = op, path

    @property
    def kind(self) -> str:
        """The kind of error that the user is told."""
        return NoPlan.__name__


def shown(node: Node) -> str:
    """An op and its module, in words."""
    return f"{node.op.split('.')[1]} in {node.path or 'the model'}"


def across(graph: Graph, node: Node, statistics: bool) -> CannotSplit:
    """The refusal of an op that looks at samples of several microbatches."""
    what = (
        f"{shown(node)} takes statistics over all samples of a batch, which no microbatch has: "
        f"allow those of each microbatch with {PER_MICROBATCH} '{node.path}', or '*' for all modules"
        if statistics
        else f"{shown(node)} needs all samples of a batch at once, which no microbatch has: "
        "compute it for each sample"
    )
    return CannotSplit(f"{what}; or use --microbatches 1", node.op, node.path)


@contextmanager
def with_line(line_of: Callable[[str, str], str]) -> Iterator[None]:
    """Adds the model's line to a refusal that names an op: `line_of` is given the op and its
    module's path, and returns ` at FILE:LINE (CODE)`, empty if it is not known."""
    try:
        yield
    except CannotSplit as error:
        line = line_of(error.op, error.path) if error.op else ""
        if not line:
            raise
        raise CannotSplit(f"{error} ({line.strip()})") from error
