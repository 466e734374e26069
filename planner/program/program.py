"""The `Program` of one training step, which every rank executes and the simulator costs.

All ranks run the same instructions, with the same ids, in the same order. If a split does not
divide evenly, shapes and numbers in arguments are those of one rank. Rank 0's shards are the
largest, so its program is the one that is simulated. Values are integers; every value is written
once per action, and lives within it unless the program says that it is carried to later ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.graph.graph import refs_in
from planner.graph.layout import Layout, Mesh, SubShape, local_shape
from planner.program.actions import WHOLE_STEP, Action

__all__ = [
    "AGAIN_SUFFIX",
    "Communicate",
    "Compute",
    "InputState",
    "Instruction",
    "ParameterState",
    "Program",
    "Ref",
    "Sent",
    "Update",
    "freeing",
    "given_kinds",
    "in_place",
    "reads",
    "runs_again",
    "writes",
]

#: The end of the stem of an id (`backward.h.0.mlp.mm.again#1`) of an op of forward that runs a second
#: time in backward.
AGAIN_SUFFIX = ".again"


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is the program's value `id`. Not the graph's `Ref`, whose ids mean other
    tensors."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """One op on local tensors. `op` names an ATen overload (`aten.mm.default`) or one of our
    kernels (`shardwright.lstm`).

    `args` and `kwargs` hold Ref, Group, constants and (nested) tuples of them, `operands` are the
    values among them; `results[i]` is the value id of the op's i-th result, None if it is not
    used. `shapes` are the local shapes of the results. `frees` are values with no later use.
    `kind` names the cost model, and `time` is its prediction in seconds.
    """

    id: str
    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()
    results: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    kind: str
    phase: str
    path: str = ""
    time: float = 0.0
    frees: tuple[int, ...] = ()
    operands: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operands", tuple(refs_in((self.args, self.kwargs), Ref)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Communicate:
    """One change of layout of one or more values (more than one: a bucket, sent as one flat
    buffer).

    `kind`: `all_reduce` (with `reduce` sum or max), `all_gather` (along flat sub-dim `gather`),
    `reduce_scatter` (`split`), `all_to_all` (a value split at `gather` becomes split at `split`),
    `slice` (along `split`; no communication). `axes` are the mesh axes taking part. Per value:
    `expanded` is the local shape before, by flat sub-dims, `shapes` the local shape after, by dims;
    `gather_pieces` and `split_pieces` are the ranks' sizes of sub-dim `gather` before and of
    `split` after, in the order of the group (empty: all the same). An asynchronous message starts
    at its place in the program. It is waited for at the first use of its results, or by a message
    that has one of them in `after`: a message waits for the values in `after` before it starts, so
    that the older message's buffers are free. `time` is the seconds on the links, `packing` and
    `unpacking` those of the copies before it starts and after it is waited for; for a slice, `time`
    is that of its copy.
    """

    id: str
    kind: str
    axes: tuple[int, ...]
    sources: tuple[int, ...]
    results: tuple[int, ...]
    expanded: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    gather: int | None = None
    split: int | None = None
    gather_pieces: tuple[tuple[int, ...], ...] = ()
    split_pieces: tuple[tuple[int, ...], ...] = ()
    reduce: str = "sum"
    phase: str
    path: str = ""
    asynchronous: bool = False
    after: tuple[int, ...] = ()
    nbytes: int = (
        0  # of the whole logical buffer (as in nccl-tests), all pieces as large as the largest
    )
    time: float = 0.0
    packing: float = 0.0
    unpacking: float = 0.0
    frees: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The optimizer's step on all parameters: `gradients[i]` is the value id of the gradient of
    `Program.parameters[i]`. If the loss is scaled, `squares` is that of the sum of the squares of
    the gradients of all ranks: if it is not finite, the step is skipped."""

    id: str
    gradients: tuple[int, ...]
    squares: int | None = None
    phase: str = "update"
    kind: str = "optimizer"
    path: str = "optimizer"
    time: float = 0.0
    frees: tuple[int, ...] = ()


Instruction = Compute | Communicate | Update

#: Adds a microbatch's term (the second operand) to a sum in place (the first); with one operand,
#: the first microbatch's term becomes the sum.
ACCUMULATE = "shardwright.accumulate"


def reads(instruction: Instruction) -> tuple[int, ...]:
    """The values that an instruction reads."""
    if isinstance(instruction, Compute):
        return instruction.operands
    if isinstance(instruction, Communicate):
        return instruction.sources
    gradients, squares = instruction.gradients, instruction.squares
    return gradients if squares is None else (*gradients, squares)


def runs_again(name: str) -> bool:
    """Whether the instruction of this id is the second run of an op of forward."""
    return name.partition("#")[0].endswith(AGAIN_SUFFIX)


def waits_for(instruction: Instruction) -> tuple[int, ...]:
    """The values that must be there when an instruction runs, even if an asynchronous collective
    writes them: those that it reads, those that it frees, and those of `after`."""
    needed = (*reads(instruction), *instruction.frees)
    return (*needed, *instruction.after) if isinstance(instruction, Communicate) else needed


def writes(instruction: Instruction) -> tuple[int, ...]:
    """The values that an instruction writes."""
    if isinstance(instruction, Update):
        return ()
    results = instruction.results
    return tuple([r for r in results if r is not None]) if None in results else results  # type: ignore[return-value]


def in_place(instruction: Instruction) -> int | None:
    """The value that an instruction adds to in place, if it does: it reads and writes it."""
    adds = isinstance(instruction, Compute) and instruction.op == ACCUMULATE
    return instruction.operands[0] if adds and len(instruction.operands) == 2 else None  # type: ignore[union-attr]


def freeing(instruction: Instruction, frees: tuple[int, ...]) -> Instruction:
    """The instruction with other `frees`. Unlike `replace`, it does not search the arguments for
    operands again: they stay the same."""
    if frees == instruction.frees:
        return instruction
    kind = type(instruction)
    made = object.__new__(kind)
    for name in kind.__slots__:
        object.__setattr__(made, name, getattr(instruction, name))
    object.__setattr__(made, "frees", frees)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterState:
    """A parameter: `value` is the id of the stored shard, which the step reads; `shard` that of the
    shard that the optimizer updates. Lowered programs hold one shard for both (`stored ==
    updated`), and gather it in the step. A program written by hand may hold both, and write `value`
    again after `Update`. If `master` is a dtype, the optimizer updates a copy of the shard in it, and
    `Update` writes the shard from that."""

    name: str
    value: int
    shard: int
    subshape: SubShape
    stored: Layout
    updated: Layout
    dtype: str
    master: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputState:
    """A value that comes into the step, in the layout of each rank's shard. `kind`: `input`, a
    batch tensor (`name` is its position in the batch); `buffer`, of the module; `key`, the number
    from which the step's random masks are drawn; `scale`, that by which the loss is multiplied;
    `received`, from another pipeline stage (`name` is the number of the crossing); `squares`, the
    sum of the squares of the gradients of all stages.

    If the step runs in microbatches, `subshape` is that of one microbatch's piece, and `pieces` =
    (outer, here): the whole tensor, row-major, is (outer, microbatches * here, inner), and
    microbatch j reads `here` of it from j * here on. None: every microbatch reads all of it."""

    name: str
    value: int
    subshape: SubShape
    layout: Layout
    dtype: str
    kind: str = "input"
    pieces: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A value that a pipeline stage sends: the number of its crossing, this program's value and its
    layout. The program that receives it has an input of kind `received` with the same number as its
    name."""

    crossing: int
    value: int
    subshape: SubShape
    layout: Layout
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One training step of every rank of `mesh` or, if shapes or arguments differ between ranks, of
    `rank`: its `actions` in order, each of which runs the instructions of one of the `bodies`.

    `loss` is the id of a replicated scalar, and so are those of `reported`, by name;
    `initial_bytes` are held before the step. `stores` are the buffers that the step changes: (id of
    the old value, id of the new one); those old values that are in `stored_by_all` are replaced at
    the end of every action that writes the new one, the others at the end of the step. `carried`
    are the values that live from one action to later ones: sums over microbatches, which every
    microbatch adds to in place, and what is gathered once for the step. `backend` sends the
    messages: `shared` (memory shared by ranks of one machine), `gloo` or `nccl`.

    The program of a pipeline stage also has the values that it `sent`, and those `stashed`: what a
    microbatch's forward leaves for its backward. Only the stage that computes the loss has one.
    `squares` are the values of the sum of the squares of this stage's gradients, and of that of all
    stages."""

    mesh: Mesh
    bodies: Mapping[str, tuple[Instruction, ...]]
    parameters: tuple[ParameterState, ...]
    inputs: tuple[InputState, ...]
    loss: int | None
    value_bytes: dict[int, int]
    initial_bytes: dict[str, int]
    actions: tuple[Action, ...] = WHOLE_STEP
    carried: frozenset[int] = frozenset()
    stores: tuple[tuple[int, int], ...] = ()
    stored_by_all: frozenset[int] = frozenset()
    reported: tuple[tuple[str, int], ...] = ()
    rank: int | None = None
    backend: str = "shared"
    sent: tuple[Sent, ...] = ()
    stashed: frozenset[int] = frozenset()
    squares: tuple[int, int] | None = None

    @property
    def told(self) -> tuple[tuple[str, int], ...]:
        """The scalars that the step reports, by name: the loss, if it is computed here, and those
        that it is the sum of."""
        return (*(() if self.loss is None else (("loss", self.loss),)), *self.reported)

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        """All instructions of the step in the order in which they run, action by action."""
        if len(self.actions) == 1:
            return self.bodies[self.actions[0].body]
        return tuple(one for action in self.actions for one in self.bodies[action.body])

    @property
    def written(self) -> Iterator[Instruction]:
        """The instructions of all bodies, each body once."""
        for body in self.bodies.values():
            yield from body

    @property
    def trained(self) -> frozenset[int]:
        """The values of parameters, as stored and as updated."""
        return frozenset(value for one in self.parameters for value in (one.value, one.shard))

    @property
    def microbatches(self) -> int:
        """The number of microbatches of a step."""
        return 1 + max(action.microbatch for action in self.actions)

    @property
    def num_parts(self) -> int:
        """The parts in which gradients are added up: of every device, of every microbatch."""
        return self.mesh.num_devices * self.microbatches


def given_kinds(program: Program) -> Iterator[tuple[int, tuple[tuple[int, ...], str]]]:
    """The local shape and dtype of every value held before the step."""
    sizes, place = program.mesh.sizes, program.mesh.coordinate(program.rank or 0)
    for parameter in program.parameters:
        yield (
            parameter.shard,
            (local_shape(parameter.subshape, parameter.updated, sizes, place), parameter.dtype),
        )
        yield (
            parameter.value,
            (local_shape(parameter.subshape, parameter.stored, sizes, place), parameter.dtype),
        )
    for state in program.inputs:
        yield state.value, (local_shape(state.subshape, state.layout, sizes, place), state.dtype)
