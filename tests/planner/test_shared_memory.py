"""Tensors that are views of one memory, against what plain torch makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cost_models.errors import NotTraceable
from planner.trace.trace import trace
from planner.workload.parts import workload_of
from planner.workload.workload import Workload

F = nn.functional


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


class Slow(Net):
    """A copy that was to stand still, and has its numbers where the weight has them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", self.a.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + F.linear(x, self.first)[:, :4]
        return out


class Halves(Net):
    """One weight in two names, of which the second has the last rows of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(6, 4)
        self.c.weight.data = self.a.weight.data[4:]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + self.c(x)
        return out


class Row(Net):
    """A buffer that is a row of another, which every step writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2, 4))
        self.register_buffer("row", self.seen[1])

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.seen.add_(y.detach().mean(0))
        return y * (1 + self.row)


class Kept(Net):
    """The weight's numbers in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.data = [p.data for p in self.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) * self.data[-1].cos()
        return out


class Apart(Net):
    """Weights side by side in one memory, by rows and by columns; and two views of a table that
    no step changes."""

    def __init__(self) -> None:
        super().__init__()
        rows, columns = torch.randn(12, 6), torch.randn(6, 8).t()
        self.a.weight.data, self.c = rows[:8], nn.Parameter(rows[8:])
        self.d, self.e = nn.Parameter(columns[:, ::2]), nn.Parameter(columns[:, 1::2])
        self.register_buffer("table", torch.linspace(0, 1, 6))
        self.register_buffer("part", self.table[:4])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + F.linear(x * self.table, self.c) * self.part
        return out + F.linear(x[:, :3], self.d)[:, :4] - F.linear(x[:, :3], self.e)[:, :4]


def workload(kind: type[Net]) -> Workload:
    return workload_of(
        "net", kind(), (torch.randn(6, 6), torch.randint(0, 4, (6,))), F.cross_entropy
    )


def changed_by_a_step(kind: type[Net]) -> set[str]:
    """What one step of plain torch changes."""
    torch.manual_seed(0)
    net = kind()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters())
    F.cross_entropy(net(torch.randn(6, 6)), torch.arange(6) % 4).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {
        name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Slow, "'a.weight' and 'first' share memory"),
        (Halves, "'a.weight' and 'c.weight' share memory"),
        (Row, "'seen' and 'row' share memory, and a step changes 'seen'"),
        (Kept, r"'b.bias' and 'data\[3\]' share memory"),
    ],
)
def test_what_shares_memory_with_something_that_changes_is_refused_by_name(
    kind: type[Net], words: str
) -> None:
    with pytest.raises(NotTraceable, match=words) as caught:
        trace(lambda: workload(kind))
    assert "\n" not in str(caught.value)


def test_memory_that_is_not_in_common_and_tables_that_stay_are_planned() -> None:
    assert {"table", "part"}.isdisjoint(changed_by_a_step(Apart))
    graph = trace(lambda: workload(Apart)).graph
    assert {p.name for p in graph.parameters} == {
        "a.weight",
        "a.bias",
        "b.weight",
        "b.bias",
        "c",
        "d",
        "e",
    }


def test_plain_torch_changes_what_is_refused() -> None:
    assert "first" in changed_by_a_step(Slow)
    assert "row" in changed_by_a_step(Row)
