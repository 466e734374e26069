"""The verbs that look at something: simulate, report, models, hardware."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.options import (
    WHOLE,
    as_json,
    check_folder,
    json_option,
    out_option,
    plan_argument,
    plan_file,
)
from planner.cli.output import print_json, print_plan, print_sections, progress_bar, write_files

if TYPE_CHECKING:
    from cost_models.machine import Cluster
    from planner.plans.plan import Plan

__all__ = ["hardware", "models", "report", "simulate"]


@click.command()
@plan_argument
@json_option
@click.pass_context
def report(context: click.Context, /, plan_path: str, json_: bool) -> None:
    """Print a plan's report again."""
    path = plan_file(plan_path)
    from planner.plans.plan_file import read_plan
    from planner.report.files import file_names

    plan = read_plan(path)
    files = file_names(path.parent, plan=path.name, pipeline=plan.pipeline is not None)
    print_plan(plan, files, as_json(context, json_))


@click.command()
@plan_argument
@click.option(
    "--hardware",
    metavar="NAME|FILE",
    help="Hardware to simulate on.  [default: the plan's own]",
)
@out_option("PLAN, or PLAN/HARDWARE if --hardware is given")
@json_option
@click.pass_context
def simulate(
    context: click.Context, /, plan_path: str, hardware: str | None, out: Path | None, json_: bool
) -> None:
    """Simulate one step, on the plan's own or on other hardware.

    Prints the parts of the step time and the memory per device. Writes pictures of the step and
    of memory over time, and a trace for Perfetto.
    """
    path = plan_file(plan_path)
    with progress_bar() as progress:
        progress("tracing the model", 0.0)
        from cost_models.cluster import load_cluster
        from planner.plans.plan_file import read_plan
        from planner.report.report import simulation

        plan = read_plan(path)
        own = plan.hardware
        cluster = (
            own.cluster()
            if hardware is None
            else load_cluster(hardware, num_devices=own.num_devices)
        )
        folder = check_folder(
            out or (path.parent if hardware is None else path.parent / cluster.name)
        )
        simulated = _simulated if plan.pipeline is None else _simulated_pipeline
        record, files, contents = simulated(plan, cluster, folder, progress)
    write_files(folder, contents)
    if as_json(context, json_):
        print_json(record)
    else:
        print_sections(simulation(plan, cluster, record, files))


_Simulated = tuple[dict[str, Any], dict[str, str], dict[str, str | bytes]]


def _simulated(
    plan: Plan, cluster: Cluster, folder: Path, progress: Callable[[str, float], None]
) -> _Simulated:
    """The record of a simulation, its files by what they hold, and their contents."""
    from planner.plans.replay import program_of
    from planner.predict.predict import memory_by_category, simulate_program
    from planner.report.files import timeline_files
    from planner.report.records import simulate_record

    program = program_of(plan, cluster)
    progress("simulating", 0.6)
    timeline = simulate_program(program, cluster)
    files, contents = timeline_files(plan, program, timeline, cluster, folder)
    record = simulate_record(timeline, memory_by_category(program), cluster, plan.ask)
    return record, files, contents


def _simulated_pipeline(
    plan: Plan, cluster: Cluster, folder: Path, progress: Callable[[str, float], None]
) -> _Simulated:
    """The same for a pipeline."""
    from planner.plans.pipeline_replay import pipeline_of
    from planner.report.pipeline_files import pipeline_contents
    from planner.report.records import simulate_pipeline_record
    from planner.search.transfer_times import predicted

    pipeline = pipeline_of(plan, cluster)
    progress("simulating", 0.6)
    found = predicted(pipeline, cluster)
    files, contents = pipeline_contents(plan, pipeline, found, cluster, folder)
    return simulate_pipeline_record(pipeline, found, cluster, plan.ask), files, contents


@click.command()
@json_option
@click.pass_context
def models(context: click.Context, /, json_: bool) -> None:
    """List the built-in models, their sizes and presets."""
    from planner.report.models_sheet import models_sections
    from planner.report.records import models_record
    from planner.workload.load import known_models

    record = models_record(known_models())
    if as_json(context, json_):
        print_json(record)
    else:
        print_sections(models_sections(record))


@click.command()
@click.argument("name", required=False)
@click.option("--gpus", type=WHOLE, help="Number of devices.  [default: all of one node]")
@click.option("--nodes", type=WHOLE, help="Number of nodes.")
@out_option("plans/hardware")
@json_option
@click.pass_context
def hardware(
    context: click.Context,
    /,
    name: str | None,
    gpus: int | None,
    nodes: int | None,
    out: Path | None,
    json_: bool,
) -> None:
    """List the known clusters, or show and draw one.

    With a NAME or a FILE: prints all figures with their sources, and draws a picture.
    """
    from planner.report.hardware_sheet import (
        all_clusters,
        all_mixed,
        cluster_record,
        draw,
        list_section,
        sheet,
    )
    from planner.report.mixed_sheet import mixed_record, mixed_section, mixed_sheet

    json_ = as_json(context, json_)
    if name is None:
        clusters, mixed = all_clusters(), all_mixed()
        if json_:
            record = {"hardware": [*map(cluster_record, clusters)]}
            print_json(record | {"mixed": [*map(mixed_record, mixed)]})
        else:
            print_sections([mixed_section(mixed), list_section(clusters)])
        return
    from cost_models.cluster import load_cluster
    from cost_models.mixed import MixedCluster
    from cost_models.mixed_file import load_machine

    machine = (
        load_machine(name, num_devices=gpus)
        if nodes is None
        else load_cluster(name, num_devices=gpus, num_nodes=nodes)
    )
    groups = machine.groups if isinstance(machine, MixedCluster) else (machine,)
    folder = check_folder(out or Path("plans") / "hardware")
    write_files(folder, {})
    files = {}
    for group in groups:
        what = "picture" if len(groups) == 1 else f"picture of {group.name}"
        files[what] = str(folder / f"{group.name}.png")
        draw(group, files[what])
    if isinstance(machine, MixedCluster):
        record, sections = mixed_record(machine), mixed_sheet(machine, files)
    else:
        record, sections = cluster_record(machine), sheet(name, machine, files)
    if json_:
        print_json({**record, "files": files})
    else:
        print_sections(sections)
