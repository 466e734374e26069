"""Whether every call of a graph accepts its operands, and gives what its node says: each distinct
call is run on fake tensors, which takes about as long as tracing."""

from __future__ import annotations

from collections.abc import Iterator

from planner.graph.graph import Graph, Node, map_refs
from planner.graph.layout import Mesh
from planner.program.actions import STEP
from planner.program.check_graph import GIVEN
from planner.program.dry import Failure, first_failure
from planner.program.operators import is_overload, torch_constants
from planner.program.program import Compute, InputState, Program
from planner.program.program import Ref as ProgramRef

__all__ = ["called_faults"]


def called_faults(graph: Graph) -> Iterator[str]:
    """The first call that fails on fake tensors, or whose results differ from its node's: this
    checks all shapes and dtypes. For a graph that has no other faults."""
    failure = first_failure(_one_rank(graph))
    if failure is not None:
        yield _called(failure)


def _called(failure: Failure) -> str:
    return f"node {failure.instruction.id} ({failure.instruction.op}) of {failure.operands}: {failure.why}"


def _one_rank(graph: Graph) -> Program:
    """The graph as the program of a single rank, used only to call its ops."""
    given = (value for value in graph.values if value.kind in GIVEN)
    return Program(
        mesh=Mesh((), ()),
        bodies={STEP: tuple(_compute(node) for node in graph.nodes)},
        parameters=(),
        loss=graph.loss,
        inputs=tuple(
            InputState(
                name=v.name,
                value=v.id,
                subshape=tuple((size,) for size in v.shape),
                layout=(),
                dtype=v.dtype,
                kind=v.kind,
            )
            for v in given
        ),
        value_bytes={},
        initial_bytes={},
    )


def _compute(node: Node) -> Compute:
    """The node's call. Our own ops are called as they were traced, by the custom ops, which accept
    fake tensors."""
    op = (
        node.op
        if is_overload(node.op) or not is_overload(f"{node.op}.default")
        else f"{node.op}.default"
    )
    args, kwargs = map_refs((node.args, node.kwargs), ProgramRef)
    return Compute(
        id=str(node.index),
        op=op,
        args=torch_constants(args),
        kwargs=torch_constants(kwargs),
        results=node.results,
        shapes=node.result_shapes,
        dtypes=node.result_dtypes,
        kind="",
        phase=node.phase,
        path=node.path,
    )
