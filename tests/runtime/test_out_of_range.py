"""Indices past what they index: refused where plain torch refuses them, in one process and where
no rank has the row or the class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.cluster import load_cluster
from cost_models.errors import OutOfRange
from planner import plan
from planner.graph.layout import Mesh
from planner.kernels import cross_entropy, embedding_shard
from planner.lowering.lower import lower
from planner.plans.models import modelled
from planner.program.program import Program
from planner.solver.exact.ilp import solve
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import read_choices
from planner.strategy.costing import Costing
from planner.strategy.problem import problem_of
from planner.strategy.traced_model import Pins
from planner.strategy.update_costs import total_gradient_bytes
from planner.torch_private.device import assert_on_device
from planner.trace.trace import trace
from planner.workload.parts import workload_of
from planner.workload.workload import Workload
from runtime.executor import Executor
from runtime.training import train_plan

N, BATCH = 10, 8
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")


class Looked(nn.Module):
    """Calls `look` on itself, a row of scores (batch, N) and ids (batch)."""

    def __init__(self, look: Callable[[Looked, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.look = look
        self.linear, self.table, self.bag = (
            nn.Linear(4, N),
            nn.Embedding(N, 6),
            nn.EmbeddingBag(N, 6),
        )

    def forward(self, h: Tensor, ids: Tensor) -> Tensor:
        return self.look(self, self.linear(h), ids)


class Model(nn.Module):
    def __init__(self, look: Callable[[Looked, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = Looked(look)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        y: Tensor = self.body(x, ids)
        return y


def counted(m: Looked, h: Tensor, ids: Tensor) -> Tensor:
    """How often each id is there: no gradient goes back through the sum, whose own look-up would
    be refused."""
    return h * h.new_zeros(N).index_add(0, ids, h.new_ones(BATCH))


def put(m: Looked, h: Tensor, ids: Tensor) -> Tensor:
    return h * h.new_zeros(N).index_put((ids,), h.new_ones(BATCH), accumulate=True)


#: What is looked up, whether an id of -1 is the last, as in Python, and one of -100 is ignored.
CASES: dict[str, tuple[Callable[[Looked, Tensor, Tensor], Tensor], bool, bool]] = {
    "embedding": (lambda m, h, ids: m.table(ids).sum(1, keepdim=True) + h, False, False),
    "bag": (
        lambda m, h, ids: m.bag(ids[:, None].expand(-1, 2)).sum(1, keepdim=True) + h,
        False,
        False,
    ),
    "rows": (lambda m, h, ids: m.table.weight[ids].sum(1, keepdim=True) + h, True, False),
    "pairs": (lambda m, h, ids: h[torch.arange(BATCH), ids], True, False),
    "gather": (lambda m, h, ids: h.gather(1, ids[:, None]), False, False),
    "scatter_add": (lambda m, h, ids: h.scatter_add(1, ids[:, None], h[:, :1]), False, False),
    "index_select": (
        lambda m, h, ids: m.table.weight.index_select(0, ids).sum(1, keepdim=True) + h,
        False,
        False,
    ),
    "one_hot": (lambda m, h, ids: h * F.one_hot(ids, N), False, False),
    "index_add": (counted, False, False),
    "index_put": (put, True, False),
    "cross_entropy": (lambda m, h, ids: F.cross_entropy(h, ids), False, True),
    "nll_loss": (lambda m, h, ids: F.nll_loss(h.log_softmax(1), ids), False, True),
}


def workload(look: Callable[[Looked, Tensor, Tensor], Tensor]) -> Workload:
    torch.manual_seed(0)
    batch = torch.randn(BATCH, 4), torch.arange(BATCH), torch.zeros(BATCH)
    return workload_of("model", Model(look), batch, lambda out, _: out.square().mean())


def program_of(look: Callable[[Looked, Tensor, Tensor], Tensor]) -> Program:
    model = modelled(trace(lambda: workload(look), "model"))
    costing = Costing(
        load_cluster("cpu", num_devices=1), (1,), "adam", total_gradient_bytes(model.graph)
    )
    table = build_cost_table(model, costing, Pins())
    return lower(
        model, Mesh(("a",), (1,)), read_choices(table, solve(problem_of(table)).choice), costing
    )


@pytest.mark.parametrize("name", CASES)
def test_what_torch_refuses_is_refused_with_its_place_and_value(name: str) -> None:
    look, wraps, ignores = CASES[name]
    program = program_of(look)
    for bad in (N + 2, -1, -100):
        x, ids, target = workload(look).batch
        ids = ids.clone()
        ids[3] = bad
        plain = workload(look)
        if (bad == -1 and wraps) or (bad == -100 and ignores):
            loss, _ = plain.loss_of((x, ids, target))
            assert Executor(program, workload(look)).step((x, ids, target)) == pytest.approx(
                loss.item(), rel=1e-5
            )
            continue
        with pytest.raises((IndexError, RuntimeError)):
            plain.loss_of((x, ids, target))
        with pytest.raises(IndexError, match=rf"rank 0: instruction .*body.* {bad} ") as caught:
            Executor(program, workload(look)).step((x, ids, target))
        assert isinstance(caught.value, OutOfRange)
        assert "\n" not in str(caught.value)


def test_a_shard_refuses_what_is_no_ranks() -> None:
    """Rows and classes 4 to 7 of 8, as the second of two ranks has them."""
    table, logits = torch.randn(4, 3), torch.randn(5, 4)
    for bad in (8, 999, -1):
        ids = torch.tensor([0, 7, bad, 3, 5])
        with pytest.raises(OutOfRange, match=f"id {bad} is out of range: valid are 0 to 7"):
            embedding_shard(table, ids, 4, 8)
        with pytest.raises(
            OutOfRange,
            match=f"target {bad} is out of range: valid are 0 to 7, and -100, which is ignored",
        ):
            cross_entropy(logits, ids, -100, offset=4, classes=8)
    ignored = torch.tensor([0, 7, -100, 3, 5])
    cross_entropy(logits, ignored, -100, offset=4, classes=8)


def test_a_device_asserts_what_a_cpu_looks_at() -> None:
    """The op that CUDA is given, where the CPU runs it too."""
    assert_on_device(torch.tensor(True), "target out of range: valid are 0 to 7")
    with pytest.raises(RuntimeError, match="target out of range: valid are 0 to 7"):
        assert_on_device(torch.tensor(False), "target out of range: valid are 0 to 7")


def test_two_ranks_refuse_an_id_of_neither(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(8, 1), nn.Flatten(1), nn.Linear(3, 6))
    batch = torch.randint(0, 8, (4, 3)), torch.randint(0, 6, (4,))
    pins = ["*=tensor"]
    found = plan(
        module,
        batch,
        F.cross_entropy,
        num_devices=2,
        mesh="tp=2",
        pins=pins,
        folder=tmp_path / "plan",
    )
    ops = {getattr(i, "op", "") for i in found.found.program.instructions}
    assert "shardwright.embedding_shard" in ops
    with pytest.raises(OutOfRange, match=r"rank \d: .*id 8 is out of range: valid are 0 to 7"):
        train_plan(found.path, [(torch.full((4, 3), 8), batch[1])], device="cpu")
