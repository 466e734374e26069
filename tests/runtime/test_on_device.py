"""Whole training runs of one rank, verified against plain torch in one process: on the CPU one,
to try the test itself, and on a CUDA device one of each kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_plans import ask_for, planned

from planner.workload.ask import Ask, build
from runtime.worker import Place, RunRequest, RunResult, train

MAKING = f"{Path(__file__).resolve().parent / 'test_devices.py'}:making"


def trained(name: str, device: torch.device, compute: str = "") -> RunResult:
    """Three verified steps and a recorded one."""
    if name == "making":
        ask = Ask(model=MAKING, batch=8, seq=None, settings={}, dtype="float32", num_devices=1)
    else:
        ask = ask_for(name, 1, dtype="float32", compute=compute)
    request = RunRequest(plan="", num_steps=3, verify=True, record=True, device=device.type)
    place = Place(
        rank=0, num_ranks=1, device=device, backend="nccl" if device.type == "cuda" else "gloo"
    )
    result = train(
        planned(ask, "a=1").program, lambda: build(ask), request, place, lambda event: None
    )
    assert result is not None
    return result


def check(result: RunResult, limit: float) -> None:
    found, timeline = result.verification, result.timeline
    assert found is not None
    assert timeline is not None
    assert (
        max(found.loss_error, found.gradient_error, found.parameter_error, found.buffer_error)
        < limit
    ), found
    assert timeline.step_time > 0
    assert all(event.end >= event.start >= 0 for event in timeline.events)
    assert result.peak_memory_bytes > 0


def test_on_the_cpu() -> None:
    check(trained("dropped", torch.device("cpu")), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        "lstm",
        "gru",
        "gpt",
        "llama",
        "bert",
        "moe",
        "resnet",
        "unet",
        "dlrm",
        "dropped",
        "normed",
        "making",
    ],
)
def test_on_a_gpu(name: str) -> None:
    check(trained(name, torch.device("cuda", 0)), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lstm", "gpt", "llama"])
def test_mixed_precision_on_a_gpu(name: str) -> None:
    check(trained(name, torch.device("cuda", 0), "bfloat16"), 5e-2)
