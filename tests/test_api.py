"""`planner.plan` on a module that one has: planned, simulated, saved, trained on two ranks as in
one process."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from step_models import Parts, nested, normed
from torch import nn

from cost_models.errors import BadValue, UnknownName
from planner import Planned, plan
from planner.plans.plan_file import read_plan
from planner.plans.replay import workload_of
from planner.workload.parts import workload_of as workload_from
from runtime.training import train_plan

CLIP, RATE = 0.5, 1e-2


def planned(parts: Parts, folder: Path, **more: Any) -> Planned:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        return plan(*parts, cluster="cpu", num_devices=2, folder=folder, **more)


def one_process(parts: Parts, steps: int) -> list[float]:
    """The losses of plain PyTorch on the example batch, which trains the module."""
    module, batch, loss = parts
    work = workload_from("plain", module.double(), batch, loss)
    tensors = [t.double() if t.is_floating_point() else t for t in work.batch]
    optimizer, losses = torch.optim.Adam(module.parameters(), lr=RATE), []
    for _ in range(steps):
        optimizer.zero_grad()
        total, _ = work.loss_of(tensors)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        losses.append(total.item())
    return losses


@pytest.mark.parametrize("make", [nested, normed])
def test_a_module_trains_on_two_ranks_as_in_one_process(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    parts = make()
    found = planned(
        parts,
        tmp_path / "plan",
        mesh="dp=2",
        pins=["*=zero3"],
        precision="fp64",
        clip_norm=CLIP,
        learning_rate=RATE,
    )
    trained = train_plan(found.path, [parts[1]] * 3)
    losses = one_process(parts, 3)
    assert trained.losses == pytest.approx(losses, rel=1e-9)
    wanted = parts[0].state_dict()
    assert set(trained.buffers) == {name for name, _ in parts[0].named_buffers()}
    for name, tensor in trained.state.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-7, atol=1e-9)
    if make is nested:
        assert [list(one) for one in trained.reported] == [["words", "value"]] * 3
        assert [sum(one.values()) for one in trained.reported] == pytest.approx(losses, rel=1e-9)


def test_a_batch_that_is_nested_otherwise_is_refused(tmp_path: Path) -> None:
    parts = nested()
    found = planned(parts, tmp_path / "plan")
    ids, named, target = parts[1]
    other = (ids, {"MASK" if key == "mask" else key: value for key, value in named.items()}, target)
    with pytest.raises(BadValue, match=r"batch 1 is .*'MASK': tensor .* the plan was made for"):
        train_plan(found.path, [other])


def test_what_a_plan_can_do_without_running(tmp_path: Path) -> None:
    found = planned(nested(), tmp_path / "plan")
    assert found.simulate().step_time_s == pytest.approx(found.plan.summary["step_time_s"])
    assert found.report().startswith("#")
    assert found.save() == found.path
    assert {path.name for path in found.folder.iterdir()} >= {
        "plan.json",
        "model.pt",
        "report.md",
        "timeline.json",
    }
    assert (
        workload_of(read_plan(found.path)).module.state_dict().keys()
        == nested()[0].state_dict().keys()
    )


def test_a_plan_is_simulated_on_another_cluster(tmp_path: Path) -> None:
    """Products that are worth a GPU: a model of a few hundred elements takes as long to launch
    there as to run on a processor."""
    x = torch.randn(256, 1024)
    found = planned((nn.Linear(1024, 1024), (x, x), F.mse_loss), tmp_path / "plan")
    assert found.simulate("dgx-h100").step_time_s < found.simulate().step_time_s / 10


def test_a_saved_model_that_is_gone_is_named(tmp_path: Path) -> None:
    found = planned(
        (nn.Linear(4, 2), (torch.randn(8, 4), torch.randn(8, 2)), F.mse_loss), tmp_path / "plan"
    )
    (tmp_path / "plan" / "model.pt").unlink()
    with pytest.raises(UnknownName, match="there is no such file"):
        workload_of(read_plan(found.path))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"learning_rate": "x"}, "learning rate 'x': give a number of at least 0"),
        ({"memory_headroom": 2}, "memory_headroom=2: give a share of at least 0 and below 1"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0: give a positive number"),
        ({"microbatches": 2.0}, "microbatches=2.0: give a whole number of at least 1, or None"),
        ({"pins": "h=tensor"}, "pins='h=tensor': give a list of pins"),
    ],
)
def test_what_cannot_be_is_said_of_the_argument(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadValue, match=f"^{re.escape(words)}"):
        plan(
            torch.nn.Linear(4, 2), (torch.randn(8, 4), torch.randn(8, 2)),
            torch.nn.functional.mse_loss, cluster="cpu", num_devices=2, folder=tmp_path, **given,
        )  # fmt: skip
