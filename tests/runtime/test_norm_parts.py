"""What a run with batch norms over microbatches is verified against: plain torch on the whole
batch, whose batch norms see one microbatch after another."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.norm_parts import norms_of_parts


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(torch.relu(self.norm(self.first(x))))
        return F.batch_norm(x, self.mean, self.variance, training=self.training)


def test_parts_of_a_batch_are_those_of_plain_accumulation() -> None:
    torch.manual_seed(0)
    one = Normed().double()
    other = copy.deepcopy(one)
    x, target = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 4, (12,))
    for part, wanted in zip(x.chunk(3), target.chunk(3), strict=True):
        (F.cross_entropy(one(part), wanted) / 3).backward()
    with norms_of_parts(other, 3):
        loss = F.cross_entropy(other(x), target)
    loss.backward()  # type: ignore[no-untyped-call]
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14, msg=name)
    for (name, a), (_, b) in zip(one.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0, msg=name)
    assert int(other.norm.num_batches_tracked) == 3


def test_one_part_and_evaluation_are_left_alone() -> None:
    torch.manual_seed(0)
    net = Normed().double()
    x = torch.randn(12, 6, dtype=torch.float64)
    with norms_of_parts(net, 1):
        whole = net(x)
    assert torch.equal(whole, net(x)) and int(net.norm.num_batches_tracked) == 2
    net.eval()
    whole = net(x)
    with norms_of_parts(net, 3):
        assert torch.equal(net(x), whole)
    assert int(net.norm.num_batches_tracked) == 2
