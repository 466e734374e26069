"""The bodies of a `Program` as Python functions that one rank runs in each step: one line per op,
with no look-ups at run time.

Values are local variables, deleted where the program frees them. An asynchronous collective is
waited for just before the first instruction that uses one of its results. Its sources are freed
when it starts, since it has packed them or holds them itself. The recorded variant of the function
also calls a recorder around every instruction.
"""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planner.graph.fused import FUSED, body_of
from planner.graph.graph import Group
from planner.graph.sections import RECEIVE
from planner.program.operators import callable_of, makes_tensors, returns_list
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Program,
    Ref,
    in_place,
    waits_for,
    writes,
)
from runtime.aliases import reusable_sources
from runtime.collectives import compile_collective
from runtime.fused import Fused, Kernels
from runtime.groups import Groups, group_size

__all__ = ["Step", "generate", "replaced"]

_SERIAL = itertools.count()


@dataclass(frozen=True, slots=True)
class Step:
    """A compiled body: `run(state, recorder)` -> the loss, and the losses that it is the sum of, if
    it is the last of the step; `lines[n]` is the index of the instruction on line n."""

    run: Callable[[dict[int, torch.Tensor], Any], tuple[torch.Tensor, ...]]
    source: str
    filename: str
    lines: dict[int, int]
    instructions: tuple[Instruction, ...]


@dataclass(slots=True)
class _Writer:
    program: Program
    body: str
    rank: int
    groups: Groups
    device: torch.device
    recorded: bool
    kernels: Kernels
    names: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    origin: dict[int, int] = field(default_factory=dict)
    # Result id -> index of the collective still under way.
    waits: dict[int, int] = field(default_factory=dict)
    # Parameters of the last step that this one has yet to replace.
    stale: set[int] = field(default_factory=set)
    at: int = 0

    def write(self, line: str) -> None:
        self.lines.append(f"    {line}")
        self.origin[len(self.lines) + 1] = self.at

    def bind(self, stem: str, thing: Any) -> str:
        name = f"{stem}{len(self.names)}"
        self.names[name] = thing
        return name

    def argument(self, argument: Any) -> str:
        """The Python expression of an argument."""
        if isinstance(argument, Ref):
            return f"t{argument.id}"
        if isinstance(argument, Group):
            return self.bind("group", self.groups.get(argument.axes))
        if isinstance(argument, (tuple, list)):
            return f"[{', '.join(self.argument(item) for item in argument)}]"
        if argument is None or isinstance(argument, (bool, int, str)):
            return repr(argument)
        if isinstance(argument, torch.device):
            return self.bind("device", self.device)
        return self.bind("constant", argument)


def generate(
    program: Program,
    body: str,
    *,
    rank: int,
    groups: Groups,
    device: torch.device,
    update: Callable[..., None],
    recorded: bool,
    kernels: Kernels,
) -> Step:
    """A compiled body of one rank; `update(*gradients)` is what an `Update` calls, `kernels` are
    those of fused ops, to which new ones are added."""
    writer = _Writer(
        program, body, rank, groups, device, recorded, kernels, names={"update": update}
    )
    _load(writer)
    reusable = reusable_sources(program, body)
    for writer.at, instruction in enumerate(program.bodies[body]):
        _instruction(writer, instruction, reusable)
    _store(writer)
    lines = writer.lines or ["    pass"]  # half of a backward may have nothing to do
    source = "def step(s, r):\n" + "\n".join(lines) + "\n"
    filename = f"<shardwright program {next(_SERIAL)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    space = writer.names
    exec(compile(source, filename, "exec"), space)
    return Step(space["step"], source, filename, writer.origin, program.bodies[body])


def _load(writer: _Writer) -> None:
    """Writes the lines that load values held before the body into variables; the batch, and values
    that the program replaces or frees here, leave the state."""
    writer.stale = _rewritten(writer.program)
    popped = writer.stale | {
        state.value for state in writer.program.inputs if state.kind != "buffer"
    }
    used = {value for one in writer.program.bodies[writer.body] for value in waits_for(one)}
    held = [
        s.value
        for s in writer.program.inputs
        if s.kind not in ("received", "squares") or s.value in used
    ]
    held += [i for p in writer.program.parameters for i in dict.fromkeys((p.value, p.shard))]
    for value in dict.fromkeys(held):
        writer.write(f"t{value} = s.pop({value})" if value in popped else f"t{value} = s[{value}]")
    made, used, freed = _carried(writer)
    told = set[int]()  # by the last body, which gives them back: they may lie in a large buffer
    if writer.body == writer.program.actions[-1].body:
        told = {value for _, value in writer.program.told} & writer.program.carried
    used |= told
    for value in sorted(used - made):
        leaves = value in freed or value in told
        writer.write(f"t{value} = s.pop({value})" if leaves else f"t{value} = s[{value}]")


def _carried(writer: _Writer) -> tuple[set[int], set[int], set[int]]:
    """The values carried between actions, or stashed for later ones of the same microbatch, that
    this one makes, uses and frees; what leaves for other stages is made for them."""
    program, body = writer.program, writer.program.bodies[writer.body]
    carried = program.carried | program.stashed | {one.value for one in program.sent}
    carried |= set() if program.squares is None else {program.squares[0]}
    made = {value for one in body if in_place(one) is None for value in writes(one)}
    used = {value for one in body for value in waits_for(one)}
    freed = {value for one in body for value in one.frees}
    return made & carried, used & carried, freed & carried


def _store(writer: _Writer) -> None:
    """Writes the lines that wait for collectives still under way, and store in the state what
    later actions or the next step read."""
    _wait(writer, list(writer.waits))
    made, _, freed = _carried(writer)
    for value in sorted(made - freed):
        writer.write(f"s[{value}] = t{value}")
    if writer.body != writer.program.actions[-1].body:
        written = {value for one in writer.program.bodies[writer.body] for value in writes(one)}
        for value, new in writer.program.stores:
            if value in writer.program.stored_by_all and new in written:
                writer.write(f"s[{value}] = t{new}")
        return
    for value in sorted(_rewritten(writer.program)):
        writer.write(f"s[{value}] = t{value}")
    for value, new in writer.program.stores:
        writer.write(f"s[{value}] = t{new}")
    told = [f"t{value}" for _, value in writer.program.told]
    writer.write(f"return ({', '.join(told)}{',' if told else ''})")


def replaced(program: Program) -> set[int]:
    """The values held between steps that a step replaces by another tensor."""
    return _rewritten(program) | {value for value, _ in program.stores}


def _rewritten(program: Program) -> set[int]:
    written = {i for instruction in program.written for i in getattr(instruction, "results", ())}
    return {state.value for state in program.parameters} & written


def _instruction(
    writer: _Writer, instruction: Instruction, reusable: dict[str, list[bool]]
) -> None:
    _wait(writer, waits_for(instruction))
    _free(writer, sorted(writer.stale.intersection(getattr(instruction, "results", ()))))
    if isinstance(instruction, Communicate) and instruction.asynchronous:
        _start(writer, instruction, reusable[instruction.id])
        return
    if isinstance(instruction, Compute):
        line = _compute(writer, instruction)
    elif isinstance(instruction, Communicate):
        line = _communicate(writer, instruction, reusable[instruction.id])
    else:
        squares = "" if instruction.squares is None else f", squares=t{instruction.squares}"
        line = f"update({', '.join(f't{g}' for g in instruction.gradients)}{squares})"
    if writer.recorded:
        writer.write(f"r.begin({writer.at})")
    writer.write(line)
    if isinstance(instruction, Compute) and None in instruction.results:
        writer.write("del _")
    if writer.recorded:
        writer.write(f"r.end({writer.at})")
    _free(writer, instruction.frees)
    if isinstance(instruction, Compute) and instruction.op == RECEIVE:
        _free(writer, instruction.operands)  # the same tensor, by its name as an input


def _compute(writer: _Writer, instruction: Compute) -> str:
    if instruction.op == FUSED:
        call = writer.bind("fused", _fused(writer, instruction))
        arguments = [writer.argument(argument) for argument in instruction.args[:-1]]
    else:
        call = writer.bind("op", callable_of(instruction.op))
        arguments = [writer.argument(argument) for argument in instruction.args]
    given = {key: value for key, value in instruction.kwargs if key != "pin_memory"}
    if given.get("device") is not None or makes_tensors(instruction.op):
        given["device"] = writer.device
    arguments += [f"{key}={writer.argument(value)}" for key, value in given.items()]
    targets = ["_" if i is None else f"t{i}" for i in instruction.results]
    comma = "," if len(targets) == 1 and returns_list(instruction.op) else ""
    return f"{', '.join(targets)}{comma} = {call}({', '.join(arguments)})"


def _fused(writer: _Writer, instruction: Compute) -> Fused:
    """The instruction's kernel, which ops with the same body share."""
    body = body_of(instruction.args)
    return writer.kernels.setdefault(body, Fused(body))


def _communicate(writer: _Writer, instruction: Communicate, reusable: Sequence[bool]) -> str:
    call = _bind_collective(writer, instruction, reusable)
    targets = ", ".join(f"t{i}" for i in instruction.results)
    return f"{targets}, = {call}({', '.join(f't{i}' for i in instruction.sources)})"


def _start(writer: _Writer, instruction: Communicate, reusable: Sequence[bool]) -> None:
    call = _bind_collective(writer, instruction, reusable)
    writer.names[f"finish_{writer.at}"] = writer.names[call].finish
    if writer.recorded:
        writer.write(f"r.begin({writer.at})")
    writer.write(f"p{writer.at} = {call}.start({', '.join(f't{i}' for i in instruction.sources)})")
    if writer.recorded:
        writer.write(f"r.launched({writer.at}, p{writer.at})")
    writer.waits.update(dict.fromkeys(instruction.results, writer.at))
    _free(writer, [value for value in instruction.frees if value not in instruction.results])


def _bind_collective(writer: _Writer, instruction: Communicate, reusable: Sequence[bool]) -> str:
    mesh, axes = writer.program.mesh, instruction.axes
    place = mesh.position(axes, writer.rank)
    return writer.bind(
        "collective",
        compile_collective(
            instruction, writer.groups.get(axes), group_size(mesh, axes), place, reusable
        ),
    )


def _wait(writer: _Writer, values: Sequence[int]) -> None:
    """Writes the lines that wait for the collectives under way that write `values`."""
    for index in dict.fromkeys(writer.waits[value] for value in values if value in writer.waits):
        instruction = writer.program.bodies[writer.body][index]
        assert isinstance(instruction, Communicate)
        if writer.recorded:
            writer.write(f"r.waiting({index}, p{index})")
        writer.write(
            f"{', '.join(f't{i}' for i in instruction.results)}, = finish_{index}(p{index})"
        )
        if writer.recorded:
            writer.write(f"r.waited({index})")
        writer.write(f"del p{index}")
        for value in instruction.results:
            del writer.waits[value]
        # Frees the results that nobody reads.
        _free(writer, [value for value in instruction.frees if value in instruction.results])


def _free(writer: _Writer, frees: Sequence[int]) -> None:
    writer.stale.difference_update(frees)
    if frees:
        writer.write(f"del {', '.join(f't{i}' for i in frees)}")
