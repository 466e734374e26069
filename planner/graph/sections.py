"""The sections of a step in microbatches: what runs before the first forward, in every microbatch,
and once at the end.

A graph with `microbatches` above 1 is the graph of one microbatch. Where a value is summed over all
microbatches stands a node `ACCUMULATE`: its operand is one microbatch's, its result that of the
whole batch. A sum that other ops of a microbatch read, such as the number of targets, is a *total*:
it is complete before the first forward.
"""

from __future__ import annotations

from collections.abc import Iterable

from planner.graph.graph import Graph, Node, needed

__all__ = [
    "ACCUMULATE",
    "AFTER",
    "BEFORE",
    "BODY",
    "OF_UPDATE",
    "RECEIVE",
    "SEND",
    "SUM_OF_STAGES",
    "is_accumulate",
    "is_sent_once",
    "is_total",
    "repeats_of",
    "sections_of",
]

ACCUMULATE = "shardwright.accumulate"

#: Where a value comes into the graph of a pipeline stage, and where it leaves.
RECEIVE, SEND = "shardwright.receive", "shardwright.send"
#: Adds up the shares that stages have in the gradient of a parameter that several of them read.
SUM_OF_STAGES = "shardwright.sum_of_stages"
#: The ops that may be of phase `update`: they run once a step, or complete a sum over microbatches.
OF_UPDATE = frozenset({ACCUMULATE, RECEIVE, SEND, SUM_OF_STAGES})

#: Once for each microbatch, all of them before the first one's body: the totals, and what makes
#: them.
BEFORE = "before"
#: Once for each microbatch.
BODY = "body"
#: Once, after the last microbatch's body: what reads whole sums.
AFTER = "after"


def is_accumulate(node: Node) -> bool:
    """Whether the node's result is the sum of its operand over all microbatches."""
    return node.op == ACCUMULATE


def is_total(node: Node) -> bool:
    """Whether the node is an accumulation that is complete before the first microbatch's body."""
    return is_accumulate(node) and ("ahead", True) in node.kwargs


def sections_of(graph: Graph) -> tuple[str, ...]:
    """The section of every node. An accumulation is in the section that adds to it. No node is in
    two: an op whose result both a total and the body need is there twice."""
    if graph.microbatches == 1:
        return (BODY,) * len(graph.nodes)
    before = _needed(graph, _results(n for n in graph.nodes if is_total(n)))
    sums = _results(n for n in graph.nodes if is_accumulate(n) and not is_total(n))
    stored = [new for buffer, new in graph.updates if buffer in graph.carried]
    sent = [value for _, value in graph.sent if not is_sent_once(graph, value)]
    body = _needed(graph, [*sums, *stored, *sent]) - before
    return tuple(
        BEFORE if n.index in before else BODY if n.index in body else AFTER for n in graph.nodes
    )


def repeats_of(graph: Graph) -> tuple[int, ...]:
    """How often a step runs every node."""
    return tuple(1 if s == AFTER else graph.microbatches for s in sections_of(graph))


def is_sent_once(graph: Graph, sent: int) -> bool:
    """Whether a value leaves the stage once a step, after the last microbatch."""
    writer = graph.values[sent].writer
    assert writer is not None
    return graph.nodes[writer].phase == "update"


def _results(nodes: Iterable[Node]) -> list[int]:
    return [value for node in nodes for value in node.results if value is not None]


def _needed(graph: Graph, values: Iterable[int]) -> set[int]:
    """The numbers of the nodes on which the values depend."""
    return {node.index for node in needed(graph.nodes, values)}
