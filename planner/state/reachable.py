"""All that a training step can reach beside its arguments: attributes of modules, containers and
objects behind them, closures of functions (gradient hooks of parameters among them), and the
globals that the model's own code names.

module, loss -> `Holder`s, each a place that keeps values, with the path by which the model's author
knows it. The order is the same in every process.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import random
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planner.state.source_line import is_own
from planner.state.watched import Watched
from planner.torch_private.hooks import gradient_hooks

__all__ = ["PLAIN", "Holder", "reachable"]

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
#: Larger arrays are not watched, in bytes.
_LARGEST_ARRAY = 1 << 20
#: How far from a module the search goes.
_DEPTH = 12

_Contents = dict[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A place that keeps values by key. `shared` ones are the process's (globals, attributes of a
    class), the others the model's.

    `get` returns its present contents; `put` restores them, if it can (an iterator cannot go back);
    `name` is the name of a key's value, as the model's author knows it.
    """

    thing: Any
    get: Callable[[], _Contents]
    put: Callable[[_Contents], None] | None
    name: Callable[[Any], str]
    shared: bool = False
    chance: bool = False  # a generator of random numbers


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
                put=_refill(thing),
                name=_item(path),
                shared=shared,
            )
        elif isinstance(thing, list | deque):
            yield Holder(
                thing=thing,
                get=lambda: dict(enumerate(thing)),
                put=_relist(thing),
                name=_item(path),
                shared=shared,
            )
        elif isinstance(thing, tuple):
            yield Holder(
                thing=thing,
                get=lambda: dict(enumerate(thing)),
                put=_nothing,
                name=_item(path),
                shared=shared,
            )
        elif isinstance(thing, set):
            yield Holder(
                thing=thing,
                get=lambda: {"": frozenset(thing)},
                put=_reset(thing),
                name=lambda _: path,
                shared=shared,
            )
        elif isinstance(thing, types.FunctionType):
            yield from _function(path, thing)
        elif isinstance(thing, types.MethodType):
            self.visit(path, thing.__self__, 0, shared)
            self.visit(path, thing.__func__, 0, shared)
        elif isinstance(thing, functools.partial):
            keeps: _Contents = {**thing.keywords, **dict(enumerate(thing.args))}
            yield Holder(
                thing=thing,
                get=lambda: keeps,
                put=_nothing,
                name=lambda key: f"{path}.{_argument(key)}",
                shared=shared,
            )
            self.visit(path, thing.func, 0, shared)
        else:
            found = _stateful(path, thing, shared) or self._object(path, thing, shared)
            yield from (found,) if found is not None else ()

    def _module(self, path: str, module: nn.Module, shared: bool) -> Iterator[Holder]:
        """A module's attributes. Those registered in modules of the model are reported
        separately."""

        def get() -> _Contents:
            return {key: value for key, value in vars(module).items() if key not in _OWN}

        def put(before: _Contents) -> None:
            _replace(vars(module), get(), before)

        yield Holder(thing=module, get=get, put=put, name=_attribute(path), shared=shared)
        own: list[dict[str, Any]] = [module._parameters, module._buffers]
        for kept in own if id(module) in self.registered else [*own, module._modules]:
            yield Holder(
                thing=kept,
                get=lambda d=kept: dict(d),  # type: ignore[misc]
                put=_refill(kept),
                name=_attribute(path),
                shared=shared,
            )
        self.code_of(type(module))

    def _object(self, path: str, thing: Any, shared: bool) -> Holder | None:
        kind = type(thing)
        if any(base.__module__.partition(".")[0] in _CLOSED for base in kind.__mro__):
            return None
        slots = [name for base in kind.__mro__ for name in _slots(base)]
        if not hasattr(thing, "__dict__") and not slots:
            return None

        def get() -> _Contents:
            held = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
            return {**held, **getattr(thing, "__dict__", {})}

        def put(before: _Contents) -> None:
            for name in set(slots) & set(before):
                object.__setattr__(thing, name, before[name])
            if hasattr(thing, "__dict__"):
                _replace(
                    thing.__dict__,
                    dict(thing.__dict__),
                    {k: v for k, v in before.items() if k not in slots},
                )

        self.code_of(kind)
        return Holder(thing=thing, get=get, put=put, name=_attribute(path), shared=shared)

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
            holder = _class(base)
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
            every = map(_function_of, vars(kind).values())
            self.functions[kind] = [
                f for f in every if f is not None and is_own(f.__code__.co_filename)
            ]
        return self.functions[kind]


def _function(path: str, function: types.FunctionType) -> Iterator[Holder]:
    """A function's closure and defaults and, if the model's author wrote it, the globals that it
    names."""
    signature = inspect.signature(function)
    defaults = {
        p.name: p.default for p in signature.parameters.values() if p.default is not p.empty
    }
    yield Holder(
        thing=defaults, get=lambda: defaults, put=_nothing, name=_attribute(path), shared=True
    )
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield Holder(
            thing=cell,
            get=lambda c=cell: _inside(c),  # type: ignore[misc]
            put=_refill_cell(cell),
            name=lambda _, n=name: _joined(path, n),  # type: ignore[misc]
        )
    if not is_own(function.__code__.co_filename):
        return
    names = [
        name for name in dict.fromkeys(_names(function.__code__)) if name in function.__globals__
    ]

    def get() -> _Contents:
        return {name: function.__globals__[name] for name in names if name in function.__globals__}

    yield Holder(
        thing=function,
        get=get,
        put=function.__globals__.update,
        name=_attribute(str(function.__module__)),
        shared=True,
    )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _class(kind: type) -> Holder:
    def get() -> _Contents:
        return {
            k: v
            for k, v in vars(kind).items()
            if not k.startswith("__") and not k.startswith("_abc_") and not _is_code(v)
        }

    def put(before: _Contents) -> None:
        now = get()
        for key in now.keys() - before.keys():
            delattr(kind, key)
        for key, value in before.items():
            if key not in now or now[key] is not value:
                setattr(kind, key, value)

    return Holder(thing=kind, get=get, put=put, name=_attribute(kind.__qualname__), shared=True)


def _stateful(path: str, thing: Any, shared: bool) -> Holder | None:
    """The holder of an array, a random generator or an iterator: their contents have no names."""

    def holder(
        get: Callable[[], Any], put: Callable[[Any], None] | None, chance: bool = False
    ) -> Holder:
        back = None if put is None else lambda before: put(before[""])
        return Holder(
            thing=thing,
            get=lambda: {"": get()},
            put=back,
            name=lambda _: path,
            shared=shared,
            chance=chance,
        )

    if isinstance(thing, np.ndarray):
        if thing.nbytes > _LARGEST_ARRAY or thing.dtype.hasobject:
            return None
        return holder(
            lambda: (str(thing.dtype), thing.shape, thing.tobytes()), _refill_array(thing)
        )
    if isinstance(thing, random.Random):
        return holder(thing.getstate, thing.setstate, chance=True)
    if isinstance(thing, np.random.Generator):
        return holder(
            lambda: _Shown(thing.bit_generator.state),
            lambda s: setattr(thing.bit_generator, "state", s.value),
            True,
        )
    if isinstance(thing, np.random.RandomState):
        return holder(lambda: _Shown(thing.get_state()), lambda s: thing.set_state(s.value), True)
    if isinstance(thing, itertools.count):
        return holder(lambda: repr(thing), None)
    if isinstance(thing, types.GeneratorType):
        return holder(
            lambda: thing.gi_frame and (thing.gi_frame.f_lasti, repr(thing.gi_frame.f_locals)), None
        )
    if isinstance(thing, Iterator):
        if hasattr(thing, "__length_hint__"):
            return holder(thing.__length_hint__, None)
        return holder(object, _nothing)  # its position is hidden: as if every step moved it
    return None


class _Shown:
    """A value that equals another if both print the same."""

    def __init__(self, value: Any) -> None:
        self.value = value
        with np.printoptions(threshold=100_000):
            self.shown = repr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shown) and self.shown == other.shown

    __hash__ = None  # type: ignore[assignment]


def _slots(kind: type) -> list[str]:
    found = vars(kind).get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return [
        name
        for name in names
        if name not in ("__dict__", "__weakref__") and not name.startswith("__")
    ]


def _function_of(value: Any) -> types.FunctionType | None:
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


def _is_code(value: Any) -> bool:
    return (
        _function_of(value) is not None
        or isinstance(value, type | property)
        or inspect.isdatadescriptor(value)
        or isinstance(value, types.MemberDescriptorType | functools.partialmethod)
    )


def _inside(cell: types.CellType) -> _Contents:
    try:
        return {"": cell.cell_contents}
    except ValueError:  # not yet set
        return {}


def _nothing(_: _Contents) -> None:
    """A `put` that does nothing."""


def _replace(kept: dict[str, Any], now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for key in now.keys() - before.keys():
        del kept[key]
    kept.update(before)


def _refill(kept: dict[Any, Any]) -> Callable[[_Contents], None]:
    def put(before: _Contents) -> None:
        kept.clear()
        kept.update(before)

    return put


def _relist(kept: Any) -> Callable[[_Contents], None]:
    def put(before: _Contents) -> None:
        kept.clear()
        kept.extend(before.values())

    return put


def _reset(kept: set[Any]) -> Callable[[_Contents], None]:
    def put(before: _Contents) -> None:
        kept.clear()
        kept.update(before[""])

    return put


def _refill_cell(cell: types.CellType) -> Callable[[_Contents], None]:
    def put(before: _Contents) -> None:
        if before:
            cell.cell_contents = before[""]

    return put


def _refill_array(array: np.ndarray[Any, Any]) -> Callable[[Any], None]:
    def put(before: tuple[str, tuple[int, ...], bytes]) -> None:
        array[...] = np.frombuffer(before[2], dtype=array.dtype).reshape(before[1])

    return put


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _attribute(path: str) -> Callable[[Any], str]:
    return lambda key: _joined(path, str(key))


def _item(path: str) -> Callable[[Any], str]:
    return lambda key: f"{path}[{key!r}]"


def _argument(key: Any) -> str:
    return f"args[{key}]" if isinstance(key, int) else str(key)
