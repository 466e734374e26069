"""A second opinion: our rules beside those that torch's DTensor has. Where they differ, the
difference is listed with its reason.

A call is cut at one letter of our rule and given to DTensor as shards in the layouts that the rule
says. DTensor agrees where it runs the op on them without communication and gives every result the
placement that the rule says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rule_cases import CASES, draw
from rule_proof import Trial, as_torch, cut, map_refs_in_order, operand_layout, result_layout, trial
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

# Two ranks in one process: torch has no public group like it.
from torch.testing._internal.distributed.fake_pg import FakeStore

OPS = (
    "aten.mm.default", "aten.bmm.default", "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor",
    "aten.div.Tensor", "aten.relu.default", "aten.gelu.default", "aten.silu.default",
    "aten.sigmoid.default", "aten.tanh.default", "aten.exp.default", "aten.pow.Tensor_Scalar",
    "aten.neg.default", "aten.where.self", "aten.sum.dim_IntList", "aten.sum.default",
    "aten.amax.default", "aten._softmax.default", "aten._log_softmax.default",
    "aten._softmax_backward_data.default", "aten.native_layer_norm.default",
    "aten.native_layer_norm_backward.default", "aten.embedding.default", "aten.permute.default",
    "aten.expand.default", "aten.cumsum.default", "aten.tril.default", "aten.gather.default",
    "aten.index_select.default", "aten.topk.default", "aten.sort.default",
    "aten.convolution.default", "aten.slice.Tensor", "aten.select.int", "aten.split.Tensor",
    "aten.cat.default", "aten.gelu_backward.default",
)  # fmt: skip

#: (op, what becomes of a result when a letter is cut) -> how DTensor sees it differently.
DIFFERENCES: dict[tuple[str, str], str] = {
    (
        "aten.sum.dim_IntList",
        "reduced",
    ): "of no dims at all, which means every one, DTensor reduces none and gives a split scalar",
    (
        "aten.embedding.default",
        "reduced",
    ): "the same terms: DTensor calls them MaskPartial, ours are zeros where another has the row",
    (
        "aten.tril.default",
        "passed",
    ): "DTensor replicates the op; ours passes the dims before the last two",
    (
        "aten.convolution.default",
        "reduced",
    ): "with input channels cut, DTensor calls the terms of the sum replicated",
    (
        "aten.split.Tensor",
        "passed",
    ): "DTensor gathers the dim that is split; ours cuts each of equal pieces",
}


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    assert not dist.is_initialized()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def verdict(it: Trial, leaf: int, mesh: DeviceMesh) -> str:
    """`agrees`, or how DTensor differs."""
    shards = []
    for position, (operand, value) in enumerate(zip(it.operands, it.node.operands, strict=True)):
        shape, layout = it.subdims.shapes[value], operand_layout(it.op, position, (leaf,))
        local = cut(operand, shape, layout, (2,))[(0,)]
        shards.append(
            DTensor.from_local(local, mesh, [_placement(layout[0], shape)], run_check=False)
        )
    args = map_refs_in_order(it.node.args, shards)
    namespace, name, overload = it.node.op.split(".")
    op = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    try:
        with warnings.catch_warnings(), CommDebugMode() as communication:
            warnings.simplefilter("ignore")
            out = op(*as_torch(args), **{key: as_torch(value) for key, value in it.node.kwargs})
    except NotImplementedError:
        return "no rule"
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        return f"fails: {type(error).__name__}"
    if communication.get_total_counts():
        return "communicates"
    return _compared(it, leaf, out if isinstance(out, tuple | list) else (out,))


def _compared(it: Trial, leaf: int, results: Any) -> str:
    for index, (value, result) in enumerate(zip(it.node.results, results, strict=True)):
        if value is not None and isinstance(result, DTensor):
            wanted = _placement(result_layout(it.op, index, (leaf,))[0], it.subdims.shapes[value])
            if result.placements[0] != wanted:
                return f"gives {result.placements[0]}, ours {wanted}"
    return "agrees"


def _placement(place: int, shape: Any) -> Placement:
    """A placement on a flat sub-dim as one on a dim (in these trials every dim is one sub-dim,
    or none where its size is 1)."""
    if place == -1:
        return Replicate()
    if place == -2:
        return Partial()
    return Shard([d for d, dim in enumerate(shape) for _ in dim][place])


def verdicts(op: str, mesh: DeviceMesh) -> dict[tuple[str, str], str]:
    """By letter of the rule, where the letter is the dims of operands that are cut: the first
    disagreement, or `agrees`."""
    found: dict[tuple[str, str], str] = {}
    for make in CASES[op]:
        for seed in range(4):
            it = trial(op, *draw(make, seed), taken_apart=False)
            if any(
                len(dim) > 1
                for value in (*it.node.operands, *it.node.results)
                if value is not None
                for dim in it.subdims.shapes[value]
            ):
                continue
            for leaf, size in enumerate(it.op.sizes):
                if (
                    leaf in it.op.fixed
                    or size % 2
                    or not any(leaf in operand for operand in it.op.operands)
                ):
                    continue
                reduced = any(
                    it.op.letter[leaf] in it.op.signature.reduced_in(r)
                    for r in range(len(it.node.results))
                )
                said = verdict(it, leaf, mesh)
                key = (op, "reduced" if reduced else "passed")
                if found.get(key, "agrees") == "agrees":
                    found[key] = said
    return found


@pytest.mark.parametrize("op", OPS)
def test_dtensor_agrees_or_the_difference_is_known(op: str, mesh: DeviceMesh) -> None:
    found = verdicts(op, mesh)
    assert found
    differing = {key: said for key, said in found.items() if said != "agrees"}
    known = {key: said for key, said in DIFFERENCES.items() if key[0] == op}
    assert differing == {key: differing.get(key) for key in known}, (differing, known)
