"""Discovery: what it finds alone of ops with written rules, its cache, and what becomes of ops
of which it finds nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rule_cases import CASES, draw
from rule_proof import trial
from torch import Tensor, nn
from trace_models import workload

from planner.dims.subdims import call_of, infer
from planner.graph.graph import Graph, Ref
from planner.rules import RULES, Call, Signature, discovered
from planner.rules.discovery import FoundLetter, discover
from planner.trace.trace import trace

#: Common ops; of all their cases, discovery finds what the written rule says.
COMMON = (
    "aten.relu.default", "aten.gelu.default", "aten.silu.default", "aten.sigmoid.default",
    "aten.tanh.default", "aten.exp.default", "aten.rsqrt.default", "aten.neg.default",
    "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor",
    "aten.maximum.default", "aten.mm.default", "aten.bmm.default", "aten.sum.dim_IntList",
    "aten.sum.default", "aten.amax.default", "aten.cumsum.default", "aten._softmax.default",
    "aten._log_softmax.default", "aten._softmax_backward_data.default",
    "aten.gelu_backward.default", "aten.tanh_backward.default", "aten.threshold_backward.default",
    "aten.native_layer_norm.default", "aten.flip.default", "aten.tril.default",
    "aten.permute.default", "aten.pow.Tensor_Scalar", "aten.clone.default", "aten.sort.default",
)  # fmt: skip

Found = tuple[
    frozenset[tuple[tuple[tuple[int, int], ...], tuple[int, ...]]], frozenset[frozenset[int]]
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWRIGHT_CACHE", str(tmp_path))


def meaning(signature: Signature, call: Call) -> Found:
    """The letters that can be split, each as the operand dims that it cuts and what becomes of
    each result; and the linear groups. Only letters of an even size that some operand has:
    discovery cuts operands."""
    letters = set()
    for letter, size in enumerate(signature.sizes):
        cut = tuple(
            (o, d)
            for o, dims in enumerate(signature.operands)
            for d, dim in enumerate(dims)
            if letter in dim
        )
        if (
            letter in signature.fixed
            or size % 2
            or not cut
            or any(len(signature.operands[o][d]) > 1 for o, d in cut)
        ):
            continue
        results = []
        for r, dims in enumerate(signature.results):
            at = [d for d, dim in enumerate(dims) if letter in dim]
            results.append(at[0] if at else -2 if letter in signature.reduced_in(r) else -1)
        letters.add((cut, tuple(results)))
    return frozenset(letters), frozenset(group for group in signature.linear if group)


def test_the_list_has_thirty_ops() -> None:
    assert len(set(COMMON)) >= 30


@pytest.mark.parametrize("op", COMMON)
def test_discovery_alone_finds_the_written_rule(op: str) -> None:
    compared = 0
    for make in CASES[op]:
        for seed in range(4):
            it = trial(op, *draw(make, seed), taken_apart=False)
            call = call_of(it.graph, it.node)
            # If one tensor is read twice, discovery draws two.
            shared = len(set(it.node.operands)) < len(it.node.operands)
            if (
                shared
                or not call.operands
                or any(size == 3 for shape in call.operands for size in shape)
            ):
                continue
            dtypes = tuple(str(t.dtype).removeprefix("torch.") for t in it.operands)
            found, written = discovered.signature_of(call, dtypes), RULES[op].signature(call)
            compared += 1
            (letters, linear), wanted = meaning(found, call), meaning(written, call)
            assert letters == wanted[0], (call, found, written)
            # For whole numbers only written rules pass partial sums.
            if not all("float" in dtype for dtype in dtypes):
                continue
            if all(size > 1 for shape in call.operands for size in shape):
                assert linear == wanted[1], (call, found, written)
            else:  # of one element, more is true: a maximum is linear
                assert linear >= wanted[1], (call, found, written)
    assert compared


class Apply(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.linear(x))


def graph_of(f: Callable[[Tensor], Tensor]) -> Graph:
    return trace(lambda: workload(Apply(f), torch.randn(8, 8), torch.randn(8, 4))).graph


def source_of(graph: Graph, op: str) -> Signature:
    dims = infer(graph)
    return next(dims.ops[n.index].signature for n in graph.nodes if op in n.op)


def test_an_op_without_a_rule_is_discovered() -> None:
    graph = graph_of(lambda x: torch.erfinv(0.9 * torch.tanh(x)))
    assert "aten.erfinv.default" not in RULES
    signature = source_of(graph, "erfinv")
    assert signature.source == "discovered"
    assert signature.fixed == frozenset()
    assert signature.sizes == (8, 4)


def test_an_op_of_which_nothing_is_found_is_replicated() -> None:
    call = Call(op="aten.linalg_det.default", args=(), kwargs=(), operands=((4, 4),), results=((),))
    assert discover(call, ("float32",)) is None
    signature = discovered.signature_of(call, ("float32",))
    assert signature.source == "replicated"
    assert signature.fixed == frozenset({0, 1})


def test_findings_are_kept_and_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(lambda x: torch.erfinv(0.9 * torch.tanh(x)))
    first = source_of(graph, "erfinv")
    assert list(discovered.cache_folder().glob("*.json"))
    monkeypatch.setattr(discovered, "discover", lambda *_: pytest.fail("discovered again"))
    assert source_of(graph, "erfinv") == first


def test_a_broken_file_of_the_cache_is_discovered_again() -> None:
    graph = graph_of(lambda x: torch.erfinv(0.9 * torch.tanh(x)))
    first = source_of(graph, "erfinv")
    for path in discovered.cache_folder().glob("*.json"):
        path.write_text("{")
    assert source_of(graph, "erfinv") == first


@pytest.mark.parametrize("args", [(-40.0, -50.0), (40.0, 0.0)])
def test_a_function_that_bends_far_away_is_not_linear(args: tuple[float, float]) -> None:
    call = Call(
        op="aten.threshold.default",
        args=(Ref(0), *args),
        kwargs=(),
        operands=((8,),),
        results=((8,),),
    )
    found = discover(call, ("float64",))
    assert found is not None
    assert found.linear == ()


def test_what_trusts_its_indices_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.rules.discovery.run", None)
    shapes = ((6, 4), (9,), (3,))
    call = Call(
        op="aten._embedding_bag_forward_only.default",
        args=(Ref(0), Ref(1), Ref(2)),
        kwargs=(),
        operands=shapes,
        results=((3, 4), (9,), (3,), (3,)),
    )
    assert discover(call, ("float64", "int64", "int64")) is None


def test_lists_of_fewer_tensors_and_refusals_are_no_errors() -> None:
    call = Call(
        op="aten.tensor_split.sections",
        args=(Ref(0), 3),
        kwargs=(),
        operands=((6, 4),),
        results=((2, 4),) * 3,
    )
    found = discover(call, ("float64",))
    assert found is None or all(len(letter.results) == 3 for letter in found.letters)
    empty = Call(
        op="aten.tensor_split.indices",
        args=(Ref(0), (2, 9)),
        kwargs=(),
        operands=((6, 4),),
        results=((2, 4), (4, 4), (0, 4)),
    )
    found = discover(empty, ("float64",))
    assert found is None or all(len(letter.results) == 3 for letter in found.letters)


@pytest.mark.parametrize(
    ("op", "given", "result"),
    [
        ("aten.pixel_unshuffle.default", (6, 4, 4, 12), (6, 16, 2, 6)),
        ("aten.pixel_shuffle.default", (6, 16, 2, 6), (6, 4, 4, 12)),
    ],
)
def test_a_dim_that_gets_larger_or_smaller_is_split_by_runs(
    op: str, given: tuple[int, ...], result: tuple[int, ...]
) -> None:
    """A letter's size is that of the smaller dim: each of its elements is a run of the larger
    one."""
    call = Call(op=op, args=(Ref(0), 2), kwargs=(), operands=(given,), results=(result,))
    found = discovered.signature_of(call, ("float64",))
    for dims, shape in ((found.operands[0], given), (found.results[0], result)):
        assert [math.prod(found.sizes[letter] for letter in dim) for dim in dims] == list(shape)
    channels = found.operands[0][1][0]
    assert found.results[0][1][0] == channels
    assert found.sizes[channels] == 4
    assert channels not in found.fixed


def test_a_result_that_is_empty_is_no_reason_to_split() -> None:
    letter = FoundLetter(operands=((0, 0),), results=(0,), contiguous=True)
    call = Call(
        op="aten.relu.default", args=(Ref(0),), kwargs=(), operands=((4,),), results=((0,),)
    )
    assert discovered._size(call, letter) == 0
