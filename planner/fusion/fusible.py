"""Which nodes of a graph may be members of a fused op, and where.

A member reads and writes whole tensors element by element, or normalises their last dims. What
depends on the batch alone, what the step returns, casts of parameters and additions that lowering
joins to a product stay as they are: other passes look for them.
"""

from __future__ import annotations

from planner.dims.subdims import SubDims
from planner.dims.ties import block_of
from planner.graph.biases import adds_a_bias
from planner.graph.graph import Graph, Node, Serial
from planner.rules.pointwise import POINTWISE

__all__ = ["ALONE", "NORMS", "REPEATABLE", "fusible_nodes", "home_of", "looks", "looks_of"]

#: Ops that reduce the last dims of a row and go over the row again.
NORMS = (
    "shardwright.rms_norm",
    "shardwright.rms_norm_backward",
    "aten.native_layer_norm.default",
    "aten.native_layer_norm_backward.default",
    "aten._softmax.default",
    "aten._softmax_backward_data.default",
)
_ELEMENTWISE = frozenset(
    (
        *POINTWISE,
        "aten.neg.default",
        "aten.mul.Scalar",
        "aten.div.Scalar",
        "aten.clone.default",
        "aten._to_copy.default",
        "aten.add.Tensor",
        "aten.sub.Tensor",
        "aten.mul.Tensor",
        "aten.div.Tensor",
        "aten.where.self",
        "aten.cat.default",
        "aten.slice_backward.default",
        "shardwright.drop_by",
        "shardwright.dropout_backward",
    )
)
#: Members that are worth compiling alone: a kernel of theirs takes many passes.
ALONE = ("shardwright.drop_by",)
#: Members that are cheap to run again: element by element, and nothing else.
REPEATABLE = _ELEMENTWISE - {
    "aten.cat.default",
    "aten.slice_backward.default",
    "shardwright.drop_by",
}
#: Reductions that are members if they are over the last dim and keep it: then their result is read
#: beside the row.
_REDUCTIONS = ("aten.sum.dim_IntList", "aten.amax.default", "aten.amin.default")


def fusible_nodes(graph: Graph, dims: SubDims) -> frozenset[int]:
    """The indices of the nodes that may be members."""
    trained = _from_parameters(graph)
    last = _outputs(graph, dims)
    held = {parameter.value for parameter in graph.parameters}
    return frozenset(
        node.index
        for node in graph.nodes
        if _is_member(node)
        and node.index in trained
        and not last.intersection(node.results)
        and not adds_a_bias(graph, node)
        and not (
            node.op == "aten._to_copy.default"
            and looks_of(graph, dims, node.operands[0])[1] in held
        )
    )


def looks(dims: SubDims, node: int) -> bool:
    """Whether the node only looks at its operand: a view, or a piece of it."""
    op = dims.ops[node]
    return op.signature.kind == "view" and bool(op.operands)


def looks_of(graph: Graph, dims: SubDims, value: int) -> tuple[list[Node], int]:
    """The nodes through which a value looks at another, in order, and that other: the value itself
    if it is no view."""
    chain: list[Node] = []
    while (writer := graph.values[value].writer) is not None and looks(dims, writer):
        chain.append(graph.nodes[writer])
        value = chain[-1].operands[0]
    return chain[::-1], value


def home_of(path: str, inner: frozenset[str]) -> str:
    """The layer in which a module's ops may be fused: the innermost numbered one, such as `h.3` for
    `h.3.attn.qkv`; empty for all modules that are in none. A numbered module without modules of its
    own, such as an activation in a sequence, belongs to the layer of the module around it. `inner`
    are the paths of all modules that have modules of their own."""
    while path and path.rpartition(".")[2].isdigit() and path not in inner:
        path = path.rpartition(".")[0]
    return block_of(path)


def _is_member(node: Node) -> bool:
    if len(node.result_shapes[0]) < 2 or any(isinstance(a, Serial) for a in node.args):
        return False
    if node.op in _REDUCTIONS:
        return len(node.args) > 2 and node.args[2] is True and _of_rows(node)
    return node.op in NORMS or node.op in _ELEMENTWISE


def _of_rows(node: Node) -> bool:
    """Whether a reduction is over the last dim alone."""
    rank = len(node.result_shapes[0])
    return [dim % rank for dim in node.args[1]] == [rank - 1]


def _from_parameters(graph: Graph) -> frozenset[int]:
    """The nodes that read a parameter, or what depends on one."""
    values = {parameter.value for parameter in graph.parameters}
    out = set()
    for node in graph.nodes:
        if not values.isdisjoint(node.operands):
            out.add(node.index)
            values.update(v for v in node.results if v is not None)
    return frozenset(out)


def _outputs(graph: Graph, dims: SubDims) -> set[int | None]:
    """The values that the step returns or keeps, and those that they are views of. A norm's
    gradient of its weight is one of two results, and may be a member's."""
    out: set[int | None] = {*graph.outputs}
    for node in reversed(graph.nodes):
        if looks(dims, node.index) and not out.isdisjoint(node.results):
            out.update(node.operands)
    for node in graph.nodes:
        if node.op in NORMS and len(node.results) > 1:
            out.difference_update(node.results[1:])
    return out
