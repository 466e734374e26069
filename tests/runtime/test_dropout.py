"""Dropout's masks: reproducible, independent, of the right share, and the same whatever part of the tensor is asked for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from planner.kernels import Random, dropout, dropout_backward, step_key

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
    torch.testing.assert_close(x.grad, torch.where(dropout(x.detach(), KEY, 0.25, 0)[1], 1 / 0.75, 0.0).double())


def test_modules_that_draw_do_so_from_the_key() -> None:
    module = nn.ModuleDict({
        "lstm": nn.LSTM(4, 4, num_layers=2, dropout=0.5), "attention": nn.MultiheadAttention(4, 2, dropout=0.5),
        "channels": nn.Dropout2d(0.5), "in place": nn.Dropout(0.5, inplace=True),
    })  # fmt: skip
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
