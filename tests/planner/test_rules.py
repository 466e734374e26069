"""Every op rule, by running the op whole and in shards; and that a wrong rule would be found
out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_cases import CASES, RESHAPES, draw
from rule_proof import (
    Trial,
    Wrong,
    assignments,
    caught,
    cut,
    join,
    map_refs_in_order,
    mutations,
    operand_layout,
    prove,
    result_layout,
    run_op,
    run_shard,
    trial,
)
from torch import Tensor
from trace_models import BUILDERS

from planner.dims.subdims import call_of
from planner.graph.graph import Value
from planner.rules import RULES, Signature
from planner.rules.viewing import common_letters
from planner.trace.trace import trace

SEEDS = range(5)


def test_every_op_with_a_rule_has_cases() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("op", sorted(RULES))
def test_shards_make_up_the_whole(op: str) -> None:
    proofs = 0
    for make in CASES[op]:
        for seed in SEEDS:
            for taken_apart in (False, True):
                it = trial(op, *draw(make, seed), taken_apart=taken_apart)
                for mesh, choices in assignments(it.op):
                    prove(it, mesh, choices)
                    proofs += 1
    assert proofs or op in NOTHING_TO_SPLIT


#: Ops of which no dim can be split and through which no partial sum passes.
NOTHING_TO_SPLIT = {
    "aten.arange.default", "aten.arange.start", "aten.arange.start_step",
    "aten.scalar_tensor.default", "aten.tril_indices.default", "shardwright.constant",
    "aten.max.default", "aten.min.default", "aten.prod.default", "aten.any.default",
    "aten.all.default",
}  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_every_call_of_a_model(name: str) -> None:
    """The same for the very calls that models make, on the values that come of random parameters
    and inputs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        graph = trace(BUILDERS[name]).graph
    finally:
        torch.set_default_dtype(before)
    torch.manual_seed(0)
    values = {v.id: _source(v) for v in graph.values if v.writer is None}
    done = set()
    for node in graph.nodes:
        operands = [values[v] for v in node.operands]
        args = map_refs_in_order(node.args, operands)
        out = run_op(node.op, args, node.kwargs)
        values.update({v: r for v, r in zip(node.results, out, strict=True) if v is not None})
        key = (
            node.op,
            str(map_refs_in_order(node.args, range(99))),
            call_of(graph, node).operands,
            node.kwargs,
        )
        if key in done:
            continue
        done.add(key)
        it = trial(node.op, args, dict(node.kwargs), taken_apart=False)
        assert it.node.result_shapes == node.result_shapes
        for mesh, choices in assignments(it.op, limit=6):
            prove(it, mesh, choices)


def _source(value: Value) -> Tensor:
    """A parameter, buffer or input; 0 and 1 are ids that every table has, and positive numbers
    probabilities and variances."""
    if "int" in value.dtype:
        return torch.randint(0, 2, value.shape)
    if value.kind == "parameter":
        return torch.randn(value.shape, dtype=torch.float64) * 0.3
    return torch.rand(value.shape, dtype=torch.float64) * 0.8 + 0.1


# --------------------------------------------------------------------------- a wrong rule is caught

#: torch's kernels trust what they are given here, and write out of bounds.
_CRASH = {op for op in RULES if "max_pool" in op and "backward" in op} | {
    "aten._fft_c2r.default",
    "aten._fft_r2c.default",
}

#: Mutations that are true, each with why the rule does not say so.
_TRUE = {
    (
        "shardwright.attention",
        "free 5",
    ): "the depth of the values: fused kernels want it equal to that of the keys",
    ("shardwright.masked_attention", "free 5"): "the same",
    ("shardwright.dropout", "linear 0"): "true of the result; of a mask there is no partial sum",
    ("shardwright.drop_by", "linear 0"): "the same",
    ("shardwright.receive", "linear 0"): "a value crosses between stages whole or in pieces",
    ("shardwright.send", "linear 0"): "the same",
    (
        "shardwright.lstm_backward",
        "free 2",
    ): "input features: true of our loop, not of oneDNN's reserve",
    ("shardwright.recurrent_backward", "free 2"): "input features: as of an LSTM",
    ("shardwright.masked_lstm_backward", "free 2"): "input features: as of an LSTM",
    ("shardwright.masked_recurrent_backward", "free 2"): "input features: as of an LSTM",
    ("aten.xlogy.Tensor", "linear 0"): "not where y is 0",
    ("aten.nan_to_num.default", "linear 0"): "not where there is a NaN",
    ("aten.isnan.default", "linear 0"): "not where there is a NaN",
    ("aten.isinf.default", "linear 0"): "not where there is an infinity",
    ("aten.eq.Scalar", "linear 0"): "not where they are equal",
    ("aten.ne.Scalar", "linear 0"): "not where they are equal",
    ("aten.masked_fill.Scalar", "linear 0"): "only of infinity and 0, of which 0 is said",
    ("aten.min.default", "linear 0"): "one element is its own minimum",
}


@pytest.mark.parametrize("op", sorted(set(RULES) - _CRASH))
def test_a_wrong_rule_is_caught(op: str) -> None:
    """So a letter that is fixed had to be: nothing is fixed, or denied a partial sum,
    needlessly."""
    found: dict[str, bool] = {}
    for make in CASES[op]:
        for seed in SEEDS:
            it = trial(op, *draw(make, seed), taken_apart=False)
            for name, wrong, choice in mutations(it):
                verdict = caught(wrong, choice)
                if verdict is not None:
                    found[name] = found.get(name, False) or verdict
    assert [name for name, seen in found.items() if not seen and (op, name) not in _TRUE] == []


def test_a_row_split_product_that_forgets_the_sum_is_caught() -> None:
    it = trial(
        "aten.mm.default",
        (torch.randn(4, 6).double(), torch.randn(6, 2).double()),
        {},
        taken_apart=False,
    )
    prove(it, (2,), (1,))
    (wrong,) = (wrong for name, wrong, _ in mutations(it) if name == "same 1 in 0")
    with pytest.raises(Wrong, match="should be the same"):
        prove(wrong, (2,), (1,))


# -------------------------------------------------------------------------------------------- views


def _letters(signature: Signature) -> tuple[list[int], list[int]]:
    (operand,), (result,) = signature.operands, signature.results
    return [x for dim in operand for x in dim], [x for dim in result for x in dim]


@pytest.mark.parametrize("op", ["shardwright.reshape", "aten.permute.default"])
@pytest.mark.parametrize("seed", range(40))
def test_the_letters_of_a_view_are_a_bijection(op: str, seed: int) -> None:
    it = trial(op, *draw(CASES[op][0], seed), taken_apart=False)
    if it.op.signature.view:
        before, after = _letters(it.op.signature)
        assert sorted(before) == sorted(after) == list(range(len(it.op.signature.sizes)))


def test_only_reshape_and_permute_claim_to_be_views() -> None:
    claims = {
        op
        for op in RULES
        for make in CASES[op]
        for seed in SEEDS
        if trial(op, *draw(make, seed), taken_apart=False).op.signature.view
    }
    assert claims == {"shardwright.reshape", "aten.permute.default"}


@st.composite
def _reshapes(drawn: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    factors = drawn(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        cuts = sorted(drawn(st.sets(st.integers(1, len(factors)), max_size=3)) | {len(factors)})
        ones = drawn(st.booleans())
        return tuple(math.prod(factors[a:b]) for a, b in zip([0, *cuts], cuts, strict=False)) + (
            (1,) if ones else ()
        )

    return grouped(), grouped()


@settings(max_examples=60, deadline=None)
@given(_reshapes())
def test_any_reshape(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    before, after = shapes
    found = common_letters(before, after)
    if found is not None:
        sizes, operand, result = found
        assert tuple(math.prod(sizes[x] for x in dim) for dim in operand) == before
        assert tuple(math.prod(sizes[x] for x in dim) for dim in result) == after
    it = trial("shardwright.reshape", (torch.randn(before).double(), after), {}, taken_apart=True)
    for mesh, choices in assignments(it.op):
        prove(it, mesh, choices)


@pytest.mark.parametrize(("before", "after"), RESHAPES)
def test_reshape_is_refused_only_where_dims_do_not_nest(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    assert (common_letters(before, after) is None) == (
        (before, after) in {((2, 3), (3, 2)), ((4, 2, 3), (4, 3, 2)), ((4, 9), (6, 6))}
    )


# ----------------------------------------------------------------------- letters split inside an op

_INNER = (
    "shardwright.lstm", "shardwright.lstm_backward", "shardwright.recurrent",
    "shardwright.recurrent_backward", "shardwright.masked_lstm", "shardwright.masked_lstm_backward",
    "shardwright.masked_recurrent", "shardwright.masked_recurrent_backward",
    "shardwright.cross_entropy",
)  # fmt: skip


def _inner_trials() -> list[tuple[Trial, int]]:
    """Trials of which a leaf of an inner letter is split by two ranks."""
    out = []
    for op in _INNER:
        for seed in range(4):
            for taken_apart in (False, True):
                it = trial(op, *draw(CASES[op][0], seed), taken_apart=taken_apart)
                free = [
                    leaf
                    for leaf, letter in enumerate(it.op.letter)
                    if letter in it.op.signature.inner and leaf not in it.op.fixed
                ]
                out += [(it, leaf) for leaf in free if it.op.sizes[leaf] % 2 == 0]
    return out


def _inner_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for i, (it, leaf) in enumerate(_inner_trials()):
        operands = [
            cut(operand, it.subdims.shapes[value], operand_layout(it.op, position, (leaf,)), (2,))[
                (rank,)
            ]
            for position, (operand, value) in enumerate(
                zip(it.operands, it.node.operands, strict=True)
            )
        ]
        out = run_shard(it, (2,), (leaf,), (rank,), operands, dist.group.WORLD)
        torch.save(out, Path(folder) / f"{i}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_inner_letters_with_two_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_inner_worker, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    trials = _inner_trials()
    assert {it.node.op for it, _ in trials} == set(_INNER)
    for i, (it, leaf) in enumerate(trials):
        ranks = [torch.load(tmp_path / f"{i}-{rank}.pt") for rank in range(2)]
        for r, value in enumerate(it.node.results):
            if value is None:
                continue
            shards: dict[tuple[int, ...], Tensor] = {(rank,): ranks[rank][r] for rank in range(2)}
            made = join(shards, it.subdims.shapes[value], result_layout(it.op, r, (leaf,)), (2,))
            torch.testing.assert_close(made, it.results[r], rtol=0, atol=1e-10)


def test_an_inner_letter_or_an_offset_needs_one_run() -> None:
    """Of a vocabulary taken apart into two leaves, only the first can be split: a shard must
    hold consecutive rows."""
    weight, ids = torch.randn(12, 2).double(), torch.randint(0, 12, (4,))
    it = trial("aten.embedding.default", (weight, ids), {}, taken_apart=True)
    vocabulary = [leaf for leaf, letter in enumerate(it.op.letter) if letter == 0]
    assert len(vocabulary) == 3
    assert [leaf in it.op.fixed for leaf in vocabulary] == [False, True, True]


def test_the_ranks_place_on_two_axes_is_the_outer_axis_first() -> None:
    weight, ids = torch.randn(12, 2).double(), torch.arange(12)
    it = trial("aten.embedding.default", (weight, ids), {}, taken_apart=False)
    prove(it, (2, 3), (0, 0))
    prove(it, (3, 2), (0, 0))
