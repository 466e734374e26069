"""Many small plans on real gloo ranks against one process: three steps of training, all in one
group of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner.program.program import Program
from planner.workload.ask import Ask
from planner.workload.ask import build as build_workload
from runtime.executor import Executor, gather_buffers, gather_parameters
from runtime.groups import Groups, axes_used, make_groups
from runtime.launcher import launch
from runtime.parameters import build
from runtime.reference import Reference, reference_run
from runtime.verify import Verification, compare
from runtime.worker import Place, join

__all__ = [
    "STEPS",
    "TOLERANCE",
    "TOLERANCES",
    "VANISHING",
    "Case",
    "errors_of",
    "largest_error",
    "run_all",
    "verifications_of",
]

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
    """By name: the largest relative error of the losses, parameters and buffers of `STEPS` steps
    and of the first gradients; or, of a program that failed alike on every rank, what it said."""
    return {
        name: largest_error(f) for name, f in verifications_of(cases, num_ranks, report).items()
    }


def verifications_of(
    cases: dict[str, Case], num_ranks: int = 2, report: Callable[[Any], None] | None = None
) -> dict[str, Verification | str]:
    """By name: how far each case is from one process, or what its failure said."""
    found: dict[str, Verification | str] = launch(
        f"{__name__}:run_all", num_ranks, (num_ranks, cases), on_event=report
    )[0]
    return found


def largest_error(found: Verification | str) -> float | str:
    """The largest of the relative errors; a failure as it is."""
    if isinstance(found, str):
        return found
    return max(found.loss_error, found.gradient_error, found.parameter_error, found.buffer_error)


def run_all(
    payload: tuple[int, dict[str, Case]], emit: Any
) -> dict[str, Verification | str | None]:
    """What each rank does; rank 0 alone trains in one process, and compares."""
    num_ranks, cases = payload
    groups: dict[Any, Groups] = {}
    references: dict[str, Reference] = {}
    out: dict[str, Verification | str | None] = {}
    with join(num_ranks) as place:
        for name, case in cases.items():
            try:
                out[name] = _run(case, place, groups, references)
            except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
                out[name] = (
                    f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
                )
            if (mine := out[name]) is not None and place.rank == 0:
                emit({"name": name, "error": str(largest_error(mine))})
    return out


def _run(
    case: Case, place: Place, groups: dict[Any, Groups], references: dict[str, Reference]
) -> Verification | None:
    program = case.programs[place.rank]
    key = (program.mesh.sizes, tuple(axes_used(program)))
    if key not in groups:
        groups[key] = make_groups(program, place.rank)
    workload = build(lambda: build_workload(case.ask), 0)
    executor = Executor(
        program,
        workload,
        rank=place.rank,
        groups=groups[key],
        device=place.device,
        keep_gradients=True,
    )
    losses = [executor.step(workload.batch)]
    gradients = gather_parameters(executor, executor.gradients)
    losses += [executor.step(workload.batch) for _ in range(STEPS - 1)]
    parameters, buffers = gather_parameters(executor), gather_buffers(executor)
    if place.rank != 0:
        return None
    asked = repr(case.ask)
    if asked not in references:
        references.clear()
        references[asked] = reference_run(
            lambda: build_workload(case.ask), program, seed=0, num_steps=STEPS
        )
    largest = max(
        float(gradient.abs().max())
        for gradient in references[asked].gradients.values()
        if gradient.numel()
    )
    if largest < VANISHING:
        raise ValueError(f"the largest gradient is {largest:.0e}: nothing is compared")
    return compare(losses, gradients, parameters, references[asked], buffers)
