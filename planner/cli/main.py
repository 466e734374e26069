"""The command line: `plan --model lstm --gpus 8`, and a verb for every later step.

Nothing heavy is imported before it is needed: `plan --help` and `plan hardware` know no torch. What
each verb does is in the file of its group: `inspect`, `explain`, `run`, `solve`; `plan` for none.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

import click

from cost_models.errors import BadValue
from cost_models.memory import MEMORY_HEADROOM
from planner.cli.explain import explain
from planner.cli.group import PlanGroup, end_on_interrupt
from planner.cli.inspect import hardware, models, report, simulate
from planner.cli.options import (
    MICROBATCHES,
    SECONDS,
    WHOLE,
    check_option,
    json_option,
    out_option,
)
from planner.cli.plan import DEFAULT_HARDWARE, plan_model
from planner.cli.run import calibrate, compare, run
from planner.cli.solve import solve
from planner.search.budget import TIME_LIMIT
from planner.state import hash_seed

__all__ = ["cli", "main"]


def main() -> None:
    """The console script `plan`."""
    end_on_interrupt()
    if _makes_a_persons_model(sys.argv[1:]):
        hash_seed.start_again()
    try:
        cli.main()
    except SystemExit as end:
        # Freeing millions of records one by one takes most of a second. If processes were started,
        # what they share must be released in order.
        if "runtime.launcher" not in sys.modules:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def _makes_a_persons_model(words: list[str]) -> bool:
    """Whether this process builds a model that the user wrote: ranks build it again, and must
    iterate over sets in the same order."""
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
@click.option("--global-batch", type=WHOLE, help="The same as --batch.")
@click.option(
    "--microbatches",
    type=MICROBATCHES,
    default="auto",
    help=(
        "Run a step in so many equal parts of the batch, one after another; auto: one, or more if "
        "memory is short.  [default: auto]"
    ),
)
@click.option(
    "--per-microbatch",
    metavar="PART",
    multiple=True,
    help=(
        "Allow modules that match, '*' for all, to take statistics over each microbatch instead of "
        "the batch (batch norm). May be repeated."
    ),
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
        "fp32, fp64, bf16; bf16-mixed or fp16-mixed: parameters in float32, products in the short "
        "format; bf16-master or fp16-master: parameters in the short format, updated from a float32 "
        "master copy. fp16 scales the loss.  [default: bf16-mixed on GPUs that support it, "
        "fp16-mixed on those that support only that, else fp32]"
    ),
)
@click.option(
    "--reduce-gradients",
    metavar="FORMAT",
    help="Sum gradients over devices in fp32, bf16 or fp16.  [default: fp32; bf16 with bf16]",
)
@click.option(
    "--accumulate-gradients",
    metavar="FORMAT",
    help="Add gradients up over microbatches in fp32, bf16 or fp16.  [default: the wider of the "
    "optimizer's format and that in which they are summed over devices]",
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
    help=(
        "Use this mesh, such as dp=4,tp=2: dp splits the batch, tp does not, others are free. With "
        "--pipeline: the mesh of a stage, or of each rank as in dp=2+dp=1."
    ),
)
@click.option(
    "--pipeline",
    metavar="N",
    type=WHOLE,
    help=(
        "Run the model in stages, on N pipeline ranks of GPUS / N devices each.  [default: one "
        "stage]"
    ),
)
@click.option(
    "--schedule",
    metavar="NAME|FILE",
    help=(
        "The order of a pipeline's actions: gpipe, 1f1b, interleaved, zbh1, interleaved-zb, zbv, "
        "dualpipev, found (for the times of the stages), or a CSV file as torch writes it.  "
        "[default: 1f1b]"
    ),
)
@click.option(
    "--chunks",
    metavar="N",
    type=WHOLE,
    help="Stages of a pipeline rank.  [default: as few as the schedule can have]",
)
@click.option(
    "--pin",
    "pins",
    metavar="PART=HOW",
    multiple=True,
    help=(
        "Fix how a part of the model runs (data, tensor, expert, replicate), how its parameters "
        "are kept (ddp, zero1, zero2, zero3) or what backward computes again (recompute, selective, "
        "keep). May be repeated; the last match wins. Or all at once in Megatron's names: "
        "pp=4,tp=2,dp=1,microbatch=2,schedule=1f1b,recompute=full,zero=1."
    ),
)
@click.option(
    "--recompute",
    metavar="HOW",
    help=(
        "What backward computes again to save memory: none, selective (cheap ops in layers), full "
        "(of a layer only its input is kept) or chosen.  [default: chosen]"
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
@click.option(
    "--compile",
    "compile_",
    is_flag=True,
    help=(
        "Compile chains of elementwise ops and norms into one kernel each, with torch's compiler: "
        "one pass over memory."
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
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name in asked
        and context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
    ]
    verb = context.invoked_subcommand
    if verb is not None:
        if given:
            raise BadValue(
                f"{given[0]} comes before {verb!r}: put the options of {verb} after it (plan "
                f"{verb} --help)"
            )
        context.obj = json_
    elif asked["model"] is not None:
        plan_model(json_=json_, **asked)
    elif json_ or given:
        raise BadValue(
            "--model is missing: plan --model lstm --gpus 8; plan models lists the built-in ones"
        )
    else:
        click.echo(context.get_help())


for _verb in (simulate, explain, report, run, calibrate, compare, solve, models, hardware):
    cli.add_command(_verb)
