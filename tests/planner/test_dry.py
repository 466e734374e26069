"""The dry run: programs that run pass; what no rank could run is named when planning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_plans import ask_for, planned

from cost_models.cluster import load_cluster
from planner.program import dry
from planner.program.actions import STEP
from planner.program.dry import CannotRun, dry_run
from planner.program.program import Compute, Program
from planner.search.search import search
from planner.trace.trace import line_of
from planner.workload.ask import build


def program_of(name: str = "mlp", **sizes: int) -> Program:
    return planned(ask_for(name, 2, **sizes), "tp=2", ("*=tensor",)).program


def with_op(program: Program, op: str, change: Callable[[Compute], Compute]) -> Program:
    """The program with the first call of an op changed."""
    at = next(
        n for n, i in enumerate(program.instructions) if isinstance(i, Compute) and i.op == op
    )
    found = program.instructions[at]
    assert isinstance(found, Compute)
    return replace(
        program,
        bodies={STEP: (*program.instructions[:at], change(found), *program.instructions[at + 1 :])},
    )


@pytest.mark.parametrize("name", ["lstm", "moe", "resnet", "dlrm"])
def test_programs_that_run_pass(name: str) -> None:
    dry_run(program_of(name))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda i: replace(i, shapes=((7, *i.shapes[0][1:]),)), "it gives a tensor of .* not of"),
        (
            lambda i: replace(i, dtypes=("float32",)),
            "it gives a tensor of .*float64, not of .* in float32",
        ),
        (lambda i: replace(i, args=(i.args[0], i.args[0])), "runs aten.mm.default .*: "),
        (lambda i: replace(i, op="aten.argmax.default", args=i.args[:1]), "int64, not of"),
        (lambda i: replace(i, op="aten.split.Tensor", args=(i.args[0], 1)), "results, not 1"),
        (lambda i: replace(i, op="aten.to_sparse.default", args=i.args[:1]), "sparse|kernel"),
    ],
)
def test_what_cannot_run_is_named(change: Callable[[Compute], Compute], why: str) -> None:
    broken = with_op(program_of(), "aten.mm.default", change)
    with pytest.raises(CannotRun, match=why) as caught:
        dry_run(broken)
    assert "\n" not in str(caught.value)
    assert "module '" in str(caught.value)


def test_like_calls_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for layers in (2, 6):
        program, calls = program_of("gpt", layers=layers), []
        monkeypatch.setattr(
            dry, "callable_of", lambda op, calls=calls: calls.append(op) or dry_callable_of(op)
        )
        dry_run(program)
        counts.append(len(calls))
    assert counts[0] == counts[1] > 20


dry_callable_of = dry.callable_of


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(x))
        return out


def small() -> Any:
    return (
        Small(),
        (torch.randn(4, 4), torch.randint(0, 2, (4,))),
        torch.nn.functional.cross_entropy,
    )


def test_a_plan_that_cannot_run_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the line of the model is named."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("no tanh today\nand no backtrace")

    monkeypatch.setattr(
        dry, "callable_of", lambda op: refuse if op == "aten.tanh.default" else dry_callable_of(op)
    )
    ask = replace(ask_for("mlp", 2), model=f"{__file__}:small", batch=None, settings={})
    with pytest.raises(
        CannotRun,
        match=r"^module '\(top\)' runs aten.tanh.default .*: no tanh today at .*torch.tanh\(x\)",
    ) as caught:
        search(ask, load_cluster("cpu", num_devices=2))
    assert "\n" not in str(caught.value)


def test_the_line_of_an_op_that_the_model_does_not_call_is_not_told() -> None:
    ask = replace(ask_for("mlp", 2), model=f"{__file__}:small", batch=None, settings={})
    assert line_of(lambda: build(ask), "aten.sinh.default", "") == ""
