"""Keras's optimizers on shards against Keras's own, on random gradients; what is costed is what
runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cost_models.memory import optimizer_state_bytes
from cost_models.optimizers import OPTIMIZERS
from runtime.optimizers import make_optimizer, state_bytes

os.environ.setdefault("KERAS_BACKEND", "torch")

SHAPES = ((4, 3), (7,), (2, 2, 5))

#: A name of ours and settings, Keras's class and its settings.
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("keras-adam", {}, "Adam", {}),
    ("keras-adam", {"beta_1": 0.5, "epsilon": 1e-3}, "Adam", {"beta_1": 0.5, "epsilon": 1e-3}),
    ("keras-adam-amsgrad", {}, "Adam", {"amsgrad": True}),
    ("keras-adam", {"weight_decay": 0.004}, "AdamW", {}),
    ("keras-nadam", {}, "Nadam", {}),
    ("keras-sgd", {}, "SGD", {}),
    ("keras-sgd-momentum", {}, "SGD", {"momentum": 0.9}),
    (
        "keras-sgd-momentum",
        {"momentum": 0.5, "nesterov": True},
        "SGD",
        {"momentum": 0.5, "nesterov": True},
    ),
    ("keras-rmsprop", {"clipvalue": 0.2}, "RMSprop", {"clipvalue": 0.2}),
    ("keras-rmsprop-momentum", {}, "RMSprop", {"momentum": 0.9}),
    ("keras-rmsprop-centered", {"rho": 0.8}, "RMSprop", {"centered": True, "rho": 0.8}),
    ("keras-rmsprop-centered-momentum", {}, "RMSprop", {"centered": True, "momentum": 0.9}),
    ("keras-adagrad", {}, "Adagrad", {}),
]


@pytest.fixture
def floatx() -> Iterator[Callable[[str], None]]:
    """Sets the dtype of Keras's variables, a learning rate among them, for the test."""
    import keras

    before = keras.config.floatx()
    yield keras.config.set_floatx
    keras.config.set_floatx(before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-7)])
@pytest.mark.parametrize(("name", "settings", "kind", "theirs"), CASES)
def test_fifty_updates_are_those_of_keras(
    name: str,
    settings: dict[str, Any],
    kind: str,
    theirs: dict[str, Any],
    dtype: torch.dtype,
    limit: float,
    floatx: Callable[[str], None],
) -> None:
    import keras

    floatx(str(dtype).removeprefix("torch."))
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    variables = [
        keras.Variable(value.clone(), name=f"v{number}") for number, value in enumerate(start)
    ]
    optimizer = getattr(keras.optimizers, kind)(0.01, **theirs)
    optimizer.build(variables)
    ours = [value.clone() for value in start]
    mine = make_optimizer(name, ours, float(optimizer.learning_rate), settings)
    for step in range(50):
        gradients = [
            torch.randn(shape, generator=generator, dtype=dtype) * 10.0 ** (-step / 5)
            for shape in SHAPES
        ]
        for tensor, gradient in zip(ours, gradients, strict=True):
            tensor.grad = gradient.clone()
        mine.step()
        with torch.no_grad():
            optimizer.apply([gradient.clone() for gradient in gradients], variables)
    for tensor, variable in zip(ours, variables, strict=True):
        torch.testing.assert_close(tensor, variable.value.detach().cpu(), rtol=limit, atol=limit)


def test_some_parameters_do_not_decay() -> None:
    held = [torch.ones(2), torch.ones(2)]
    made = make_optimizer(
        "keras-adam", held, 0.1, {"weight_decay": 0.5, "excluded": ("b",)}, ["a", "b"]
    )
    for tensor in held:
        tensor.grad = torch.zeros(2)
    made.step()
    assert held[0].tolist() == pytest.approx([0.95, 0.95])
    assert held[1].tolist() == [1.0, 1.0]


def test_a_schedule_gives_the_rate_of_every_iteration() -> None:
    held = torch.zeros(1)
    made = make_optimizer("keras-sgd", [held], 0.1, {"schedule": lambda iteration: 1.0 + iteration})
    for _ in range(3):
        held.grad = torch.ones(1)
        made.step()
    assert held.item() == -6.0


def test_every_optimizer_that_is_costed_runs_with_the_state_that_is_costed() -> None:
    for name in OPTIMIZERS:
        tensor = torch.ones(6)
        made = make_optimizer(name, [tensor], 0.1)
        tensor.grad = torch.ones(6)
        made.step()
        assert state_bytes(made) == optimizer_state_bytes(name, numel=6, dtype="float32"), name
        assert (tensor < 1).all(), name
