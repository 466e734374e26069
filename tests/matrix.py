"""Many small plans on real gloo ranks against one process: three steps of training, all in one group of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from planner.ask import Ask
from planner.ask import build as build_workload
from planner.program import Program
from planner.workload import Workload
from runtime.executor import Executor, gather_buffers, gather_parameters
from runtime.groups import Groups, axes_used, make_groups
from runtime.launcher import launch
from runtime.parameters import build
from runtime.verify import Reference, Verification, compare, reference_run
from runtime.worker import Place, join

__all__ = ["STEPS", "TOLERANCE", "TOLERANCES", "VANISHING", "Case", "errors_and_rounding", "errors_of", "run_all"]

STEPS = 3
#: By dtype: relative to the largest element of a tensor.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
TOLERANCE = TOLERANCES["float64"]
#: A model of which no gradient is larger compares nothing but rounding.
VANISHING = 1e-6


@dataclass(frozen=True)
class Case:
    """Every rank's program and the ask whose workload it trains."""

    ask: Ask
    programs: tuple[Program, ...]


def errors_of(
    cases: dict[str, Case], num_ranks: int = 2, report: Callable[[Any], None] | None = None
) -> dict[str, float | str]:
    """By name: the largest relative error of the losses and parameters of `STEPS` steps and of the first gradients; or, of a
    program that failed alike on every rank, what it said."""
    return errors_and_rounding(cases, num_ranks, report)[0]


def errors_and_rounding(
    cases: dict[str, Case], num_ranks: int = 2, report: Callable[[Any], None] | None = None
) -> tuple[dict[str, float | str], dict[str, float]]:
    """The errors; and, of cases that are above `TOLERANCE` in the parameters or buffers at the end alone, how far one process is
    from itself when its initial parameters are moved by one rounding: what of the error is the model's own."""
    found: tuple[dict[str, float | str], dict[str, float]]
    found = launch(f"{__name__}:run_all", num_ranks, (num_ranks, cases), on_event=report)[0]
    return found


def run_all(payload: tuple[int, dict[str, Case]], emit: Any) -> tuple[dict[str, float | str], dict[str, float]]:
    """What each rank does."""
    num_ranks, cases = payload
    groups: dict[Any, Groups] = {}
    references: dict[str, Reference] = {}
    out: dict[str, float | str] = {}
    rounding: dict[str, float] = {}
    with join(num_ranks) as place:
        for name, case in cases.items():
            try:
                found = _run(case, place, groups, references)
                exact, later = max(found.loss_error, found.gradient_error), max(found.parameter_error, found.buffer_error)
                out[name] = max(exact, later)
                if exact <= TOLERANCE < later:
                    rounding[name] = _rounding(case, place, references)
            except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
                out[name] = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
            emit({"name": name, "error": str(out[name])})
    return out, rounding


def _run(case: Case, place: Place, groups: dict[Any, Groups], references: dict[str, Reference]) -> Verification:
    program = case.programs[place.rank]
    key = (program.mesh.sizes, tuple(axes_used(program)))
    if key not in groups:
        groups[key] = make_groups(program, place.rank)
    workload = build(lambda: build_workload(case.ask), 0)
    executor = Executor(program, workload, rank=place.rank, groups=groups[key], device=place.device, keep_gradients=True)
    losses = [executor.step(workload.batch)]
    gradients = gather_parameters(executor, executor.gradients)
    losses += [executor.step(workload.batch) for _ in range(STEPS - 1)]
    parameters, buffers = gather_parameters(executor), gather_buffers(executor)
    asked = repr(case.ask)
    if asked not in references:
        references.clear()
        references[asked] = reference_run(lambda: build_workload(case.ask), program, seed=0, num_steps=STEPS)
    largest = max(float(gradient.abs().max()) for gradient in references[asked].gradients.values() if gradient.numel())
    if largest < VANISHING:
        raise ValueError(f"the largest gradient is {largest:.0e}: nothing is compared")
    return compare(losses, gradients, parameters, references[asked], buffers)


def _rounding(case: Case, place: Place, references: dict[str, Reference]) -> float:
    """The largest error of parameters and buffers over three runs in one process, each begun one rounding off."""
    reference, key = references[repr(case.ask)], f"{case.ask!r} moved"
    if key not in references:
        program = case.programs[place.rank]
        runs = [
            reference_run(lambda n=n: _moved(build_workload(case.ask), n), program, seed=0, num_steps=STEPS)  # type: ignore[misc]
            for n in range(3)
        ]
        errors = [compare(r.losses, r.gradients, r.parameters, reference).parameter_error for r in runs]
        references[key] = replace(reference, losses=(max(errors),))
    return references[key].losses[0]


def _moved(workload: Workload, number: int) -> Workload:
    """The workload with every parameter one rounding larger or smaller, at random."""
    generator = torch.Generator().manual_seed(number)
    for parameter in workload.module.parameters():
        if parameter.is_floating_point():
            up = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) < 0.5
            eps = torch.finfo(parameter.dtype).eps
            parameter.data = torch.where(up, parameter.data * (1 + eps), parameter.data * (1 - eps))
    return workload
