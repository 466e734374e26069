"""`torchrun --nproc-per-node N -m runtime PLAN`: one rank of a run, for users with a launcher of
their own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from planner.state import hash_seed

if __name__ == "__main__":
    hash_seed.start_again()  # first of all: each of torchrun's processes has a hash seed of its own

import torch

from cost_models.errors import FailedCheck, UserError
from runtime.verdict import EXIT_CODES
from runtime.worker import RunRequest, run


def main() -> int:
    """Runs the plan on this rank; rank 0 prints the losses, or one JSON object. Returns 2 for a
    mistake of the user's; on rank 0, the verdict's exit code if it verifies."""
    options = _parser().parse_args()
    request = RunRequest(
        plan=options.plan,
        num_steps=options.steps,
        seed=options.seed,
        verify=options.verify,
        device=options.device,
        check=options.check,
    )
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        result = run(request, _silent if options.json else _say)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # the other ranks may hang in a collective; leaving cleanly would wait for them
    except FailedCheck as error:
        print(
            f"error: {error}: this is a bug in shardwright; please report it",
            file=sys.stderr,
            flush=True,
        )
        os._exit(4)
    if result is not None and options.json:
        print(json.dumps(result.as_json()))
    elif result is not None and result.verification is not None:
        print(result.verification)
    if result is not None and result.verification is not None:
        return EXIT_CODES[result.verification.verdict]
    return 0


def _say(event: dict[str, Any]) -> None:
    print(
        f"step {event['step']}  loss {event['loss']:.6f}  {event['time_s'] * 1e3:.2f} ms",
        flush=True,
    )


def _silent(event: dict[str, Any]) -> None:
    """Drops events: with `--json`, stdout has one JSON object and nothing else."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runtime", description=__doc__)
    parser.add_argument("plan", help="the plan.json that `plan` wrote")
    parser.add_argument("--steps", type=int, default=10, help="training steps (default 10)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the initial parameters (default 0)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare loss and every gradient with one process"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="",
        help="cuda or cpu (default cuda if there is one)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check every rank's program; exit code 4 if there is a bug in shardwright",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
