"""The verbs that run on this machine: run, compare, calibrate. They reach into `runtime`, inside
functions, so that planning imports nothing of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.options import (
    NATURAL,
    WHOLE,
    as_json,
    check_folder,
    check_option,
    json_option,
    out_option,
    plan_argument,
    plan_file,
)
from planner.cli.output import StepBar, print_json, print_sections, progress_bar

if TYPE_CHECKING:
    from planner.plans.plan import Plan


__all__ = ["calibrate", "compare", "run"]


@click.command()
@plan_argument
@click.option("--steps", type=WHOLE, default=10, show_default=True, help="Training steps.")
@click.option(
    "--verify",
    is_flag=True,
    help=(
        "Also run the same steps in one process and compare losses, gradients and parameters. "
        "Exit code 1 if they differ, 3 if the comparison proves nothing."
    ),
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Kind of device.  [default: cuda if there is one, else cpu]",
)
@click.option(
    "--seed",
    type=NATURAL,
    default=0,
    show_default=True,
    help="Seed of the initial parameters and the example batch.",
)
@check_option("every rank's program, and that all ranks join every collective")
@json_option
@click.pass_context
def run(
    context: click.Context,
    /,
    plan_path: str,
    steps: int,
    verify: bool,
    device: str | None,
    seed: int,
    check: bool,
    json_: bool,
) -> None:
    """Run a plan here and print its losses.

    Starts one process per device of the plan, even if there are fewer cores: over gloo on CPUs,
    over NCCL on GPUs.
    """
    path, json_ = plan_file(plan_path), as_json(context, json_)
    from planner.plans.plan_file import read_plan
    from runtime.launcher import launch
    from runtime.worker import RunRequest

    plan = read_plan(path)
    request = RunRequest(
        plan=str(path), num_steps=steps, seed=seed, verify=verify, device=device or "", check=check
    )
    with StepBar(f"starting {plan.mesh.num_devices} processes", steps, say=not json_) as bar:
        result = launch("runtime.worker:run", plan.mesh.num_devices, request, on_event=bar.event)[0]
    _print_run(plan, result.as_json(), json_)
    if result.verification is not None:
        from runtime.verdict import EXIT_CODES

        context.exit(EXIT_CODES[result.verification.verdict])


@click.command()
@plan_argument
@click.option(
    "--hardware",
    metavar="NAME|FILE",
    help="Hardware to predict on.  [default: this machine, as plan calibrate measured it]",
)
@click.option(
    "--steps", type=WHOLE, default=20, show_default=True, help="Training steps to measure."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Kind of device.  [default: cuda if there is one, else cpu]",
)
@out_option("PLAN/compare")
@json_option
@click.pass_context
def compare(
    context: click.Context,
    /,
    plan_path: str,
    hardware: str | None,
    steps: int,
    device: str | None,
    out: Path | None,
    json_: bool,
) -> None:
    """Compare predicted and measured times, for each kind of op.

    Runs the plan for some steps, and simulates it on this machine's hardware file, which
    plan calibrate writes.
    """
    path, json_ = plan_file(plan_path), as_json(context, json_)
    folder = check_folder(out or path.parent / "compare")
    with progress_bar() as progress:
        progress("loading torch", 0.0)
        from runtime.compare.compare import compare as compare_plan
        from runtime.compare.compare import write_comparison

        found = compare_plan(
            path, hardware=hardware or "", num_steps=steps, device=device or "", progress=progress
        )
    files = write_comparison(found, folder)
    _print_comparison(found.as_json(), files, json_)


@click.command()
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Kind of device.  [default: cuda if there is one, else cpu]",
)
@click.option(
    "--ranks",
    type=WHOLE,
    default=4,
    show_default=True,
    help="Largest number of processes to measure.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Measure the smallest shapes only: takes seconds, but is too coarse for plan compare.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Hardware file to write.  [default: this machine's own, in ~/.cache]",
)
@json_option
@click.pass_context
def calibrate(
    context: click.Context,
    /,
    device: str | None,
    ranks: int,
    quick: bool,
    out: Path | None,
    json_: bool,
) -> None:
    """Measure this machine and write a hardware file.

    plan compare uses the file, and --hardware FILE plans for this machine. Takes about a minute.
    """
    json_ = as_json(context, json_)
    if out is not None:
        check_folder(out.parent)
    with progress_bar() as progress:
        progress("loading torch", 0.0)
        from runtime.calibrate.calibrate import calibrate as measure
        from runtime.calibrate.calibrate import this_machine

        cluster = measure(
            out or "", device=device or "", max_ranks=ranks, quick=quick, progress=progress
        )
    file = str(out or this_machine())
    from planner.report.hardware_sheet import cluster_record, sheet

    if json_:
        print_json({**cluster_record(cluster), "files": {"hardware": file}})
    else:
        print_sections(sheet(file, cluster, {"hardware": file}))


def _print_run(plan: Plan, result: Mapping[str, Any], json_: bool) -> None:
    """Prints the result of a run."""
    from planner.report.records import run_record
    from planner.report.runs import run_section

    if json_:
        print_json(run_record(result))
    else:
        print_sections([run_section(plan, result, statistics.median(result["step_times_s"]))])


def _print_comparison(result: Mapping[str, Any], files: Mapping[str, str], json_: bool) -> None:
    """Prints predicted times beside measured ones."""
    from planner.report.records import compare_record
    from planner.report.runs import comparison

    if json_:
        print_json(compare_record(result))
    else:
        print_sections(comparison(result, files))
