"""Bytes of elements, of optimizer states and of allocations."""

from __future__ import annotations

import pytest

from cost_models.errors import UnknownName
from cost_models.memory import (
    allocated_bytes,
    dtype_bytes,
    list_dtypes,
    lstm_reserve_elements,
    optimizer_state_bytes,
)


def test_dtype_bytes_agree_with_torch() -> None:
    import torch

    for name in list_dtypes():
        assert dtype_bytes(name) == getattr(torch, name).itemsize


def test_unknown_dtype_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown dtype 'float31': did you mean 'float3"):
        dtype_bytes("float31")


@pytest.mark.parametrize(
    ("name", "expected"), [("adam", 804), ("adamw", 804), ("sgd", 0), ("sgd-momentum", 400)]
)
def test_optimizer_state_of_100_floats(name: str, expected: int) -> None:
    assert optimizer_state_bytes(name, numel=100, dtype="float32") == expected


def test_optimizer_state_agrees_with_torch_adam() -> None:
    import torch

    parameter = torch.nn.Parameter(torch.ones(3, 5, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(value.nbytes for value in optimizer.state[parameter].values())
    assert optimizer_state_bytes("adam", numel=15, dtype="float64") == held


@pytest.mark.parametrize(
    ("steps", "batch", "width", "hidden"),
    [
        (100, 256, 64, 64),
        (50, 64, 128, 64),
        (50, 64, 64, 128),
        (20, 32, 256, 100),
        (50, 64, 512, 512),
        (30, 48, 96, 320),
    ],
)
def test_lstm_reserve_agrees_with_onednn(steps: int, batch: int, width: int, hidden: int) -> None:
    import torch

    from planner.kernels import lstm_forward

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("this torch has no oneDNN")
    state, weights = (
        torch.zeros(batch, hidden),
        [torch.zeros(4 * hidden, size) for size in (width, hidden)],
    )
    biases = [torch.zeros(4 * hidden)] * 2
    held = lstm_forward(torch.zeros(steps, batch, width), state, state, *weights, *biases)[3].nbytes
    found = 4 * lstm_reserve_elements(
        "onednn", steps=steps, batch=batch, width=width, hidden=hidden
    )
    assert found == pytest.approx(held, rel=2e-3)


def test_lstm_reserve_without_a_workspace_is_gates_and_cell() -> None:
    assert lstm_reserve_elements(None, steps=7, batch=3, width=11, hidden=5) == 7 * 3 * 25


def test_unknown_optimizer() -> None:
    with pytest.raises(
        UnknownName,
        match=r"unknown optimizer 'lion'.*known: adam, adam-amsgrad, adamw, .*sgd, sgd-momentum",
    ):
        optimizer_state_bytes("lion", numel=1, dtype="float32")


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_allocations_are_rounded_to_512_bytes(asked: int, given: int) -> None:
    assert allocated_bytes(asked) == given
