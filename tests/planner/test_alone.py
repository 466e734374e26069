"""A model that asks whether it is one of several processes is told that it is alone, wherever it
is built, traced or verified."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from trace_models import workload

from planner.trace.trace import trace
from planner.workload.workload import Workload
from runtime.parameters import build


class Centred(nn.Linear):
    """Takes the mean of all processes away, as if each had a part of the batch."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.ranks = int(os.environ.get("WORLD_SIZE", "1"))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        mean = y.mean(0)
        if dist.is_available() and dist.is_initialized():
            mean = mean.clone()
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        return (y - mean) / self.ranks


def built() -> Workload:
    return workload(Centred(), torch.randn(8, 6), torch.randn(8, 4))


@pytest.fixture
def in_a_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is rank 1 of 2, as far as the environment tells."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_rank_traces_what_was_planned(in_a_group: None) -> None:
    inside = trace(built).graph.digest()
    assert dist.is_initialized()
    assert os.environ["WORLD_SIZE"] == "2"
    assert "aten.div.Tensor" not in {
        node.op for node in trace(built).graph.nodes if node.path == "all_reduce"
    }
    dist.destroy_process_group()
    assert trace(built).graph.digest() == inside
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_a_rank_builds_what_was_planned(in_a_group: None) -> None:
    assert build(built, 0).module.ranks == 1
