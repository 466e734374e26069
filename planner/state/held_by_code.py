"""The values that functions and classes keep: defaults, closures, globals, attributes."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from planner.state.holder import (
    Contents,
    Holder,
    attribute_name,
    joined_name,
    put_nothing,
    refill_cell,
)
from planner.state.source_line import is_own

__all__ = ["function_of", "held_by_class", "held_by_function", "slots_of"]


def held_by_function(path: str, function: types.FunctionType) -> Iterator[Holder]:
    """A function's closure and defaults and, if the model's author wrote it, the globals that it
    names."""
    signature = inspect.signature(function)
    defaults = {
        p.name: p.default for p in signature.parameters.values() if p.default is not p.empty
    }
    yield Holder(
        thing=defaults,
        get=lambda: defaults,
        put=put_nothing,
        name=attribute_name(path),
        shared=True,
    )
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield Holder(
            thing=cell,
            get=lambda c=cell: _inside(c),  # type: ignore[misc]
            put=refill_cell(cell),
            name=lambda _, n=name: joined_name(path, n),  # type: ignore[misc]
        )
    if not is_own(function.__code__.co_filename):
        return
    names = [
        name for name in dict.fromkeys(_names(function.__code__)) if name in function.__globals__
    ]

    def get() -> Contents:
        return {name: function.__globals__[name] for name in names if name in function.__globals__}

    yield Holder(
        thing=function,
        get=get,
        put=function.__globals__.update,
        name=attribute_name(str(function.__module__)),
        shared=True,
    )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def held_by_class(kind: type) -> Holder:
    """The attributes of a class that are not code."""

    def get() -> Contents:
        return {
            k: v
            for k, v in vars(kind).items()
            if not k.startswith("__") and not k.startswith("_abc_") and not _is_code(v)
        }

    def put(before: Contents) -> None:
        now = get()
        for key in now.keys() - before.keys():
            delattr(kind, key)
        for key, value in before.items():
            if key not in now or now[key] is not value:
                setattr(kind, key, value)

    return Holder(thing=kind, get=get, put=put, name=attribute_name(kind.__qualname__), shared=True)


def slots_of(kind: type) -> list[str]:
    """The names of the slots of a class, without those that Python adds."""
    found = vars(kind).get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return [
        name
        for name in names
        if name not in ("__dict__", "__weakref__") and not name.startswith("__")
    ]


def function_of(value: Any) -> types.FunctionType | None:
    """The function behind a property, a method or the function itself; None for anything else."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


def _is_code(value: Any) -> bool:
    return (
        function_of(value) is not None
        or isinstance(value, type | property)
        or inspect.isdatadescriptor(value)
        or isinstance(value, types.MemberDescriptorType | functools.partialmethod)
    )


def _inside(cell: types.CellType) -> Contents:
    try:
        return {"": cell.cell_contents}
    except ValueError:  # not yet set
        return {}
