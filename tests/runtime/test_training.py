"""Training by a plan on batches of one's own: the same as plain PyTorch on the same batches, and
what is said of bad ones."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from cost_models.cluster import load_cluster
from cost_models.errors import BadPlan, BadValue
from planner.plans.plan_file import write_plan
from planner.search.search import search
from planner.strategy.pins import Pin, parse_mesh
from planner.workload.ask import Ask, build
from runtime.training import Trained, train_plan

SETTINGS = {"inputs": "6", "hidden": "8", "layers": "2", "outputs": "4"}
RATE = 0.01
Batch = tuple[torch.Tensor, torch.Tensor]


def ask(ranks: int) -> Ask:
    return Ask(
        model="mlp", batch=8, seq=None, settings=SETTINGS, dtype="float64", num_devices=ranks
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for two CPU ranks that keeps every parameter in pieces."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        pins = (Pin("*", "zero3"),)
        found = search(
            ask(2), load_cluster("cpu", num_devices=2), mesh=parse_mesh("dp=2", 2), pins=pins
        )
    write_plan(found.plan, path)
    return path


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, 6, generator=generator), torch.randn(8, 4, generator=generator))
        for _ in range(4)
    ]


def plain(batches: list[Batch], *, seed: int, rate: float) -> Trained:
    torch.manual_seed(seed)
    work = build(ask(1))
    optimizer = torch.optim.Adam(work.module.parameters(), lr=rate)
    losses = []
    for inputs, target in batches:
        optimizer.zero_grad()
        loss = work.loss(work.module(inputs.double()), target.double())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses=tuple(losses), step_times_s=(), parameters=work.module.state_dict())


@pytest.mark.usefixtures("spawned_ranks")
def test_losses_and_parameters_are_those_of_one_process(plan: Path, batches: list[Batch]) -> None:
    events: list[dict[str, float]] = []
    trained = train_plan(
        plan, iter(batches), seed=5, learning_rate=RATE, device="cpu", on_event=events.append
    )
    reference = plain(batches, seed=5, rate=RATE)
    assert trained.losses == pytest.approx(reference.losses, rel=1e-9)
    assert trained.parameters.keys() == reference.parameters.keys()
    for name, tensor in trained.parameters.items():
        torch.testing.assert_close(tensor, reference.parameters[name], rtol=1e-9, atol=1e-12)
    assert [(event["step"], event["loss"]) for event in events] == list(
        enumerate(trained.losses, start=1)
    )
    assert len(trained.step_times_s) == len(batches)
    assert min(trained.step_times_s) > 0
    assert plain(batches, seed=5, rate=2 * RATE).losses[1:] != pytest.approx(
        trained.losses[1:], rel=1e-3
    )


def test_no_batches(plan: Path) -> None:
    with pytest.raises(BadValue, match="no batches to train on"):
        train_plan(plan, [])


def test_no_plan(tmp_path: Path, batches: list[Batch]) -> None:
    with pytest.raises(BadPlan, match=r"none\.json: cannot be read"):
        train_plan(tmp_path / "none.json", batches)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            (torch.zeros(6, 6), torch.zeros(6, 4)),
            r"batch tensor 0 has shape \(6, 6\): the plan was made for \(8, 6\)",
        ),
        ((torch.zeros(8, 6),), "batch 1 has 1 tensors: the plan's model takes 2, the target last"),
    ],
)
def test_a_batch_of_another_shape(plan: Path, batch: Batch, message: str) -> None:
    with pytest.raises(BadValue, match=rf"^{message}"):
        train_plan(plan, [batch], device="cpu")
