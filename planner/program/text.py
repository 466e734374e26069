"""The text of a `Program`, for a person who wants to see what every rank does in a step: one line
per instruction.

Program -> text. Two programs with the same text do the same: every value, argument, shape, group,
wait and free is printed. `path` and `phase` of an instruction are not printed, since its id begins
with the phase and names the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from cost_models.memory import dtype_bytes
from cost_models.units import US
from planner.graph.columns import aligned
from planner.graph.fused import Body, body_text
from planner.graph.graph import Group
from planner.graph.layout import SubShape, show_layout
from planner.program.actions import WHOLE_STEP, show_actions
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Program,
    Ref,
    Update,
    given_kinds,
    writes,
)

__all__ = ["COLUMNS", "program_text"]

#: The columns of an instruction: its simulated microseconds, its bytes (of an op's results, or of a
#: message's whole buffer), and the rest. Only the last one has spaces in it.
COLUMNS = ("us", "bytes", "kind", "id", "call")

Shape = tuple[int, ...]


def program_text(program: Program) -> str:
    """The program as lines: a header, its parameters and inputs with their layouts, its
    instructions, those of each body under its name if there are several.

    `%3` is a value, `@dp` the group of the ranks that differ only on axis dp, `_` a result that
    nothing reads. A message is followed by its axes, its arguments by their shapes in sub-dims;
    `packing` and `unpacking` are the microseconds of the copies around it. If the bytes of a value
    are not those of its shape, they are in brackets; views have no bytes.
    """
    lines = [*_head(program), "", *_states(program)]
    for name, body in program.bodies.items():
        lines += ["", *([] if program.actions == WHOLE_STEP else [name])]
        lines += aligned([COLUMNS, *(_row(program, one) for one in body)], right=(0, 1))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------- the whole


def _head(program: Program) -> Iterator[str]:
    ranks = (
        "every rank"
        if program.rank is None
        else f"rank {program.rank}; the others' pieces have other sizes or places"
    )
    over = "shared memory" if program.backend == "shared" else program.backend
    yield (
        f"mesh      {program.mesh}: {program.mesh.num_devices} devices, messages over {over}; "
        f"the program of {ranks}"
    )
    yield (
        f"dtypes    parameters {_dtypes(p.dtype for p in program.parameters)}; products "
        f"{_dtypes(_of_products(program))}{_masters(program)}"
    )
    yield f"messages  {_buckets(program) or 'none'}"
    yield (
        "held      "
        f"{', '.join(f'{name} {nbytes}' for name, nbytes in program.initial_bytes.items()) or 'nothing'} "
        "(bytes)"
    )
    if program.actions != WHOLE_STEP:
        yield f"actions   {show_actions(program.actions)}"
    if program.carried:
        yield f"carried   {_values(sorted(program.carried))}"
    if program.stashed:
        yield f"stashed   {_values(sorted(program.stashed))}"
    for one in program.sent:
        yield (
            f"sent      {one.crossing}: %{one.value} {one.dtype} {one.subshape} {show_layout(one.layout)}"
        )
    if program.squares is not None:
        yield f"squares   %{program.squares[0]} here, %{program.squares[1]} of all stages"
    if program.loss is not None:
        yield f"loss      {', '.join([f'%{program.loss}', *(f'{name} %{value}' for name, value in program.reported)])}"
    yield f"stores    {', '.join(_stored(program)) or 'nothing'}"


def _stored(program: Program) -> Iterator[str]:
    for before, after in program.stores:
        when = " after every microbatch" if before in program.stored_by_all else ""
        yield f"%{after} in %{before}{when}"


def _dtypes(dtypes: Iterator[str]) -> str:
    return " ".join(sorted(set(dtypes))) or "none"


def _of_products(program: Program) -> Iterator[str]:
    for one in program.written:
        if isinstance(one, Compute) and one.kind == "gemm":
            yield from one.dtypes


def _masters(program: Program) -> str:
    """The format of the optimizer's copies of parameters, if it has any."""
    found = {state.master for state in program.parameters} - {""}
    return f"; master copies {', '.join(sorted(found))}" if found else ""


def _buckets(program: Program) -> str:
    """The numbers of values in messages of several values, by phase and kind."""
    found: dict[str, list[str]] = {}
    for one in program.written:
        if isinstance(one, Communicate) and one.kind != "slice":
            found.setdefault(f"{one.phase} {one.kind} of", []).append(str(len(one.sources)))
    return "; ".join(f"{name} {', '.join(sizes)}" for name, sizes in found.items())


def _states(program: Program) -> list[str]:
    kinds = dict(given_kinds(program))
    rows: list[tuple[str, ...]] = [("value", "name", "piece", "of", " ".join(program.mesh.names))]
    for p in program.parameters:
        more = (
            ""
            if (p.shard, p.updated) == (p.value, p.stored)
            else f"; updated as %{p.shard}, {show_layout(p.updated)}"
        )
        piece = _kind(program, p.value, *kinds[p.value])
        rows.append(
            (f"%{p.value}", p.name, piece, _subshape(p.subshape), show_layout(p.stored) + more)
        )
    for s in program.inputs:
        piece = _kind(program, s.value, *kinds[s.value])
        part = f"; {s.pieces[1]} of each of {s.pieces[0]} per microbatch" if s.pieces else ""
        rows.append(
            (
                f"%{s.value}",
                f"{s.kind} {s.name}",
                piece,
                _subshape(s.subshape),
                show_layout(s.layout) + part,
            )
        )
    return aligned(rows)


def _subshape(shape: SubShape) -> str:
    """`[8, 4*16]`: the dims, each as the product of its sub-dims."""
    return f"[{', '.join('*'.join(map(str, dim)) or '1' for dim in shape)}]"


# ------------------------------------------------------------------------------------- instructions


def _row(program: Program, one: Instruction) -> tuple[str, ...]:
    nbytes = (
        one.nbytes
        if isinstance(one, Communicate)
        else sum(program.value_bytes[value] for value in writes(one))
    )
    frees = f"  frees {_values(one.frees)}" if one.frees else ""
    call = _message(program, one) if isinstance(one, Communicate) else _op(program, one)
    return _microseconds(one.time), str(nbytes), one.kind, one.id, f"{call}{frees}"


def _microseconds(seconds: float) -> str:
    return f"{seconds / US:.6g}"


def _op(program: Program, one: Compute | Update) -> str:
    if isinstance(one, Update):
        squares = "" if one.squares is None else f", unless %{one.squares} is not finite"
        return f"update({_values(one.gradients)}{squares})"
    arguments = [
        *(_argument(program, a) for a in one.args),
        *(f"{k}={_argument(program, a)}" for k, a in one.kwargs),
    ]
    views = one.kind == "view"
    results = [
        _tensor(program, *found, views=views)
        for found in zip(one.results, one.shapes, one.dtypes, strict=True)
    ]
    return f"{one.op}({', '.join(arguments)}) -> {', '.join(results)}"


def _argument(program: Program, value: Any) -> str:
    """An argument as in Python, except that a value is `%3` and a group is `@dp`."""
    if isinstance(value, Ref):
        return f"%{value.id}"
    if isinstance(value, Body):
        return body_text(value)
    if isinstance(value, Group):
        return f"@{_axes(program, value.axes)}"
    if isinstance(value, tuple | list):
        inner = ", ".join(_argument(program, item) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    return repr(value)


def _message(program: Program, one: Communicate) -> str:
    names = [_axes(program, one.axes)]
    names += [one.reduce] if "reduce" in one.kind or one.reduce != "sum" else []
    names += [
        f"{word} {dim}"
        for word, dim in (("gather", one.gather), ("split", one.split))
        if dim is not None
    ]
    names += ["asynchronous"] if one.asynchronous else []
    names += [f"after {_values(one.after)}"] if one.after else []
    copies = (("packing", one.packing), ("unpacking", one.unpacking))
    names += [f"{word} {_microseconds(seconds)}" for word, seconds in copies if seconds]
    pieces = zip_longest(
        one.sources, one.expanded, one.gather_pieces, one.split_pieces, fillvalue=()
    )
    sources = [
        f"%{source}{_shape(flat)}{_sizes(' gather ', g)}{_sizes(' split ', s)}"
        for source, flat, g, s in pieces
    ]
    results = [
        _tensor(program, *found) for found in zip(one.results, one.shapes, one.dtypes, strict=True)
    ]
    return f"{one.kind}[{', '.join(names)}]({', '.join(sources)}) -> {', '.join(results)}"


def _axes(program: Program, axes: tuple[int, ...]) -> str:
    return "*".join(program.mesh.names[axis] for axis in axes)


def _sizes(word: str, pieces: Shape) -> str:
    return f"{word}{'+'.join(map(str, pieces))}" if pieces else ""


def _values(values: Sequence[int]) -> str:
    return " ".join(f"%{value}" for value in values)


def _shape(shape: Shape) -> str:
    return f"[{'x'.join(map(str, shape))}]"


def _tensor(
    program: Program, value: int | None, shape: Shape, dtype: str, *, views: bool = False
) -> str:
    return (
        f"_ {dtype}{_shape(shape)}"
        if value is None
        else f"%{value} {_kind(program, value, shape, dtype, views=views)}"
    )


def _kind(program: Program, value: int, shape: Shape, dtype: str, *, views: bool = False) -> str:
    """`float32[8x64]`, followed by the value's bytes if they are not those of the shape."""
    usual = 0 if views else math.prod(shape) * dtype_bytes(dtype)
    held = program.value_bytes[value]
    return f"{dtype}{_shape(shape)}{'' if held == usual else f' ({held} B)'}"
