"""Parameters that take no part in the loss stay as they are; their number is not counted, and
the report names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trace_models import workload

from cost_models.cluster import load_cluster
from cost_models.errors import NotTraceable
from planner import plan
from planner.report.mesh_words import mesh_body
from planner.trace.gradients import check_untouched
from planner.trace.trace import trace
from planner.workload.batches import flatten
from planner.workload.workload import Workload
from runtime.training import TrainRequest, train_rank


class Block(nn.Module):
    """`spare` is never run; of `gate` only the sign is read."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gate, self.spare = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) * (self.gate(x) > 0)


def net(depth: int = 2) -> nn.Sequential:
    return nn.Sequential(*(Block() for _ in range(depth)), nn.Linear(6, 4))


def built(depth: int = 2) -> Workload:
    return workload(net(depth), torch.randn(8, 6), torch.randn(8, 4))


UNUSED = tuple(
    f"{block}.{name}.{kind}"
    for block in range(2)
    for name in ("gate", "spare")
    for kind in ("weight", "bias")
)


def test_what_takes_no_part_in_the_loss_is_no_parameter_of_the_step() -> None:
    traced = trace(built)
    assert traced.unused == UNUSED
    assert [p.name for p in traced.graph.parameters] == [
        n for n, _ in net().named_parameters() if n not in UNUSED
    ]
    readers = traced.graph.readers()
    read = {v.name for v in traced.graph.values if v.kind == "buffer" and readers[v.id]}
    assert read == {n for n in UNUSED if "gate" in n}


def test_repeated_blocks_have_them_too() -> None:
    few, whole = trace(lambda: built(10)), trace(lambda: built(10), whole=True)
    assert few.depth == 10
    assert few.unused == whole.unused
    assert few.graph.digest() == whole.graph.digest()


def test_no_parameter_at_all_is_refused() -> None:
    class Idle(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach() + x

    with pytest.raises(NotTraceable, match="no parameter takes part in the loss"):
        trace(
            lambda: workload(Idle(4, 4), torch.randn(8, 4, requires_grad=True), torch.randn(8, 4))
        )


def test_a_gradient_that_was_not_recorded_is_not_taken_for_none() -> None:
    weights = {name: nn.Parameter(torch.ones(2)) for name in ("a", "b")}
    check_untouched(["b"], weights, lambda: weights["a"].sum(), "test")
    with pytest.raises(NotTraceable, match=r"parameters b have a gradient after loss.backward\(\)"):
        check_untouched(["b"], weights, lambda: (weights["a"] + weights["b"]).sum(), "test")
    assert all(weight.grad is None for weight in weights.values())


def test_they_are_told_and_stay_as_they_are(tmp_path: Path) -> None:
    model, batch = net(), (torch.randn(8, 6), torch.randn(8, 4))
    planned = plan(
        model,
        batch,
        F.mse_loss,
        cluster=load_cluster("cpu", num_devices=1),
        folder=tmp_path,
        optimizer="adamw",
    )
    told = [part for part in mesh_body(planned.plan) if "not part of the loss" in str(part)]
    assert told == ["not part of the loss, so never updated: " + ", ".join(UNUSED)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors, nest = flatten(batch)
    torch.save([(tensors, str(nest))], tmp_path / "batches.pt")
    request = TrainRequest(
        plan=str(planned.path),
        batches=str(tmp_path / "batches.pt"),
        result=str(tmp_path / "result.pt"),
    )
    train_rank(request, lambda _: None)
    after = torch.load(tmp_path / "result.pt", weights_only=True)["parameters"]
    assert set(after) == set(before)
    assert {name for name in before if torch.equal(before[name], after[name])} == set(UNUSED)
