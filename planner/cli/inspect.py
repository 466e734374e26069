"""The verbs that look at something: simulate, report, explain, models, hardware."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cost_models.errors import BadValue
from planner.cli.options import (
    WHOLE,
    as_json,
    check_folder,
    json_option,
    out_option,
    plan_argument,
    plan_file,
)
from planner.cli.output import print_json, print_sections, progress_bar, write_files

if TYPE_CHECKING:
    from planner.plans.plan_file import Plan

__all__ = ["VERBS", "print_comparison", "print_plan", "print_run"]


def print_plan(plan: Plan, files: Mapping[str, str], json_: bool) -> None:
    """A plan as its report, or as JSON."""
    from planner.report.records import plan_record
    from planner.report.report import report

    if json_:
        print_json(plan_record(plan, files))
    else:
        print_sections(report(plan, files))


def print_run(plan: Plan, result: Mapping[str, Any], json_: bool) -> None:
    """The result of a run."""
    from planner.report.records import run_record
    from planner.report.runs import run_section

    if json_:
        print_json(run_record(result))
    else:
        print_sections([run_section(plan, result, statistics.median(result["step_times_s"]))])


def print_comparison(result: Mapping[str, Any], files: Mapping[str, str], json_: bool) -> None:
    """Predicted beside measured."""
    from planner.report.records import compare_record
    from planner.report.runs import comparison

    if json_:
        print_json(compare_record(result))
    else:
        print_sections(comparison(result, files))


@click.command()
@plan_argument
@json_option
@click.pass_context
def report(context: click.Context, /, plan_path: str, json_: bool) -> None:
    """Print a plan's report again."""
    path = plan_file(plan_path)
    from planner.plans.plan_file import read_plan
    from planner.report.files import file_names

    print_plan(read_plan(path), file_names(path.parent, plan=path.name), as_json(context, json_))


@click.command()
@plan_argument
@click.option(
    "--program",
    "program_",
    is_flag=True,
    help="Show what every rank runs, one instruction per line.",
)
@click.option(
    "--graph",
    "graph_",
    is_flag=True,
    help="Show the step as traced, one op per line; PLAN may be a model's name.",
)
@click.option(
    "--whole",
    is_flag=True,
    help="With --graph: all blocks of a stack and all numbers of a constant.",
)
@json_option
@click.pass_context
def explain(
    context: click.Context,
    /,
    plan_path: str,
    program_: bool,
    graph_: bool,
    whole: bool,
    json_: bool,
) -> None:
    """Show every choice of a plan and its cost.

    Prints what each op splits, how each parameter is kept, and how close the plan is to the best
    possible. --program prints the instructions of a step instead, as rank 0 runs them: what each
    one reads, writes and frees, and its simulated time. --graph prints the ops of the step on
    whole tensors, as traced, and only the first of a stack of equal blocks.
    """
    if program_ and graph_:
        raise BadValue("--program and --graph cannot be combined: give one of them")
    if whole and not graph_:
        raise BadValue("--whole applies to --graph only: add --graph")
    if graph_:
        _print_lines("graph", lambda: _graph_text(plan_path, whole), as_json(context, json_))
        return
    path = plan_file(plan_path)
    if program_:
        _print_lines("program", lambda: _program_text(path), as_json(context, json_))
        return
    with progress_bar() as progress:
        progress("tracing the model", 0.0)
        from planner.plans.plan_file import read_plan
        from planner.report.explain import explain as explain_plan
        from planner.report.explain import explanation

        plan = read_plan(path)
        record = explain_plan(plan)
    if as_json(context, json_):
        print_json(record)
    else:
        print_sections(explanation(plan, record))


def _program_text(path: Path) -> str:
    from planner.plans.plan_file import read_plan
    from planner.plans.replay import program_of
    from planner.program.text import program_text

    return program_text(program_of(read_plan(path)))


def _graph_text(name: str, whole: bool) -> str:
    """Of a plan's model as it was asked for, or of a model with its own sizes."""
    from planner.plans.plan_file import read_plan
    from planner.plans.replay import traced_of
    from planner.report.graph_text import graph_text
    from planner.trace.trace import trace
    from planner.workload.ask import Ask, build

    if ":" not in name and (Path(name).exists() or len(Path(name).parts) > 1):
        return graph_text(traced_of(read_plan(plan_file(name))).graph, whole=whole)
    ask = Ask(model=name, batch=None, seq=None, settings={}, dtype="float32", num_devices=1)
    return graph_text(trace(lambda: build(ask), name).graph, whole=whole)


def _print_lines(what: str, text: Callable[[], str], json_: bool) -> None:
    """What `text` gives, as it is, or its lines as JSON."""
    with progress_bar() as progress:
        progress("tracing the model", 0.0)
        lines = text()
    if json_:
        print_json({what: lines.splitlines()})
    else:
        click.echo(lines, nl=False)


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
        from planner.plans.replay import program_of
        from planner.predict.predict import memory_by_category, simulate_program
        from planner.report.files import timeline_files
        from planner.report.records import simulate_record
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
        program = program_of(plan, cluster)
        progress("simulating", 0.6)
        timeline = simulate_program(program, cluster)
        files, contents = timeline_files(plan, program, timeline, cluster, folder)
        record = simulate_record(timeline, memory_by_category(program), cluster, plan.ask)
    write_files(folder, contents)
    if as_json(context, json_):
        print_json(record)
    else:
        print_sections(simulation(plan, cluster, record, files))


@click.command()
@json_option
@click.pass_context
def models(context: click.Context, /, json_: bool) -> None:
    """List the built-in models, their sizes and presets."""
    from planner.report.models_sheet import models_sections
    from planner.report.records import models_record
    from planner.workload.workload import known_models

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
        cluster_record,
        draw,
        list_section,
        sheet,
    )

    json_ = as_json(context, json_)
    if name is None:
        clusters = all_clusters()
        if json_:
            print_json({"hardware": [cluster_record(cluster) for cluster in clusters]})
        else:
            print_sections([list_section(clusters)])
        return
    from cost_models.cluster import load_cluster

    cluster = load_cluster(name, num_devices=gpus, num_nodes=nodes)
    folder = check_folder(out or Path("plans") / "hardware")
    files = {"picture": str(folder / f"{cluster.name}.png")}
    write_files(folder, {})
    draw(cluster, files["picture"])
    if json_:
        print_json({**cluster_record(cluster), "files": files})
    else:
        print_sections(sheet(name, cluster, files))


VERBS = (simulate, report, explain, models, hardware)
