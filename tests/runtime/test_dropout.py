"""Dropout's masks and other random numbers: reproducible, independent, of the right
distribution, the same for any part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from planner.kernels import (
    Canonical,
    Random,
    dropout,
    dropout_backward,
    key_of_microbatch,
    step_key,
    uniform,
)

KEY = step_key(0, 0)


def mask_of(*shape: int, key: torch.Tensor = KEY, p: float = 0.5, number: int = 0) -> torch.Tensor:
    return dropout(torch.ones(shape), key, p, number)[1]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_that_is_dropped(p: float) -> None:
    kept = mask_of(512, 1024, p=p).double().mean().item()
    assert kept == pytest.approx(1 - p, abs=5 * math.sqrt(p * (1 - p) / 2**19))


def test_rows_columns_ops_steps_and_seeds_are_independent() -> None:
    signs = [
        2 * mask_of(512, 512, key=step_key(seed, step), number=number).double() - 1
        for seed, step, number in itertools.product(range(2), range(2), range(2))
    ]
    for one, other in itertools.combinations(signs, 2):
        assert abs((one * other).mean().item()) < 5 / 512
    for sign in signs:
        assert abs((sign[1:] * sign[:-1]).mean().item()) < 5 / 512
        assert abs((sign[:, 1:] * sign[:, :-1]).mean().item()) < 5 / 512
        assert sign.mean(0).std().item() * math.sqrt(512) == pytest.approx(1, abs=0.2)
        assert sign.mean(1).std().item() * math.sqrt(512) == pytest.approx(1, abs=0.2)


def test_a_key_repeats() -> None:
    assert torch.equal(mask_of(7, 33), mask_of(7, 33))
    assert not torch.equal(mask_of(7, 33), mask_of(7, 33, number=1))
    assert step_key(3, 1).item() == step_key(3, 1).item() != step_key(1, 3).item()


def test_a_mask_does_not_depend_on_dims_that_are_joined() -> None:
    assert torch.equal(mask_of(4, 6, 10), mask_of(24, 10).view(4, 6, 10))


def test_values_and_gradient() -> None:
    x = torch.randn(5, 9, dtype=torch.float64)
    out, mask = dropout(x, KEY, 0.25, 3)
    torch.testing.assert_close(out, torch.where(mask, x / 0.75, 0.0))
    torch.testing.assert_close(dropout_backward(x, mask, 0.25), out)
    x.requires_grad_()
    with Random(KEY):
        torch.nn.functional.dropout(x, 0.25).sum().backward()
    torch.testing.assert_close(
        x.grad, torch.where(dropout(x.detach(), KEY, 0.25, 0)[1], 1 / 0.75, 0.0).double()
    )


def test_modules_that_draw_do_so_from_the_key() -> None:
    module = nn.ModuleDict(
        {
            "lstm": nn.LSTM(4, 4, num_layers=2, dropout=0.5),
            "attention": nn.MultiheadAttention(4, 2, dropout=0.5),
            "channels": nn.Dropout2d(0.5),
            "in place": nn.Dropout(0.5, inplace=True),
        }
    )
    x = torch.randn(3, 2, 4)

    def run(key: torch.Tensor) -> torch.Tensor:
        with Random(key) as mode:
            y, _ = module["lstm"](x)
            y, _ = module["attention"](y, y, y)
            y = module["in place"](module["channels"](y[..., None])[..., 0].clone())
            assert mode.number == 4
        return y  # type: ignore[no-any-return]

    assert torch.equal(run(KEY), run(KEY))
    assert not torch.equal(run(KEY), run(step_key(0, 1)))
    module.eval()
    with Random(KEY) as mode:
        module["lstm"](x)
    assert mode.number == 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_every_recurrent_network_draws_between_its_layers_from_the_key(
    kind: type[nn.Module],
) -> None:
    module, x = kind(4, 4, num_layers=3, dropout=0.5, bidirectional=True), torch.randn(3, 2, 4)
    with Random(KEY) as mode:
        whole, _ = module(x)
    assert mode.number == 2
    with Canonical(KEY) as traced:
        by_layers, _ = module(x)
    assert traced.number == 2
    torch.testing.assert_close(by_layers, whole)


#: What draws, and the mean and standard deviation of what it draws.
DRAWN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, float]] = {
    "rand": (lambda x: torch.rand(x.shape), 0.5, 12**-0.5),
    "rand_like": (lambda x: torch.rand_like(x), 0.5, 12**-0.5),
    "randn": (lambda x: torch.randn(x.shape), 0.0, 1.0),
    "randn_like": (lambda x: torch.randn_like(x), 0.0, 1.0),
    "uniform_": (lambda x: x.clone().uniform_(-1, 3), 1.0, 4 / 12**0.5),
    "normal_": (lambda x: x.clone().normal_(2, 3), 2.0, 3.0),
    "normal": (lambda x: torch.normal(x * 0 + 2, 3.0), 2.0, 3.0),
    "exponential_": (lambda x: x.clone().exponential_(4), 0.25, 0.25),
    "bernoulli": (lambda x: torch.bernoulli(torch.full_like(x, 0.2)), 0.2, 0.4),
    "bernoulli_": (lambda x: x.clone().bernoulli_(0.2), 0.2, 0.4),
    "randint": (lambda x: torch.randint(2, 6, x.shape), 3.5, 1.25**0.5),
    "randint_like": (lambda x: torch.randint_like(x, 4), 1.5, 1.25**0.5),
    "multinomial": (
        lambda x: torch.multinomial(torch.tensor([0.0, 1.0, 3.0]), x.numel(), replacement=True),
        1.75,
        0.75**0.5 / 2,
    ),
    "gumbel_softmax": (
        lambda x: torch.nn.functional.gumbel_softmax(torch.zeros(x.numel(), 4), hard=True)[:, 0],
        0.25,
        0.1875**0.5,
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_are_those_of_their_distribution_and_of_the_key(name: str) -> None:
    draw, mean, std = DRAWN[name]
    with Random(KEY) as mode:
        one, other = draw(torch.zeros(256, 256)).double(), draw(torch.zeros(256, 256)).double()
        assert mode.number == 2
    with Random(KEY):
        assert torch.equal(draw(torch.zeros(256, 256)).double(), one)
    assert one.mean().item() == pytest.approx(mean, abs=5 * std / 256)
    assert one.std().item() == pytest.approx(std, rel=0.03)
    assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()) < 5 / 256


def test_orders_and_samples_without_replacement_hold_everything_once() -> None:
    with Random(KEY):
        order, sample = torch.randperm(100), torch.multinomial(torch.ones(3, 10), 10)
    assert order.sort().values.tolist() == list(range(100)) != order.tolist()
    assert torch.equal(sample.sort(-1).values, torch.arange(10).expand(3, 10))


def test_a_part_draws_its_part_of_the_whole() -> None:
    whole = uniform(KEY, (6, 8), 0, torch.float64)
    part = uniform(KEY, (3, 4), 0, torch.float64, (((6, 3, 3),), ((8, 4, 4),)))
    assert torch.equal(part, whole[3:, 4:])
    assert 0 < whole.min() < whole.max() < 1
    assert uniform(KEY, (1 << 16,), 0, torch.bfloat16).max() < 1


@pytest.mark.parametrize("dims", [(12, 5), (2, 6, 3), (5, 12), (6,)])
def test_microbatches_draw_the_masks_of_the_whole_batch(dims: tuple[int, ...]) -> None:
    """Samples are any dim, or the middle part of one: microbatch j of 3 gets the rows of its
    samples."""
    for dim, inner in (
        (d, n) for d, size in enumerate(dims) for n in (1, 2) if size % (3 * n) == 0
    ):
        shape = tuple(size // 3 if d == dim else size for d, size in enumerate(dims))
        runs = dims[dim] // (3 * inner)
        whole = dropout(torch.ones(dims), KEY, 0.5, 7)[1]
        parts = [
            dropout(
                torch.ones(shape), key_of_microbatch(KEY, j), 0.5, 7, None, (dim, 3 * inner, inner)
            )[1].unflatten(dim, (runs, inner))
            for j in range(3)
        ]
        assert torch.equal(torch.cat(parts, dim + 1).flatten(dim, dim + 1), whole)
        assert torch.equal(dropout(torch.ones(dims), key_of_microbatch(KEY, 2), 0.5, 7)[1], whole)
