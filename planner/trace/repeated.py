"""The `Graph` of a module with long stacks of like blocks, from a trace of a few of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.graph.graph import Graph
from planner.trace.between import Between, Unlike, between
from planner.trace.built import FAILURES
from planner.trace.record import plain_loss
from planner.trace.stacks import Run, Stack, shortened, stacks_of, watched
from planner.trace.step_graph import checked_graph, step_graph
from planner.trace.traced import Traced
from planner.trace.unroll import Given, unroll
from planner.workload.workload import Workload

__all__ = ["repeated"]

#: Graphs of more nodes than this also get versions at these smaller depths.
_DEEP, _SHALLOW = 4_000, (6, 10)


def repeated(workload: Workload) -> Traced | None:
    """The graph of a module with long stacks, from a trace of a few blocks of each; None if that
    does not work."""
    module = workload.module
    stacks = stacks_of(module)
    if not stacks:
        return None
    try:
        whole = _between(workload, tuple(stack.whole_run for stack in stacks))
        with shortened(module, stacks):
            if _between(workload, tuple(stack.short_run for stack in stacks)) != whole:
                return None
            with watched(module, stacks) as used:
                short = step_graph(workload)
    except (Unlike, *FAILURES):
        # The step needs all its blocks; tracing the whole reports any fault of the model.
        return None
    if used:
        return None
    given = tuple(_given(workload, short, stacks))
    graph = unroll(short, stacks, given)
    if graph is None:
        return None
    checked_graph("unrolling", graph)
    return Traced(
        graph=graph,
        workload=workload,
        depth=stacks[0].length,
        shallow=tuple(_shallow(short, stacks, given)) if _is_deep(graph, stacks) else (),
    )


def _is_deep(graph: Graph, stacks: tuple[Stack, ...]) -> bool:
    """Whether the graph is large, and its stacks all have one depth, which can be reduced."""
    depth = stacks[0].length
    return len(graph.nodes) > _DEEP and all(
        stack.length == depth > max(_SHALLOW) and stack.path == stack.short for stack in stacks
    )


def _shallow(
    short: Graph, stacks: tuple[Stack, ...], given: tuple[Given, ...]
) -> Iterator[tuple[int, Graph]]:
    """The graphs of the module with shorter stacks, each with its depth."""
    for depth in _SHALLOW:
        cut = tuple(replace(stack, length=depth) for stack in stacks)
        graph = unroll(short, cut, _given_less(given, stacks, depth))
        assert graph is not None, stacks
        checked_graph("unrolling", graph)
        yield depth, graph


def _between(workload: Workload, runs: tuple[Run, ...]) -> Between:
    """The ops of the step outside the blocks of the runs."""
    return between(workload.module, runs, lambda: plain_loss(workload), workload.batch)


def _given_less(
    given: tuple[Given, ...], stacks: tuple[Stack, ...], depth: int
) -> tuple[Given, ...]:
    """The arguments of a module whose stacks have `depth` blocks."""
    out = []
    for one in given:
        for stack in stacks:
            number = stack.block_of(one.name)
            if number is not None and number >= stack.start + stack.length:
                one = replace(one, name=stack.renamed(one.name, by=depth - stack.length))
            elif number is not None and number >= stack.start + depth:
                break
        else:
            out.append(one)
    return tuple(out)


def _given(workload: Workload, short: Graph, stacks: tuple[Stack, ...]) -> Iterator[Given]:
    """The module's tensors that the step reads, in the order of `record_step`'s arguments; `short`
    is the graph of the shortened module."""
    state, read = workload.state(), set()
    for value in short.values:
        name = value.name
        for stack in reversed(stacks):
            name = stack.renamed(name)
        read.add(name)
    constants = {name: tensor for name, tensor in state.constants.items() if name in read}
    for name, tensor in {**state.trained, **state.buffers, **constants}.items():
        yield Given(
            name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch.")
        )
