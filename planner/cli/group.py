"""What the verbs of `plan` share, and how they end: a mistake of the user's is one line on stderr,
or one JSON object, and exit code 2; never a traceback.

    0   done                    3   verified: no proof
    1   verified: wrong         4   --check: a fault of ours
    2   a mistake of the user's, or a limit             130   Ctrl-C
"""

from __future__ import annotations

import difflib
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from cost_models.errors import BadValue, FailedCheck, UnknownName, UserError, unknown_name

__all__ = ["INTERRUPTED", "PlanGroup", "end_on_interrupt", "uncollected"]

#: The exit code after Ctrl-C, as shells count: 128 + SIGINT.
INTERRUPTED = 130
_VERBS = (
    "simulate",
    "explain",
    "report",
    "run",
    "calibrate",
    "compare",
    "solve",
    "models",
    "hardware",
)


def end_on_interrupt() -> None:
    """From here on Ctrl-C ends the process at once, with one line.

    A `KeyboardInterrupt` would have to pass through imports that go on half done, callbacks that
    Python prints a traceback for, and torch's C++, which aborts. Code that has something to clean
    up sets its own handler meanwhile (`plan solve`, the launcher) or holds the signal back
    (`write_atomically`).
    """
    as_json = "--json" in sys.argv[1:]

    def pressed(number: int, frame: object) -> None:
        stream, words = _ending("Interrupted", "interrupted", as_json, INTERRUPTED)
        # On a terminal: clears the line of a progress bar, which also hides the cursor.
        clear = "\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(2, clear.encode())
        os.write(stream, words.encode())
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, pressed)


class PlanGroup(click.Group):
    """A click group whose every error comes out in the same form, click's own included."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Runs the command line and exits."""
        words = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in words
        try:
            with self.make_context("plan", list(words)) as context:  # which takes its list apart
                self.invoke(context)
                sys.stdout.flush()
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except click.ClickException as error:
            _fail(_of_click(error, words), as_json)
        except UserError as error:
            _fail(error, as_json)
        except FailedCheck as error:
            _end(
                error.kind,
                f"{error}: this is a bug in shardwright, not in the model or the command; please "
                "report it",
                as_json,
                4,
            )
        except (KeyboardInterrupt, click.Abort):
            _interrupted(as_json)
        except BrokenPipeError:
            # The reader has gone: say nothing at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        sys.exit(0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order in which they are needed."""
        return [name for name in _VERBS if name in self.commands]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb; for an unknown one the error names the nearest."""
        if args and self.get_command(ctx, args[0]) is None:
            error = unknown_name("verb", args[0], self.list_commands(ctx))
            raise UnknownName(f"{error}; to plan a model: plan --model NAME --gpus N")
        return super().resolve_command(ctx, args)


def _of_click(error: click.ClickException, words: Sequence[str]) -> UserError:
    """click's own errors as ours."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "plan"
    if isinstance(error, click.NoSuchOption):
        known = (
            [option for p in context.command.params for option in p.opts if option.startswith("--")]
            if context
            else []
        )
        near = difflib.get_close_matches(error.option_name, known, n=1, cutoff=0.7)
        hint = _as_setting(error.option_name, words) or (
            f"did you mean {near[0]}? " if near else ""
        )
        return UnknownName(f"unknown option {error.option_name}: {hint}{path} --help lists all")
    message = error.format_message().rstrip(".")
    return BadValue(f"{message[:1].lower()}{message[1:]}; see {path} --help")


def _as_setting(option: str, words: Sequence[str]) -> str:
    """The hint to use `--set` for a size that was given as an option of its own (`--hidden 128`);
    empty if the model has no such size."""
    given = dict(zip(words, [*words[1:], ""], strict=True)) | dict(
        word.split("=", 1) for word in words if "=" in word
    )
    model, value = given.get("--model", ""), given.get(option, "")
    if not model or ":" in model:
        return ""
    from planner.workload.load import resolve_options

    try:
        sizes = resolve_options(model, batch=None, seq=None, settings={}, num_devices=1)
    except UserError:
        return ""
    name = option.removeprefix("--").replace("-", "_")
    return (
        f"the sizes of {model} are set by --set: --set {name}={value or 'VALUE'}; "
        if name in sizes
        else ""
    )


def _fail(error: UserError, as_json: bool) -> NoReturn:
    _end(error.kind, " ".join(str(error).split()), as_json, 2)


def _interrupted(as_json: bool) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would only make the end noisy
    _end("Interrupted", "interrupted", as_json, INTERRUPTED)


def _end(kind: str, message: str, as_json: bool, code: int) -> NoReturn:
    stream, words = _ending(kind, message, as_json, code)
    print(words, end="", file=sys.stdout if stream == 1 else sys.stderr, flush=True)
    sys.exit(code)


def _ending(kind: str, message: str, as_json: bool, code: int) -> tuple[int, str]:
    """The stream (1 or 2) and the last line to write to it."""
    if as_json:
        return 1, json.dumps({"error": {"kind": kind, "message": message}}) + "\n"
    sep = "" if code == INTERRUPTED else "error: "
    return 2, f"plan: {sep}{message}\n"


@contextmanager
def uncollected() -> Iterator[None]:
    """A context without garbage collection: planning, or reading a large problem, makes millions of
    records that live to the end, and going through them again and again takes a fifth of the time.
    Afterwards they count as old, so that the next collection does not go through them at once."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.unfreeze()
            gc.enable()
