"""The kinds of value that options take, and their checks, made before anything slow begins."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from cost_models.errors import BadPlan, BadValue

__all__ = [
    "MICROBATCHES", "NATURAL", "SECONDS", "WHOLE", "as_json", "check_clip_norm", "check_folder",
    "check_global_batch", "check_option", "json_option", "optimizer_settings", "out_option",
    "plan_argument", "plan_file", "settings_of", "share_of", "slug",
]  # fmt: skip

Function = TypeVar("Function", bound=Callable[..., Any])


class _Whole(click.ParamType[int]):
    name = "N"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if not re.fullmatch(r"[0-9]+", text) or int(text) < self.least:
            option = param.opts[0] if param is not None else "value"
            raise BadValue(f"{option} {text}: give a whole number of at least {self.least}")
        return int(text)


class _Microbatches(_Whole):
    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if text == "auto":
            return 0
        try:
            return super().convert(text, param, ctx)
        except BadValue as error:
            raise BadValue(f"{error}, or auto") from None


class _Seconds(click.ParamType[float]):
    name = "SECONDS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = float("nan")
        if not 0 < seconds < float("inf"):
            raise BadValue(f"--time-limit {value}: give a positive number of seconds")
        return seconds


#: A whole number from 1 on, and one from 0 on; a number of microbatches, 0 for `auto`; seconds of a
#: time limit.
WHOLE = _Whole(1)
NATURAL = _Whole(0)
MICROBATCHES = _Microbatches(1)
SECONDS = _Seconds()


def json_option(function: Function) -> Function:
    """`--json`."""
    return click.option(
        "--json", "json_", is_flag=True, help="Print one JSON object on stdout and nothing else."
    )(function)


def check_option(what: str) -> Callable[[Function], Function]:
    """`--check`."""
    return click.option(
        "--check", is_flag=True, help=f"Check {what}; exit code 4 if there is a bug in shardwright."
    )


def out_option(default: str) -> Callable[[Function], Function]:
    """`--out`."""
    help_text = f"Folder for the files.  [default: {default}]"
    return click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help=help_text)


def plan_argument(function: Function) -> Function:
    """`PLAN`."""
    return click.argument("plan_path", metavar="PLAN")(function)


def as_json(context: click.Context, json_: bool) -> bool:
    """Whether `--json` was given, on the verb or before it."""
    return json_ or bool(context.obj)


def settings_of(pairs: tuple[str, ...]) -> Mapping[str, str]:
    """`--set name=value` by name."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise BadValue(f"--set {pair}: write --set NAME=VALUE, as in --set hidden=1024")
        if name in found:
            raise BadValue(
                f"--set {name} is given twice, as {found[name]} and as {value}: give it once"
            )
        found[name] = value
    return found


def plan_file(path: str) -> Path:
    """The plan.json that PLAN, a file or a plan's folder, names."""
    found = Path(path)
    if found.is_dir():
        found = found / "plan.json"
    if not found.is_file():
        raise BadPlan(f"no plan file {found}: make one with plan --model NAME --gpus N")
    return found


def check_clip_norm(value: float | None) -> None:
    """Raises `BadValue` for a norm that is not positive."""
    if value is not None and not 0 < value < float("inf"):
        raise BadValue(f"--clip-norm {value}: give a positive number")


def check_global_batch(batch: int | None, global_batch: int | None) -> None:
    """Raises `BadValue` if the two names of one option have unlike values."""
    if None not in (batch, global_batch) and batch != global_batch:
        raise BadValue(
            f"--batch {batch} and --global-batch {global_batch} are the same option: give one of them"
        )


def optimizer_settings(*, betas: str | None, **numbers: float | None) -> dict[str, Any]:
    """The optimizer's settings that were given: `--betas 0.9,0.95` as two numbers."""
    found: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    if betas is not None:
        try:
            found["betas"] = tuple(map(float, betas.split(",")))
        except ValueError:
            raise BadValue(f"--betas {betas}: give two numbers, as in --betas 0.9,0.95") from None
    return found


def share_of(option: str, text: str) -> float:
    """A share from 0 up to 1, written as `0.05` or `5%`."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise BadValue(
            f"{option} {text}: give a share from 0 up to, but not including, 1, as in 0.05 or 5%"
        )
    return share


def check_folder(folder: Path) -> Path:
    """`folder`, checked: files can be written to it, or it can be made. Makes nothing."""
    at = folder
    while not at.exists() and at != at.parent and not at.is_symlink():
        at = at.parent
    if not at.is_dir():
        raise BadValue(
            f"--out {folder}: {at} is a file, not a folder; choose another with --out DIR"
        )
    if not os.access(at, os.W_OK | os.X_OK):
        raise BadValue(f"--out {folder}: {at} cannot be written to; choose another with --out DIR")
    return folder


def slug(model: str) -> str:
    """A model's name as part of a folder's name: `nets/my.py:make` is `my-make`."""
    where, _, function = model.rpartition(":")
    file = Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]
    words = f"{file}-{function}" if where else model
    return re.sub(r"[^\w.+-]+", "-", words).strip("-.") or "model"
