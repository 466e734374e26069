"""Where a step's tensors lie: the generated step runs on the meta device, which stands for any
that is not the host, and no op may give a tensor in the host's memory. What kernels compute, and
which of CUDA's they pick, is not seen here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_plans import ask_for, planned
from torch import Tensor, nn

from planner.kernels import step_key
from planner.program.actions import STEP
from planner.program.operators import makes_tensors
from planner.program.program import Program
from planner.torch_private.modes import TorchDispatchMode
from planner.workload.ask import Ask, build
from runtime.executor import Executor
from runtime.source import generate

AWAY = torch.device("meta")


class Making(nn.Module):
    """Makes tensors of its own: noise, places, numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(8))
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x) + 0.1 * torch.randn(8) + torch.tensor([0.5, 1.0] * 4)
        self.seen.mul_(0.9).add_(0.1 * h.detach().mean(0))
        h = F.dropout(h * torch.linspace(0.0, 1.0, 8), 0.2)
        logits: Tensor = self.head(
            torch.where(torch.rand_like(h) < 0.5, h, h.flip(0)) + torch.arange(8) * 0.01
        )
        return logits


def making(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    return Making(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


class NothingOnTheHost(TorchDispatchMode):
    """Refuses every op that gives a tensor in the host's memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            assert not isinstance(tensor, Tensor) or tensor.device == AWAY, (
                f"{func} gave a tensor on {tensor.device}"
            )
        return out


def step_away(program: Program, ask: Ask) -> tuple[Executor, tuple[Tensor, ...]]:
    """One step but for its update, which torch.optim does, with parameters and batch away from
    the host; and what it returned."""
    workload = build(ask)
    executor = Executor(program, workload, device=AWAY)
    local = executor.local_batch(workload.batch)
    key = {state.value: step_key(0, 0) for state in program.inputs if state.kind == "key"}
    step = generate(
        program,
        STEP,
        rank=0,
        groups={},
        device=AWAY,
        update=lambda *gradients: None,
        recorded=False,
        kernels={},
    )
    with torch.no_grad(), NothingOnTheHost():
        return executor, step.run({**executor._state, **local, **key}, None)


@pytest.mark.parametrize(
    "name", ["lstm", "gru", "gpt", "t5", "resnet", "dlrm", "dropped", "normed", "making"]
)
def test_nothing_of_a_step_lies_in_the_hosts_memory(name: str) -> None:
    if name == "making":
        ask = Ask(
            model=f"{Path(__file__).resolve()}:making",
            batch=8,
            seq=None,
            settings={},
            dtype="float32",
            num_devices=1,
        )
    else:
        ask = ask_for(name, 1, dtype="float32", clip_norm=1.0)
    executor, returned = step_away(planned(ask, "a=1").program, ask)
    assert {
        t.device
        for t in (*executor._state.values(), *executor.parameter_shards().values(), *returned)
    } == {AWAY}


def test_under_mixed_precision_too() -> None:
    ask = ask_for("gpt", 1, dtype="float32", compute="bfloat16")
    _, returned = step_away(planned(ask, "a=1").program, ask)
    assert {t.device for t in returned} == {AWAY}


def test_ops_that_make_tensors_are_known_by_their_schema() -> None:
    making = (
        "aten.arange.default",
        "aten.full.default",
        "aten.scalar_tensor.default",
        "shardwright.uniform",
        "shardwright.constant",
    )
    assert all(map(makes_tensors, making))
    taking = (
        "aten.ones_like.default",
        "aten.new_zeros.default",
        "aten._to_copy.default",
        "aten.add.Tensor",
        "shardwright.dropout",
    )
    assert not any(map(makes_tensors, taking))
