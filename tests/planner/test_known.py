"""Values that depend on no data are known while tracing; those that do are not, however they
came to be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trace_models import workload

from cost_models.errors import NotTraceable
from planner.graph.graph import Graph
from planner.kernels.windows import windows_of
from planner.state.known import Known, is_known
from planner.torch_private.fake_tensors import FakeTensorMode
from planner.trace.trace import trace


class Of(nn.Module):
    """A linear layer, and `f` of its result and of itself."""

    def __init__(self, f: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("ones", torch.ones(4))
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, self.linear(x))


def graph_of(f: Callable[[nn.Module, Tensor], Tensor]) -> Graph:
    return trace(
        lambda: workload(
            Of(f), torch.zeros(8, 6), torch.zeros(8, 4), loss=lambda y, t: (y**2).sum()
        )
    ).graph


def branch(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[:1], dtype=torch.long)
    return x * 2 if (mask == 1).all() and mask.sum().item() == 8 else -x


def like(m: nn.Module, x: Tensor) -> Tensor:
    ones, more = torch.ones_like(x[:, 0], dtype=torch.bool), x.new_full((8,), 2.0)
    return x * 2 if ones.all() and int(more.sum()) == 16 else -x


def pick(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.arange(8) % 2 == 0
    return x[mask]


def numbers(m: nn.Module, x: Tensor) -> Tensor:
    sizes = torch.full((2,), 4)
    return torch.cat(
        [x[: int(n)] * s for n, s in zip(sizes, torch.linspace(0, 1, 2).tolist(), strict=True)]
    )


def written(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.zeros(8, dtype=torch.long)
    mask[:4] = 1
    return x[: mask.sum().item()]


def sizes(m: nn.Module, x: Tensor) -> Tensor:
    large = [F.interpolate(x[None, None], size=(n, n)) for n in torch.tensor([8, 8]) * 2]
    return large[0][0, 0]


def buffer(m: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([x, x]) if m.ones.any() else -x


def edges(m: nn.Module, x: Tensor) -> Tensor:
    return x[: int((m.ones * 2).sum()) - 2]


@pytest.mark.parametrize(
    ("f", "rows"),
    [
        (branch, 8),
        (like, 8),
        (pick, 4),
        (numbers, 8),
        (written, 4),
        (sizes, 16),
        (buffer, 16),
        (edges, 6),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_is_made_of_numbers_and_never_changes_decides(
    f: Callable[[nn.Module, Tensor], Tensor], rows: int
) -> None:
    graph = graph_of(f)
    assert any(v.shape[:1] == (rows,) for v in graph.values if v.writer is not None)


def data(m: nn.Module, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def mixed(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.ones(8, 4)
    mask += x
    return x if mask.any() else -x


def through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.ones(8, 4)
    mask[0].copy_(x[0])
    return x if mask.any() else -x


def changed(m: nn.Module, x: Tensor) -> Tensor:
    ones, m.ones = m.ones, m.ones * 0.5
    return x if m.ones.any() and ones[0] == 1 else -x


def filled(m: nn.Module, x: Tensor) -> Tensor:
    out = x * float(m.ones[0])
    m.ones.fill_(2.0)
    return out


def drawn(m: nn.Module, x: Tensor) -> Tensor:
    return x if torch.rand(()) > 0.5 else -x


@pytest.mark.parametrize(
    "f", [data, mixed, through_a_view, changed, filled, drawn], ids=lambda f: f.__name__
)
def test_data_is_not_known(f: Callable[[nn.Module, Tensor], Tensor]) -> None:
    with pytest.raises(NotTraceable, match="the step depends on the value of a tensor"):
        graph_of(f)


def test_a_batch_is_data_although_it_was_made_of_numbers() -> None:
    class Inputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x if x.any() else -x)  # type: ignore[no-any-return]

    with pytest.raises(NotTraceable, match="the step depends on the value of a tensor"):
        trace(lambda: workload(Inputs(), torch.zeros(8, 6), torch.zeros(8, 4), loss=F.mse_loss))


def test_values_are_those_that_torch_computes() -> None:
    def work() -> Tensor:
        x = torch.arange(24).reshape(4, 6)
        x[1:3] += 1
        return torch.where(x % 5 < 2, x, -x).float().softmax(-1)[:, ::2]

    with FakeTensorMode(), Known() as known:
        found = known.values[work()]
    torch.testing.assert_close(found, work())


def test_what_a_branch_can_be_taken_on_is_told() -> None:
    assert is_known(torch.ones(2))
    with FakeTensorMode(), Known():
        assert is_known(torch.arange(4) > 2)
        assert not is_known(torch.rand(4) > 0.5)
    with FakeTensorMode():
        assert not is_known(torch.ones(2))


@pytest.mark.parametrize("shape", [(3, 12, 5), (3, 3, 4, 5)], ids=["one dim", "side by side"])
@pytest.mark.parametrize("turned", [False, True])
def test_overlapping_windows_are_slices(shape: tuple[int, ...], turned: bool) -> None:
    x = (
        torch.randn(3, 5, 12, dtype=torch.float64).transpose(1, 2)
        if turned
        else torch.randn(3, 12, 5, dtype=torch.float64)
    )
    x = x.unflatten(1, shape[1:-1]).requires_grad_()
    last, row = x.stride(-1), x.stride(-2)
    size, stride = (3, 5, 4, 5), (x.stride(0), 2 * row, row, last)
    found = windows_of(x, size, stride)
    assert found is not None
    torch.testing.assert_close(found, x.as_strided(size, stride))
    weights = torch.randn(size, dtype=torch.float64)
    (ours,) = torch.autograd.grad((found * weights).sum(), x)
    (theirs,) = torch.autograd.grad((x.as_strided(size, stride) * weights).sum(), x)
    torch.testing.assert_close(ours, theirs)
    # Windows of 5 in steps of 3.
    assert windows_of(x, (3, 4, 5, 5), (x.stride(0), 3 * row, row, last)) is None
