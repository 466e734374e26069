"""The command line: `plan --model lstm --gpus 8`, and a verb for every later step.

Nothing heavy is imported before it is needed: `plan --help` and `plan hardware` know no torch. The one place of the planner that
may reach into `runtime`, inside functions only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cost_models.errors import BadValue
from planner.cli_group import PlanGroup
from planner.cli_options import WHOLE, as_json, check_folder, json_option, plan_argument, plan_file, settings_of, slug
from planner.cli_output import print_json, print_sections, progress_bar, write_files

__all__ = ["cli", "main"]

DEFAULT_HARDWARE = "dgx-h100"


def main() -> None:
    """The console script `plan`."""
    cli.main()


@click.group(cls=PlanGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", metavar="NAME", help="A built-in model (plan models lists them), module:function or FILE.py:function.")
@click.option("--gpus", type=WHOLE, help="Number of devices; by default those of one node.")
@click.option("--nodes", type=WHOLE, help="Spread them over N nodes; by default as few as hold them.")
@click.option("--hardware", metavar="NAME|FILE", help=f"A cluster (plan hardware lists them); by default {DEFAULT_HARDWARE}.")
@click.option("--batch", type=WHOLE, help="Global batch; by default the model's batch per device times the devices.")
@click.option("--seq", type=WHOLE, help="Sequence length.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A size of the model; may be repeated.")
@click.option("--dtype", metavar="TYPE", default="float32", show_default=True, help="float32, float64 or bfloat16.")
@click.option("--mesh", metavar="AXES", help="Pin the mesh, as in dp=4,tp=2.")
@click.option("--pin", "pins", metavar="PART=CHOICE", multiple=True, help="Pin a part of the model; may be repeated.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Where the files go; by default plans/MODEL-GPUS.")
@json_option
@click.pass_context
def cli(context: click.Context, json_: bool, **asked: Any) -> None:
    """Split a PyTorch model over devices.

    \b
    plan --model lstm --gpus 8
    """
    if context.invoked_subcommand is not None:
        given = [n for n in asked if context.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE]
        if given:
            verb, option = context.invoked_subcommand, "--" + {"settings": "set", "pins": "pin"}.get(given[0], given[0])
            raise BadValue(f"{option} stands before {verb!r}: write the options of {verb} after it (plan {verb} --help)")
        context.obj = json_
        return
    if asked["model"] is None:
        if json_ or any(value for name, value in asked.items() if name != "dtype"):
            raise BadValue("--model is missing: plan --model lstm --gpus 8; plan models lists the built-in ones")
        click.echo(context.get_help())
        return
    _front_door(json_=json_, **asked)


def _front_door(
    *, model: str, gpus: int | None, nodes: int | None, hardware: str | None, batch: int | None, seq: int | None,
    settings: tuple[str, ...], dtype: str, mesh: str | None, pins: tuple[str, ...], out: Path | None, json_: bool,
) -> None:  # fmt: skip
    """Plan, write, report."""
    from cost_models.cluster import load_cluster

    cluster = load_cluster(hardware or DEFAULT_HARDWARE, num_devices=gpus, num_nodes=nodes)
    folder = check_folder(out or Path("plans") / f"{slug(model)}-{cluster.num_devices}")
    values = settings_of(settings)
    with progress_bar() as progress:
        progress("loading torch", 0.0)
        from planner.pins import parse_mesh, parse_pin
        from planner.plan import Ask
        from planner.search import search

        ask = Ask(model=model, batch=batch, seq=seq, settings=values, dtype=dtype, num_devices=cluster.num_devices)
        pinned = None if mesh is None else parse_mesh(mesh, cluster.num_devices)
        found = search(ask, cluster, mesh=pinned, pins=tuple(map(parse_pin, pins)), progress=progress)
        from planner.files import plan_files

        files, contents = plan_files(found, cluster, folder)
    write_files(folder, contents)
    _print_plan(found.plan, files, json_)


def _print_plan(plan: Any, files: dict[str, str], json_: bool) -> None:
    if json_:
        from planner.records import plan_record

        print_json(plan_record(plan, files))
    else:
        from planner.report import report

        print_sections(report(plan, files))


@cli.command()
@plan_argument
@json_option
@click.pass_context
def report(context: click.Context, plan_path: str, json_: bool) -> None:
    """Print a plan's report again."""
    from planner.files import file_names
    from planner.plan import read_plan

    path = plan_file(plan_path)
    _print_plan(read_plan(path), file_names(path.parent, plan=path.name), as_json(context, json_))
