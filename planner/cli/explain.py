"""`plan explain`: every choice of a plan and its cost, or the text of its program or graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from cost_models.errors import BadValue
from planner.cli.options import as_json, json_option, plan_argument, plan_file
from planner.cli.output import print_json, print_sections, progress_bar

__all__ = ["explain"]


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
    possible. --program prints the instructions of a step instead, as rank 0 runs them (of a
    pipeline, the first rank of every stage): what each one reads, writes and frees, and its
    simulated time. --graph prints the ops of the step on
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
    from planner.plans.pipeline_replay import pipeline_of
    from planner.plans.plan_file import read_plan
    from planner.plans.replay import program_of
    from planner.program.text import program_text
    from planner.report.pipeline_text import pipeline_text

    plan = read_plan(path)
    if plan.pipeline is not None:
        return pipeline_text(pipeline_of(plan))
    return program_text(program_of(plan))


def _graph_text(name: str, whole: bool) -> str:
    """The graph that a plan was made for, or that of a named model in its own sizes."""
    from planner.plans.plan_file import read_plan
    from planner.plans.replay import model_of
    from planner.report.graph_text import graph_text
    from planner.trace.trace import trace
    from planner.workload.ask import Ask, build

    if ":" not in name and (Path(name).exists() or len(Path(name).parts) > 1):
        return graph_text(model_of(read_plan(plan_file(name))).graph, whole=whole)
    ask = Ask(model=name, batch=None, seq=None, settings={}, dtype="float32", num_devices=1)
    return graph_text(trace(lambda: build(ask), name).graph, whole=whole)


def _print_lines(what: str, text: Callable[[], str], json_: bool) -> None:
    """Prints the text as it is, or its lines as JSON."""
    with progress_bar() as progress:
        progress("tracing the model", 0.0)
        lines = text()
    if json_:
        print_json({what: lines.splitlines()})
    else:
        click.echo(lines, nl=False)
