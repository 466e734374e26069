"""The sections of a step in microbatches."""

from __future__ import annotations

from planner.graph.graph import Graph, Node, Parameter, Ref, Value
from planner.graph.sections import AFTER, BEFORE, BODY, sections_of


def graph_of(
    *nodes: tuple[str, tuple[int, ...], dict[str, bool]], loss: int, gradient: int
) -> Graph:
    """A graph whose value 0 is a parameter, 1 an input, 2 + n the result of node n; nodes by op,
    operands and keyword arguments."""
    kinds = ("parameter", "input", *("activation" for _ in nodes))
    values = tuple(
        Value(id=i, shape=(), dtype="float32", kind=k, name=str(i), writer=i - 2 if i > 1 else None)
        for i, k in enumerate(kinds)
    )
    made = tuple(
        Node(
            index=i,
            op=op,
            args=tuple(map(Ref, operands)),
            kwargs=tuple(kwargs.items()),
            results=(i + 2,),
            result_shapes=((),),
            result_dtypes=("float32",),
            phase="forward",
            path="",
        )
        for i, (op, operands, kwargs) in enumerate(nodes)
    )
    return Graph(
        nodes=made,
        values=values,
        parameters=(Parameter(name="0", value=0, gradient=gradient),),
        inputs=(1,),
        buffers=(),
        loss=loss,
        microbatches=4,
    )


def test_totals_run_before_and_what_reads_whole_sums_after() -> None:
    graph = graph_of(
        ("aten.abs.default", (1,), {}),  # 2: counts one microbatch's targets
        ("shardwright.accumulate", (2,), {"ahead": True}),  # 3: of the whole batch
        ("aten.mul.Tensor", (0, 1), {}),  # 4
        ("aten.div.Tensor", (4, 3), {}),  # 5: one microbatch's share of the loss
        ("shardwright.accumulate", (5,), {}),  # 6
        ("aten.exp.default", (6,), {}),  # 7: of the whole loss
        ("aten.div.Tensor", (1, 3), {}),  # 8
        ("shardwright.accumulate", (8,), {}),  # 9
        ("aten.add.Tensor", (9, 0), {}),  # 10: a gradient that is the same in every microbatch too
        loss=7,
        gradient=10,
    )
    assert sections_of(graph) == (
        BEFORE, BEFORE, BODY, BODY, BODY, AFTER, BODY, BODY, AFTER
    )  # fmt: skip
