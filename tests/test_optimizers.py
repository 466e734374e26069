"""Optimizers by name, by settings and by torch's own with groups: on two ranks with sharded
states as torch's in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cost_models.errors import BadValue, UnknownName
from cost_models.memory import optimizer_state_bytes
from cost_models.optimizers import OPTIMIZERS, named
from planner import plan
from planner.workload.ask import Ask, build
from planner.workload.optimizers import of_torch
from runtime.optimizers import make_optimizer, state_bytes
from runtime.training import train_plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")
STEPS = 4


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=generator), torch.randn(8, 4, generator=generator))
        for _ in range(STEPS)
    ]


def groups_of(module: nn.Module) -> list[dict[str, Any]]:
    """Weight decay on matrices alone, and another rate for the last layer."""
    named_ = dict(module.named_parameters())
    head = [p for name, p in named_.items() if name.startswith("3.")]
    rest = [p for name, p in named_.items() if not name.startswith("3.")]
    return [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": 0.3},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        {"params": head, "weight_decay": 0.1, "lr": 1e-3},
    ]


#: How plans are given the optimizer, and how torch is.
CASES: dict[
    str, tuple[Callable[[nn.Module], dict[str, Any]], Callable[[nn.Module], torch.optim.Optimizer]]
] = {
    "groups": (
        lambda m: {"optimizer": torch.optim.AdamW(groups_of(m), lr=0.01, betas=(0.8, 0.9))},
        lambda m: torch.optim.AdamW(groups_of(m), lr=0.01, betas=(0.8, 0.9)),
    ),
    "momentum": (
        lambda m: {
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "optimizer_settings": {"momentum": 0.7, "nesterov": True},
        },
        lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.7, nesterov=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_torch_does(name: str, tmp_path: Path) -> None:
    ours, torchs = CASES[name]
    module = model()
    found = plan(
        module,
        batches()[0],
        F.mse_loss,
        num_devices=2,
        mesh="dp=2",
        pins=["*=zero3"],
        precision="fp64",
        folder=tmp_path / "plan",
        **ours(module),
    )
    trained = train_plan(found.path, batches(), device="cpu")
    plain = model().double()
    optimizer, losses = torchs(plain), []
    for x, y in batches():
        optimizer.zero_grad()
        loss = F.mse_loss(plain(x.double()), y.double())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert trained.losses == pytest.approx(losses, rel=1e-12)
    for parameter, tensor in plain.state_dict().items():
        torch.testing.assert_close(trained.parameters[parameter], tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, known in OPTIMIZERS.items() if not known.keras])
def test_what_is_costed_is_what_runs(name: str) -> None:
    parameter = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(name, [parameter], 0.1)
    optimizer.step()
    assert state_bytes(optimizer) == optimizer_state_bytes(name, numel=15, dtype="float64")


def test_a_name_says_how_much_state_there_is() -> None:
    assert (
        named("sgd", {"momentum": 0.9})
        == "sgd-momentum"
        == named("sgd", {"momentum": 0.0}, {"momentum": 0.5})
    )
    assert named("sgd-momentum", {"momentum": 0.0}) == "sgd"
    assert named("adamw", {"amsgrad": True, "weight_decay": 0.1}) == "adamw-amsgrad"
    assert named("sgd-momentum") == "sgd-momentum" and named("adam") == "adam"


def ask(model: str = "mlp", **more: Any) -> Ask:
    return Ask(model=model, batch=8, seq=None, settings={}, dtype="float32", num_devices=2, **more)


def test_an_ask_is_over_the_models_own() -> None:
    # A list, as in a plan's file.
    found = build(ask(learning_rate=0.5, optimizer_settings={"betas": [0.1, 0.2]}))
    assert (found.optimizer, found.learning_rate, found.optimizer_settings) == (
        "adam",
        0.5,
        {"betas": (0.1, 0.2)},
    )
    found = build(ask(optimizer="sgd", optimizer_settings={"momentum": 0.3}))
    assert (found.optimizer, found.learning_rate) == ("sgd-momentum", 1e-3)
    assert build(ask()).optimizer_settings == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"optimizer": "keras-adam"}, "Keras optimizers are for Keras models only"),
        (
            {"optimizer_settings": {"momentum": 0.9}},
            "optimizer 'adam' takes no momentum .momentum=0.9.: it takes betas, eps",
        ),
        ({"optimizer_settings": {"betas": (0.9, 1.0)}}, "betas .0.9, 1.0.: give two numbers"),
        (
            {"optimizer_settings": {"weight_decay": -1.0}},
            "weight decay -1.0: give a number of at least 0",
        ),
        ({"learning_rate": float("nan")}, "learning rate nan: give a number of at least 0"),
    ],
)
def test_what_an_optimizer_does_not_take(more: dict[str, Any], message: str) -> None:
    with pytest.raises((BadValue, UnknownName), match=message):
        build(ask(**more))


def test_optimizers_of_torch_that_are_not_planned() -> None:
    module = model()
    for optimizer, message in (
        (
            torch.optim.RMSprop(module.parameters()),
            "RMSprop is not supported: give one of torch's Adam, AdamW, SGD",
        ),
        (
            torch.optim.SGD(module[0].parameters()),
            r"no group with '1.weight' and 3 more: add it, or freeze it",
        ),
        (
            torch.optim.SGD([*module.parameters(), nn.Parameter(torch.ones(3))]),
            r"a parameter of shape \(3,\) that is neither",
        ),
        (
            torch.optim.Adam(module.parameters(), lr=torch.tensor(0.1)),
            "the learning rate of Adam is a tensor",
        ),
    ):
        with pytest.raises(BadValue, match=message):
            of_torch(optimizer, module, F.mse_loss)
    stepped = torch.optim.SGD(module.parameters(), momentum=0.9)
    F.mse_loss(module(batches()[0][0]), batches()[0][1]).backward()
    stepped.step()
    with pytest.raises(BadValue, match="has made steps already"):
        of_torch(stepped, module, F.mse_loss)
