"""Bytes of elements, of optimizer states and of allocations."""

from __future__ import annotations

import pytest

from cost_models.errors import UnknownName
from cost_models.memory import allocated_bytes, dtype_bytes, list_dtypes, optimizer_state_bytes


def test_dtype_bytes_agree_with_torch() -> None:
    import torch

    for name in list_dtypes():
        assert dtype_bytes(name) == getattr(torch, name).itemsize


def test_unknown_dtype_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown dtype 'float31': did you mean 'float3"):
        dtype_bytes("float31")


@pytest.mark.parametrize(("name", "expected"), [("adam", 804), ("adamw", 804), ("sgd", 0), ("sgd-momentum", 400)])
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


def test_unknown_optimizer() -> None:
    with pytest.raises(UnknownName, match=r"unknown optimizer 'lion'.*known: adam, adamw, sgd, sgd-momentum"):
        optimizer_state_bytes("lion", numel=1, dtype="float32")


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_allocations_are_rounded_to_512_bytes(asked: int, given: int) -> None:
    assert allocated_bytes(asked) == given
