"""A dry run: runs every op of a program once on fake tensors, with the shapes of one rank.

Program -> nothing, or the error that a rank would meet at its first step, raised while planning.
Operands' shapes are taken from the program, so each op is checked alone, and equal calls once: a
repeated layer costs nothing. Ops of our own are not run: their kernels need real processes, and
tests prove their rules.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.graph.graph import map_refs
from planner.program.operators import callable_of, is_overload, returns_list
from planner.program.program import Communicate, Compute, Program, Ref, given_kinds
from planner.torch_private.fake_tensors import FakeTensorMode, unlogged
from planner.torch_private.modes import really

__all__ = ["CannotRun", "Failure", "dry_run", "first_failure"]

#: An op without a kernel for fake tensors is tried on real ones of at most this many elements in
#: all.
_LARGEST = 1 << 16

#: The shape of a local tensor, and the name of its dtype.
_Kind = tuple[tuple[int, ...], str]
#: The tensors on which calls were tried, by kind, and by their number among the operands of that
#: kind in a call.
_Tensors = dict[tuple[_Kind, int], Tensor]


class CannotRun(NotTraceable):
    """An op of the program that no rank can run; `op` and `path` are its name and module."""

    def __init__(self, message: str, op: str = "", path: str = "") -> None:
        super().__init__(message)
        self.op, self.path = op, path


def dry_run(program: Program) -> None:
    """Runs every distinct op of the program on fake tensors, as in tracing.

    Raises CannotRun if an op fails on the local shapes, or returns other shapes or dtypes than the
    program says.
    """
    failure = first_failure(program)
    if failure is not None:
        raise CannotRun(_message(failure), failure.instruction.op, failure.instruction.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An op that cannot run as the program says: the reason, and its operands in words."""

    instruction: Compute
    operands: str
    why: str


def first_failure(program: Program) -> Failure | None:
    """The first op of the program that fails on fake tensors, or returns others than the program
    says; None if there is none."""
    with FakeTensorMode(), unlogged(), torch.no_grad():
        return _first(program)


def _first(program: Program) -> Failure | None:
    kinds = dict(given_kinds(program))
    made: _Tensors = {}
    seen: set[Any] = set()
    for instruction in program.written:
        if isinstance(instruction, Compute):
            key = _key(instruction, kinds)
            if key is not None and key not in seen:
                seen.add(key)
                why = _fails(instruction, kinds, made)
                if why:
                    shapes = (kinds[value] for value in instruction.operands)
                    words = ", ".join(f"{dtype} {list(shape)}" for shape, dtype in shapes)
                    return Failure(instruction=instruction, operands=words, why=why)
        if isinstance(instruction, Compute | Communicate):
            for value, shape, dtype in zip(
                instruction.results, instruction.shapes, instruction.dtypes, strict=True
            ):
                if value is not None:
                    kinds[value] = (shape, dtype)
    return None


def _key(instruction: Compute, kinds: dict[int, _Kind]) -> Any:
    """A key that determines a call's outcome; None for ops of our own."""
    if (
        instruction.op.startswith("shardwright.")
        and instruction.op != "shardwright.reshape"
        and not is_overload(instruction.op)
    ):
        return None
    arguments = map_refs((instruction.args, instruction.kwargs), kinds.__getitem__, Ref)
    return instruction.op, repr(arguments), instruction.shapes, instruction.dtypes


def _fails(instruction: Compute, kinds: dict[int, _Kind], made: _Tensors) -> str:
    """Why a call cannot run on this rank; empty if it can, or if only a real run could tell. Its
    operands are taken from `made`, the fake tensors made for earlier calls: no op of a program
    changes them."""
    try:
        return _differs(instruction, _run(instruction, kinds, made))
    except NotImplementedError:
        return str(really(_fails_really, instruction, kinds))
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        return _first_line(error)


def _fails_really(instruction: Compute, kinds: dict[int, _Kind]) -> str:
    """The same on tensors of zeros, if these are small. Only a missing kernel counts as a failure:
    any other error may be due to the zeros."""
    shapes = [kinds[value][0] for value in instruction.operands] + list(instruction.shapes)
    numels = [math.prod(shape) for shape in shapes]
    if 0 in numels or sum(numels) > _LARGEST:
        return ""
    try:
        return _differs(instruction, _run(instruction, kinds, {}))
    except (NotImplementedError, TypeError) as error:
        return _first_line(error)
    except (RuntimeError, ValueError, LookupError):
        return ""


def _run(instruction: Compute, kinds: dict[int, _Kind], made: _Tensors) -> list[Any]:
    numbers: Counter[_Kind] = Counter()

    def tensor(value: int) -> Tensor:
        shape, dtype = kind = kinds[value]
        numbers[kind] += 1
        key = kind, numbers[kind]  # each operand of a call is a different tensor
        if key not in made:
            made[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
        return made[key]

    args, kwargs = map_refs((instruction.args, instruction.kwargs), tensor, Ref)
    named = {name: value for name, value in kwargs if name not in ("device", "pin_memory")}
    out = callable_of(instruction.op)(*_lists(args), **named)
    return list(out) if isinstance(out, tuple) or returns_list(instruction.op) else [out]


def _lists(args: tuple[Any, ...]) -> list[Any]:
    return [_lists(item) if isinstance(item, tuple) else item for item in args]


def _differs(instruction: Compute, results: list[Any]) -> str:
    """How a result differs from what the program says; empty if it does not."""
    if len(results) != len(instruction.results):
        return f"it gives {len(results)} results, not {len(instruction.results)}"
    for value, shape, dtype, result in zip(
        instruction.results, instruction.shapes, instruction.dtypes, results, strict=True
    ):
        if value is not None and result.layout != torch.strided:
            return (
                f"it gives a tensor of layout {result.layout}, which plans do not support: ask for a "
                "dense one (sparse=False)"
            )
        if value is not None and result.numel() == 0 and len(instruction.results) > 1:
            continue  # statistics that the op lacks in this mode; their readers ignore them
        if value is not None and (tuple(result.shape), result.dtype) != (
            shape,
            getattr(torch, dtype),
        ):
            return f"it gives a tensor of {tuple(result.shape)} in {result.dtype}, not of {shape} in {dtype}"
    return ""


def _first_line(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "torch's kernel does not take them" if "INTERNAL ASSERT" in first else first


def _message(failure: Failure) -> str:
    one = failure.instruction
    return (
        f"module {one.path or '(top)'!r} runs {one.op} ({one.phase}), which fails on one rank's "
        f"part ({failure.operands}): {failure.why}"
    )
