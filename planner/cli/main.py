"""The command line: `plan --model lstm --gpus 8`, and a verb for every later step.

Nothing heavy is imported before it is needed: `plan --help` and `plan hardware` know no torch. This
is the one place of the planner that may reach into `runtime`, inside functions only; verbs that do
not are in `cli_inspect`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cost_models.errors import BadValue
from cost_models.memory import MEMORY_HEADROOM
from planner.cli import inspect as cli_inspect
from planner.cli import solve as cli_solve
from planner.cli.group import PlanGroup, end_on_interrupt, uncollected
from planner.cli.options import (
    NATURAL,
    SECONDS,
    WHOLE,
    as_json,
    check_clip_norm,
    check_folder,
    check_option,
    json_option,
    optimizer_settings,
    out_option,
    plan_argument,
    plan_file,
    settings_of,
    share_of,
    slug,
)
from planner.cli.output import StepBar, print_json, print_sections, progress_bar, write_files
from planner.graph.checking import checking, passes_words
from planner.search.budget import TIME_LIMIT, Budget
from planner.state import hash_seed

__all__ = ["cli", "main"]

DEFAULT_HARDWARE = "dgx-h100"


def main() -> None:
    """The console script `plan`."""
    end_on_interrupt()
    if _makes_a_persons_model(sys.argv[1:]):
        hash_seed.start_again()
    try:
        cli.main()
    except SystemExit as end:
        # Taking millions of records apart again lasts most of a second.
        # Where processes were started, what they share is to be given back in order.
        if "runtime.launcher" not in sys.modules:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def _makes_a_persons_model(words: list[str]) -> bool:
    """Whether this process is to make a model that a person wrote: ranks make it again, and both
    are to go through sets alike."""
    return any(":" in word for word in words) or (
        bool(words) and words[0] in ("simulate", "explain", "compare")
    )


@click.group(
    cls=PlanGroup,
    invoke_without_command=True,
    subcommand_metavar="[VERB PLAN ...]",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--model",
    metavar="NAME",
    help="A built-in model (see plan models), module:function or FILE.py:function.",
)
@click.option("--gpus", type=WHOLE, help="Number of devices.  [default: all of one node]")
@click.option(
    "--nodes",
    type=WHOLE,
    help="Spread the devices evenly over N nodes.  [default: as few as possible]",
)
@click.option(
    "--hardware",
    metavar="NAME|FILE",
    help=f"A cluster (see plan hardware).  [default: {DEFAULT_HARDWARE}]",
)
@click.option(
    "--batch", type=WHOLE, help="Global batch size.  [default: the model's own, per device]"
)
@click.option("--seq", type=WHOLE, help="Sequence length.  [default: the model's own]")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a size of the model; may be repeated.",
)
@click.option(
    "--precision",
    metavar="FORMAT",
    help=(
        "fp32, fp64, bf16, or bf16-mixed: parameters in float32, products in bfloat16.  "
        "[default: bf16-mixed on GPUs that support it, else fp32]"
    ),
)
@click.option(
    "--optimizer",
    metavar="NAME",
    help="adam, adamw, sgd or sgd-momentum.  [default: the model's own]",
)
@click.option("--lr", metavar="X", type=float, help="Learning rate.  [default: the model's own]")
@click.option(
    "--weight-decay", metavar="X", type=float, help="Weight decay.  [default: the optimizer's]"
)
@click.option(
    "--momentum",
    metavar="X",
    type=float,
    help="Momentum of sgd.  [default: 0, for sgd-momentum 0.9]",
)
@click.option("--betas", metavar="A,B", help="Betas of adam and adamw.  [default: 0.9,0.999]")
@click.option(
    "--clip-norm",
    metavar="X",
    type=float,
    help="Clip the global norm of the gradients to this.  [default: no clipping]",
)
@click.option(
    "--memory-headroom",
    metavar="SHARE",
    default=f"{100 * MEMORY_HEADROOM:g}%",
    show_default=True,
    help=("Keep this share of a device's usable memory free: 5% or 0.05."),
)
@click.option(
    "--mesh",
    metavar="AXES",
    help="Use this mesh, such as dp=4,tp=2: dp splits the batch, tp does not, others are free.",
)
@click.option(
    "--pin",
    "pins",
    metavar="PART=HOW",
    multiple=True,
    help=(
        "Fix how a part of the model runs (data, tensor, expert, replicate) or how its parameters "
        "are kept (ddp, zero1, zero2, zero3). May be repeated; the last match wins."
    ),
)
@click.option(
    "--time-limit",
    type=SECONDS,
    help=(
        "Stop then and take the best plan so far, with the bound proved so far.  [default: "
        f"{TIME_LIMIT:g}]"
    ),
)
@check_option(
    "the output of every pass and the programs of all ranks (planning takes 1.5 times as long)"
)
@out_option("plans/MODEL-GPUS")
@json_option
@click.pass_context
def cli(context: click.Context, /, json_: bool, **asked: Any) -> None:
    """Split the training of a PyTorch model over devices: find the fastest split, predict its
    step time and memory, prove how close it is to the best, and run it.

    \b
    Examples
      plan --model lstm --gpus 8                             a built-in model on one DGX H100
      plan --model gpt2 --gpus 16 --hardware dgx-a100        two nodes of A100s
      plan --model lstm --gpus 4 --set hidden=512 --set layers=2 --batch 1024
      plan --model gpt --gpus 8 --mesh dp=4,tp=2 --pin 'h.*.attn=tensor' --out plans/pinned
      plan --model my_model.py:make --gpus 2 --hardware cpu  your own: make() returns (model, batch, loss)

    \b
      plan simulate plans/lstm-8 --hardware dgx-a100         the same plan on other hardware
      plan explain plans/lstm-8                              every choice and its cost
      plan run plans/my_model-make-2 --steps 5 --verify      run it here and compare with one process
      plan calibrate                                         measure this machine
      plan compare plans/my_model-make-2                     predicted and measured times

    PLAN is a plan's folder or its plan.json.
    """
    if context.invoked_subcommand is not None:
        given = [
            n
            for n in asked
            if context.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            verb, option = (
                context.invoked_subcommand,
                "--" + {"settings": "set", "pins": "pin"}.get(given[0], given[0]),
            )
            raise BadValue(
                f"{option} comes before {verb!r}: put the options of {verb} after it (plan "
                f"{verb} --help)"
            )
        context.obj = json_
    elif asked["model"] is not None:
        _front_door(json_=json_, **asked)
    elif json_ or any(value for name, value in asked.items() if name != "memory_headroom"):
        raise BadValue(
            "--model is missing: plan --model lstm --gpus 8; plan models lists the built-in ones"
        )
    else:
        click.echo(context.get_help())


@uncollected()
def _front_door(
    *,
    model: str,
    gpus: int | None,
    nodes: int | None,
    hardware: str | None,
    batch: int | None,
    seq: int | None,
    settings: tuple[str, ...],
    precision: str | None,
    optimizer: str | None,
    lr: float | None,
    weight_decay: float | None,
    momentum: float | None,
    betas: str | None,
    clip_norm: float | None,
    memory_headroom: str,
    mesh: str | None,
    pins: tuple[str, ...],
    time_limit: float | None,
    check: bool,
    out: Path | None,
    json_: bool,
) -> None:
    """Plan, write, report."""
    from cost_models.cluster import load_cluster

    cluster = load_cluster(hardware or DEFAULT_HARDWARE, num_devices=gpus, num_nodes=nodes)
    folder = check_folder(out or Path("plans") / f"{slug(model)}-{cluster.num_devices}")
    values = settings_of(settings)
    check_clip_norm(clip_norm)
    trained = optimizer_settings(weight_decay=weight_decay, momentum=momentum, betas=betas)
    headroom = share_of("--memory-headroom", memory_headroom)
    with progress_bar() as progress:
        progress("loading torch", 0.0)
        from planner.report.files import plan_files
        from planner.search.search import search
        from planner.strategy.pins import parse_mesh, parse_pin
        from planner.workload.ask import Ask, default_precision, dtypes_of

        dtype, compute = dtypes_of(precision or default_precision(model, cluster.device))
        ask = Ask(
            model=model,
            batch=batch,
            seq=seq,
            settings=values,
            dtype=dtype,
            num_devices=cluster.num_devices,
            compute=compute,
            clip_norm=clip_norm,
            memory_headroom=headroom,
            optimizer=optimizer or "",
            learning_rate=lr,
            optimizer_settings=trained,
        )
        pinned = None if mesh is None else parse_mesh(mesh, cluster.num_devices)
        budget = Budget.start(time_limit or TIME_LIMIT)
        with checking(check) as passes:
            found = search(
                ask,
                cluster,
                mesh=pinned,
                pins=tuple(map(parse_pin, pins)),
                progress=progress,
                own_process=True,
                budget=budget,
            )
        files, contents = plan_files(found, cluster, folder)
    write_files(folder, contents)
    cli_inspect.print_plan(found.plan, files, json_)
    if check:
        click.echo(passes_words(passes), err=True)


@cli.command()
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
    cli_inspect.print_run(plan, result.as_json(), json_)
    if result.verification is not None:
        from runtime.verdict import EXIT_CODES

        context.exit(EXIT_CODES[result.verification.verdict])


@cli.command()
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
    cli_inspect.print_comparison(found.as_json(), files, json_)


@cli.command()
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


for _verb in (*cli_inspect.VERBS, cli_solve.solve):
    cli.add_command(_verb)
