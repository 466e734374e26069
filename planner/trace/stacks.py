"""Stacks: runs of like blocks in a module, and the module shortened to a few blocks per run.

Module -> stacks; a trace of the shortened module has all information on the whole (`unroll.py` puts
the rest back). Blocks are alike if they have the same code and settings: classes, sizes and
attributes, except for a block's own number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planner.state.hung import same_hung

__all__ = ["KEPT", "Run", "Stack", "shortened", "stacks_of", "watched"]

#: Blocks of a stack that are traced: the first, three to compare, and the last.
KEPT = 5

#: Stacks of fewer blocks are traced whole, which is as fast.
_LEAST = 8

#: The attributes of every module, which no forward reads; children, parameters and buffers are
#: compared separately.
_OWN = frozenset(vars(nn.Module()))
_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    type,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A stack: children `start` to `start + length` (exclusive) of the container at `path`, which
    is at `short` in the shortened module."""

    path: str
    short: str
    start: int
    length: int

    @property
    def whole_run(self) -> Run:
        return Run(path=self.path, start=self.start, length=self.length)

    @property
    def short_run(self) -> Run:
        return Run(path=self.short, start=self.start, length=KEPT)

    @property
    def num_copies(self) -> int:
        """The number of blocks that the shortened module lacks."""
        return self.length - KEPT

    @property
    def inner(self) -> tuple[int, int, int]:
        """The numbers, in the shortened container, of the blocks that are compared."""
        return self.start + 1, self.start + 2, self.start + 3

    def whole(self, number: int) -> int:
        """The number in the whole container of child `number` of the shortened one."""
        return number if number < self.start + 3 else number + self.num_copies

    def renamed(self, name: str, *, by: int | None = None) -> str:
        """A name in the shortened module, translated to the whole module; `by` moves it on by that
        many blocks."""
        head = f"{self.short}." if self.short else ""
        if not name.startswith(head):
            return name
        number, dot, rest = name[len(head) :].partition(".")
        if not number.isdigit():
            return name
        return f"{head}{self.whole(int(number)) if by is None else int(number) + by}{dot}{rest}"

    def block_of(self, name: str) -> int | None:
        """The number, in the shortened container, of the block that a name is in."""
        head = f"{self.short}." if self.short else ""
        number = name[len(head) :].partition(".")[0] if name.startswith(head) else ""
        return int(number) if number.isdigit() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Children `start` to `start + length` (exclusive) of the container at `path`, of a whole
    module or of a shortened one."""

    path: str
    start: int
    length: int

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return list(module.get_submodule(self.path).children())[
            self.start : self.start + self.length
        ]

    def block_of(self, name: str) -> int | None:
        """The number, from 0 on, of the block that a name is in."""
        head = f"{self.path}." if self.path else ""
        number = name[len(head) :].partition(".")[0] if name.startswith(head) else ""
        block = int(number) - self.start if number.isdigit() else -1
        return block if 0 <= block < self.length else None


def stacks_of(module: nn.Module) -> tuple[Stack, ...]:
    """The stacks that are worth shortening; none is inside another."""
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    shared = Counter(id(tensor) for _, tensor in tensors)
    return tuple(_stacks(module, "", "", {name for name, times in shared.items() if times > 1}))


def _stacks(module: nn.Module, path: str, short: str, shared: set[int]) -> Iterator[Stack]:
    inside, gone = range(0), 0
    children = list(module.children())
    if type(module) in (nn.ModuleList, nn.Sequential) and list(module._modules) == [
        str(i) for i in range(len(children))
    ]:
        start, length = _longest_run(children, shared)
        if length >= _LEAST:
            yield Stack(path=path, short=short, start=start, length=length)
            inside, gone = range(start, start + length), length - KEPT
    for number, (name, child) in enumerate(module.named_children()):
        if number not in inside:
            left = str(number - gone) if gone and number >= inside.stop else name
            yield from _stacks(child, _joined(path, name), _joined(short, left), shared)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _longest_run(children: list[nn.Module], shared: set[int]) -> tuple[int, int]:
    best, start = (0, 0), 0
    for index in range(1, len(children) + 1):
        if index == len(children) or not _alike_modules(
            children[index - 1], children[index], (index - 1, index), shared
        ):
            best = max(best, (index - start, -start))
            start = index
    return -best[1], best[0]


def _alike_modules(
    one: nn.Module, other: nn.Module, numbers: tuple[int, int], shared: set[int]
) -> bool:
    """Whether two blocks do the same; only the block's own number may differ."""
    if one is other or type(one) is not type(other) or one.training != other.training:
        return False
    for mine, theirs in ((one._parameters, other._parameters), (one._buffers, other._buffers)):
        if not _alike_tensors(mine, theirs) or any(
            id(t) in shared for t in (*mine.values(), *theirs.values())
        ):
            return False
    hooked = [
        k
        for k in _OWN
        if k.endswith("_hooks") and (getattr(one, k, None) or getattr(other, k, None))
    ]
    settings = [{k: v for k, v in vars(m).items() if k not in _OWN} for m in (one, other)]
    pairs = [
        (mine, other._parameters[name])
        for name, mine in one._parameters.items()
        if mine is not None
    ]
    if not all(
        same_hung(mine, theirs, lambda a, b: _alike(a, b, numbers))
        for mine, theirs in pairs
        if theirs is not None
    ):
        return False
    if hooked or not _alike(settings[0], settings[1], numbers):
        return False
    children = [dict(m.named_children()) for m in (one, other)]
    return list(children[0]) == list(children[1]) and all(
        _alike_modules(child, children[1][name], numbers, shared)
        for name, child in children[0].items()
    )


def _alike_tensors(one: Mapping[str, Tensor | None], other: Mapping[str, Tensor | None]) -> bool:
    def seen(tensors: Mapping[str, Tensor | None]) -> list[Any]:
        return [
            (k, None if t is None else (t.shape, t.dtype, t.requires_grad))
            for k, t in tensors.items()
        ]

    return seen(one) == seen(other)


def _alike(one: Any, other: Any, numbers: tuple[int, int], depth: int = 0) -> bool:
    """Whether two attributes are equal, or each is its block's own number."""
    if one is other:
        return True
    if type(one) is not type(other) or depth > 6:
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other) or (depth == 1 and type(one) is int and (one, other) == numbers)
    if isinstance(one, Tensor):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(
            _alike(one[k], other[k], numbers, depth + 1) for k in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(
            _alike(a, b, numbers, depth + 1) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, set | frozenset):
        return bool(one == other)
    if hasattr(one, "__code__"):
        return (
            one.__code__ is other.__code__
            and one.__closure__ is None
            and one.__defaults__ == other.__defaults__
        )
    return hasattr(one, "__dict__") and _alike(vars(one), vars(other), numbers, depth + 1)


@contextmanager
def shortened(module: nn.Module, stacks: tuple[Stack, ...]) -> Iterator[None]:
    """A context in which each stack has only its first three and last two blocks, numbered from its
    start on."""
    containers = [module.get_submodule(stack.path) for stack in stacks]
    before = [dict(container._modules) for container in containers]
    for stack, container, children in zip(stacks, containers, before, strict=True):
        left = list(children.values())
        del left[stack.start + 3 : stack.start + stack.length - 2]
        container._modules.clear()
        container._modules.update({str(number): child for number, child in enumerate(left)})
    try:
        yield
    finally:
        for container, children in zip(containers, before, strict=True):
            container._modules.clear()
            container._modules.update(children)


class _Own:
    """A block's own number while its block is traced: every use of it is noticed, except keeping
    it."""

    # For `isinstance`; C code sees no int and asks `__index__`.
    __class__ = property(lambda self: int)

    def __init__(self, number: int, used: list[int]) -> None:
        self.number, self.used = number, used


def _seen(name: str) -> Callable[..., Any]:
    def method(self: _Own, *others: Any) -> Any:
        self.used.append(self.number)
        return getattr(self.number, name)(*others)

    return method


for _name in set(vars(int)) - {
    "__new__",
    "__init__",
    "__getattribute__",
    "__getnewargs__",
    "__doc__",
    "__sizeof__",
}:
    setattr(_Own, _name, _seen(_name))


@contextmanager
def watched(module: nn.Module, stacks: tuple[Stack, ...]) -> Iterator[list[int]]:
    """A context that yields a list of the blocks' own numbers that a block of the shortened module
    has used: what it would do with other numbers is then unknown."""
    used: list[int] = []
    before: list[tuple[nn.Module, str, int]] = []
    for stack in stacks:
        blocks = stack.short_run.blocks(module)
        for part in zip(*(block.modules() for block in blocks), strict=True):
            for name, value in vars(part[0]).items():
                if type(value) is int and name not in _OWN and value != vars(part[1])[name]:
                    before += [(one, name, vars(one)[name]) for one in part]
    for one, name, value in before:
        setattr(one, name, _Own(value, used))
    try:
        yield used
    finally:
        for one, name, value in before:
            setattr(one, name, value)
