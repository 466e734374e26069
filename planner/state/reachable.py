"""All that a training step can reach beside its arguments: attributes of modules, containers and
objects behind them, closures of functions (gradient hooks of parameters among them), and the
globals that the model's own code names.

module, loss -> `Holder`s, each a place that keeps values, with the path by which the model's author
knows it. The order is the same in every process.
"""

from __future__ import annotations

import functools
import logging
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from planner.state.held_by_code import function_of, held_by_class, held_by_function, slots_of
from planner.state.holder import (
    Contents,
    Holder,
    argument_name,
    attribute_name,
    item_name,
    put_nothing,
    refill,
    refill_list,
    refill_set,
    replace_items,
)
from planner.state.source_line import is_own
from planner.state.unnamed import stateful
from planner.state.watched import Watched
from planner.torch_private.hooks import gradient_hooks

__all__ = ["PLAIN", "reachable"]


#: The attributes of every module; `training` is a setting like any other.
_OWN = frozenset(vars(nn.Module())) - {"training"}

#: Values that hold nothing.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)

_LEAVES = (
    *PLAIN,
    Watched,
    Tensor,
    types.ModuleType,
    types.BuiltinFunctionType,
    logging.Logger,
    torch.Generator,
)

#: Libraries whose objects are not searched: they keep internal records, and do not change what a
#: step computes unseen.
_CLOSED = (
    "torch",
    "numpy",
    "keras",
    "threading",
    "logging",
    "_thread",
    "re",
    "enum",
    "weakref",
    "inspect",
    "importlib",
    "contextlib",
)

#: How far from a module the search goes.
_DEPTH = 12


def reachable(module: nn.Module, loss: Any) -> tuple[Holder, ...]:
    """All that a step of the module and the loss can reach."""
    walk = _Walk(module)
    for path, child in module.named_modules():
        walk.visit(path, child, 0)
    walk.visit("loss", loss, 0)
    for part, prefix in ((module, ""), (loss, "loss.")):
        for path, parameter in part.named_parameters() if isinstance(part, nn.Module) else ():
            for hook in gradient_hooks(parameter):
                walk.visit(f"{prefix}{path}.hook", hook, 0)
    for child in module.modules():
        walk.code_of(type(child))
    return tuple(walk.holders)


def _is_kept_by_keras(thing: Any) -> bool:
    """Whether a module is a layer of Keras: its variables are parameters and buffers of a
    `KerasModule` already."""
    return any(base.__module__.partition(".")[0] == "keras" for base in type(thing).__mro__)


class _Walk:
    def __init__(self, module: nn.Module) -> None:
        self.holders: list[Holder] = []
        self.seen: dict[int, Any] = {}
        self.registered = {id(child) for child in module.modules()}
        self.coded: set[type] = set()
        self.functions: dict[type, list[types.FunctionType]] = {}

    def visit(self, path: str, thing: Any, depth: int, shared: bool = False) -> None:
        if isinstance(thing, _LEAVES) or id(thing) in self.seen or depth > _DEPTH:
            return
        self.seen[id(thing)] = thing
        if isinstance(thing, type):
            self.code_of(thing)
            return
        for holder in self._holders(path, thing, shared):
            self.holders.append(holder)
            for key, value in holder.get().items():
                self.visit(holder.name(key), value, depth + 1, holder.shared)

    def _holders(self, path: str, thing: Any, shared: bool) -> Iterator[Holder]:
        if isinstance(thing, nn.Module):
            if not _is_kept_by_keras(thing):
                yield from self._module(path, thing, shared)
        elif isinstance(thing, dict):
            yield Holder(
                thing=thing,
                get=lambda: dict(thing),
                put=refill(thing),
                name=item_name(path),
                shared=shared,
            )
        elif isinstance(thing, list | deque):
            yield Holder(
                thing=thing,
                get=lambda: dict(enumerate(thing)),
                put=refill_list(thing),
                name=item_name(path),
                shared=shared,
            )
        elif isinstance(thing, tuple):
            yield Holder(
                thing=thing,
                get=lambda: dict(enumerate(thing)),
                put=put_nothing,
                name=item_name(path),
                shared=shared,
            )
        elif isinstance(thing, set):
            yield Holder(
                thing=thing,
                get=lambda: {"": frozenset(thing)},
                put=refill_set(thing),
                name=lambda _: path,
                shared=shared,
            )
        elif isinstance(thing, types.FunctionType):
            yield from held_by_function(path, thing)
        elif isinstance(thing, types.MethodType):
            self.visit(path, thing.__self__, 0, shared)
            self.visit(path, thing.__func__, 0, shared)
        elif isinstance(thing, functools.partial):
            keeps: Contents = {**thing.keywords, **dict(enumerate(thing.args))}
            yield Holder(
                thing=thing,
                get=lambda: keeps,
                put=put_nothing,
                name=lambda key: f"{path}.{argument_name(key)}",
                shared=shared,
            )
            self.visit(path, thing.func, 0, shared)
        else:
            found = stateful(path, thing, shared) or self._object(path, thing, shared)
            yield from (found,) if found is not None else ()

    def _module(self, path: str, module: nn.Module, shared: bool) -> Iterator[Holder]:
        """A module's attributes. Those registered in modules of the model are reported
        separately."""

        def get() -> Contents:
            return {key: value for key, value in vars(module).items() if key not in _OWN}

        def put(before: Contents) -> None:
            replace_items(vars(module), get(), before)

        yield Holder(thing=module, get=get, put=put, name=attribute_name(path), shared=shared)
        own: list[dict[str, Any]] = [module._parameters, module._buffers]
        for kept in own if id(module) in self.registered else [*own, module._modules]:
            yield Holder(
                thing=kept,
                get=lambda d=kept: dict(d),  # type: ignore[misc]
                put=refill(kept),
                name=attribute_name(path),
                shared=shared,
            )
        self.code_of(type(module))

    def _object(self, path: str, thing: Any, shared: bool) -> Holder | None:
        kind = type(thing)
        if any(base.__module__.partition(".")[0] in _CLOSED for base in kind.__mro__):
            return None
        slots = [name for base in kind.__mro__ for name in slots_of(base)]
        if not hasattr(thing, "__dict__") and not slots:
            return None

        def get() -> Contents:
            held = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
            return {**held, **getattr(thing, "__dict__", {})}

        def put(before: Contents) -> None:
            for name in set(slots) & set(before):
                object.__setattr__(thing, name, before[name])
            if hasattr(thing, "__dict__"):
                replace_items(
                    thing.__dict__,
                    dict(thing.__dict__),
                    {k: v for k, v in before.items() if k not in slots},
                )

        self.code_of(kind)
        return Holder(thing=thing, get=get, put=put, name=attribute_name(path), shared=shared)

    def code_of(self, kind: type) -> None:
        """Attributes of the author's own classes, and the globals of their module that their code
        reads."""
        if kind in self.coded:
            return
        for base in kind.__mro__:
            if (id(base) in self.seen and base is not kind) or (id(base), "code") in self.seen:  # type: ignore[comparison-overlap]
                continue
            functions = self._own_functions(base)
            if not functions:
                continue
            self.seen[id(base), "code"] = base  # type: ignore[index]
            holder = held_by_class(base)
            self.holders.append(holder)
            for key, value in holder.get().items():
                self.visit(holder.name(key), value, 1, shared=True)
            for function in functions:
                self.visit(base.__qualname__, function, 1)
        self.coded.add(kind)

    def _own_functions(self, kind: type) -> list[types.FunctionType]:
        """The functions of a class that the model's author wrote; looked up once per walk, since
        every module has torch's base class."""
        if kind not in self.functions:
            every = map(function_of, vars(kind).values())
            self.functions[kind] = [
                f for f in every if f is not None and is_own(f.__code__.co_filename)
            ]
        return self.functions[kind]
