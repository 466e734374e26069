"""The user's own model: `module:function` or `path/to/file.py:function`, imported and called.

Whatever goes wrong in the user's code is reported in one line with the place where it happened.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cost_models.errors import BadValue, UnknownName, unknown_name
from planner.models.spec import check_given_once
from planner.torch_private.modes import unfaked

__all__ = ["call", "is_user_model", "load_function", "user_options", "without_function"]


def is_user_model(spec: str) -> bool:
    """Whether `spec` names a function of the user's rather than a built-in model."""
    return ":" in spec


def user_options(
    spec: str, *, batch: int | None, seq: int | None, settings: Mapping[str, str]
) -> dict[str, Any]:
    """The sizes that were given, each setting as the first of int, float, bool and str that it
    reads as.

    Raises `BadValue` for a batch or a sequence length that is given twice or is no whole number of
    at least 1.
    """
    flags = {"batch": batch, "seq": seq}
    check_given_once(flags, settings)
    given = {key: value for key, value in flags.items() if value is not None}
    options = {**given, **{key: _parse(text) for key, text in settings.items()}}
    for key in flags:
        value = options.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadValue(
                f"{key} is {value} for model {spec!r}: give a whole number of at least 1"
            )
    return options


def _parse(text: str) -> int | float | bool | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def without_function(file: str) -> UnknownName:
    """The error for a file that is named without the function in it, with the functions that it
    has."""
    try:
        body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    except OSError:
        return UnknownName(f"model {file!r}: no such file in {Path.cwd()}; write {file}:FUNCTION")
    except (SyntaxError, ValueError) as error:
        return UnknownName(
            f"model {file!r}: not a Python file ({_first_line(error)}); write FILE.py:FUNCTION"
        )
    names = [
        part.name
        for part in body
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
    ]
    which = " or ".join(f"{file}:{name}" for name in names[:3]) or f"{file}:FUNCTION"
    return UnknownName(
        f"model {file!r} names no function: write {which}, one that returns (model, batch, loss)"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `spec` names, its module imported with the current directory on
    `sys.path`."""
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise UnknownName(f"model {spec!r}: write module:function or path/to/file.py:function")
    module = (
        _import_file(spec, Path(where)) if where.endswith(".py") else _import_module(spec, where)
    )
    function = getattr(module, name, None)
    if function is None:
        own = inspect.getmembers(
            module, lambda value: inspect.isfunction(value) and value.__module__ == module.__name__
        )
        known = [key for key, _ in own]
        raise unknown_name(f"function in {where}", name, known or ["none"])
    if not callable(function):
        raise BadValue(
            f"model {spec!r}: {name} is a {type(function).__name__}, not a function that returns the model"
        )
    return function  # type: ignore[no-any-return]


def call(spec: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What `function` returns for those of `arguments` that were set (are not None).

    Raises `UnknownName` for an argument that its signature does not have, `BadValue` for one that
    it lacks or if it fails.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in given:
            if key not in parameters:
                raise unknown_name(f"{spec} option", key, list(parameters) or ["none"])
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for key, parameter in parameters.items():
        if parameter.kind in named and parameter.default is parameter.empty and key not in given:
            flag = f"--{key} N" if key in ("batch", "seq") else f"--set {key}=VALUE"
            raise BadValue(
                f"{spec} needs a value for {key!r}: give {flag}, or a default in its signature"
            )
        if isinstance(parameter.default, bool) and not isinstance(given.get(key, True), bool):
            raise BadValue(f"--set {key}={given[key]}: {key} must be true or false")
    try:
        return function(**given)
    except (Exception, SystemExit) as error:
        raise BadValue(f"{spec} failed: {_reason(error)}") from error


def _import_module(spec: str, name: str) -> ModuleType:
    _put_cwd_on_path()
    try:
        with unfaked():  # what a module makes when it is imported, it makes once for the process
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{name}.".startswith(f"{error.name}.")
        ):
            raise UnknownName(
                f"model {spec!r}: no module {error.name!r} in {Path.cwd()} or on the Python path"
            ) from error
        raise BadValue(f"model {spec!r}: importing {name} failed: {_reason(error)}") from error


def _import_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownName(f"model {spec!r}: no file {path} in {Path.cwd()}")
    _put_cwd_on_path()
    found = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = (
        module  # dataclasses and pickles in the file look their module up by name
    )
    try:
        with unfaked():
            found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        _restore(path.stem, before)
        raise BadValue(f"model {spec!r}: importing {path} failed: {_reason(error)}") from error
    if before is not None:
        _restore(path.stem, before)
    return module


def _restore(name: str, module: ModuleType | None) -> None:
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module


def _put_cwd_on_path() -> None:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _reason(error: BaseException) -> str:
    """The error's kind, the first line of its message and the line of code that raised it."""
    text = str(error).strip().splitlines()
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename
    ]
    last = next(
        (frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1]
    )
    place = (
        f" ({Path(last.filename).name}, line {last.lineno})" if last.filename != __file__ else ""
    )
    return f"{type(error).__name__}: {text[0] if text else 'no message'}{place}"
