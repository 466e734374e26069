"""Records what a step does between the blocks of its stacks, forward and backward, to check that
every block is treated like those that are traced.

Module, stacks -> `Between`. The step runs on fake tensors with a stand-in for every block, which
returns results like a block's at no cost. Each op outside the blocks is logged as seen from the
block before it. If a parent does something to a block by its number, or by the number of blocks,
the log shows it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planner.torch_private.checkpoints import running_in
from planner.torch_private.modes import TorchDispatchMode
from planner.torch_private.trees import tree_flatten, tree_leaves, tree_unflatten
from planner.trace.spelling import NUMBERED
from planner.trace.stacks import Run

__all__ = ["Between", "Unlike", "between"]


#: The part of the log that an op is in: (number of the run, phase, block), or (-1, phase, 0) before
#: any block.
Part = tuple[int, str, int]
_VALUES = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    type,
)


class Unlike(Exception):
    """A parent treats its blocks differently, or does not run them one after the other."""


@dataclass(frozen=True, slots=True)
class Between:
    """The ops outside the blocks, as words, by part; the third block represents all but the first
    two and the last two. Equal for a module and its shortened version if both treat their blocks
    the same."""

    parts: tuple[tuple[Part, tuple[Any, ...]], ...]


def between(
    module: nn.Module, runs: tuple[Run, ...], loss: Callable[[], Tensor], given: Iterable[Tensor]
) -> Between:
    """The ops outside the blocks of the runs in `loss()`, which runs the module, and its gradient;
    `given` are the tensors that the step starts from, beside the module's.

    Raises `Unlike` if the blocks of a run are not all treated the same.
    """
    log = _Log(module, runs, given)
    with ExitStack() as entered:
        for number, run in enumerate(runs):
            for block, child in enumerate(run.blocks(module)):
                entered.enter_context(_stand_in(child, log, number, block))
        entered.enter_context(log)
        scalar = loss()
        log.enter((-1, "backward", 0))
        trained = [p for p in module.parameters() if p.requires_grad]
        torch.autograd.grad(scalar, [log.anchor, *trained], allow_unused=True)
    return log.compared()


# ------------------------------------------------------------------------------------- writing down


class _Log(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Logs every op: its name, its plain arguments, and where each of its operands comes from."""

    def __init__(self, module: nn.Module, runs: tuple[Run, ...], given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lengths = [run.length for run in runs]
        # Makes a block's results need gradients even if its inputs do not.
        self.anchor = torch.zeros((), requires_grad=True)
        self.paused = False
        self.part: Part = (-1, "forward", 0)
        self.words: dict[Part, list[Any]] = {self.part: []}
        self.homes: dict[int, tuple[Part, int]] = {}
        self.counts: Counter[Part] = Counter()
        self.kept: list[Any] = []
        self.templates: dict[int, _Template] = {}
        for name, tensor in (
            *module.named_parameters(),
            *module.named_buffers(),
            *(("", t) for t in (*given, self.anchor)),
        ):
            found = [(number, run.block_of(name)) for number, run in enumerate(runs)]
            part = next(
                ((number, "given", block) for number, block in found if block is not None),
                (-1, "given", 0),
            )
            self.made([tensor], part)

    def enter(self, part: Part) -> None:
        """From here on, ops are logged under `part`."""
        if part in self.words:
            raise Unlike
        self.part = part
        self.words[part] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.paused and func.namespace != "prim":
            plain = list(args)
            if func.namespace == "shardwright" and func._opname in NUMBERED:
                plain[NUMBERED[func._opname]] = None
            self.note(str(func), plain, kwargs or {})
            self.made(tree_leaves(out))
        return out

    def note(self, what: str, *arguments: Any) -> None:
        self.words[self.part].append((what, *map(self._word, arguments)))

    def made(self, values: Iterable[Any], part: Part | None = None) -> None:
        """Records values that are new as made in the part (default: the present one)."""
        part = part or self.part
        for value in values:
            if not isinstance(value, _VALUES) and id(value) not in self.homes:
                self.kept.append(value)  # so that nothing else gets its id
                self.homes[id(value)] = part, self.counts[part]
                self.counts[part] += 1

    def _word(self, value: Any) -> Any:
        if isinstance(value, dict):
            return tuple((key, self._word(item)) for key, item in value.items())
        if isinstance(value, list | tuple):
            return tuple(map(self._word, value))
        if isinstance(value, _VALUES):
            return type(value).__name__, repr(value)
        self.made([value])
        return self._seen(*self.homes[id(value)])

    def _seen(self, home: Part, number: int) -> Any:
        """Where a value comes from, as seen from the present part: the first or last block, or one
        nearby."""
        (run, phase, block), (mine, _, at) = home, self.part
        if run < 0:
            return "outside", phase, number
        last, inner = self.lengths[run] - 1, run == mine and 0 < at < self.lengths[run] - 1
        if block in (0, last):
            beside = block - at if inner and abs(block - at) == 1 else 0
            return "end", beside, run, "first" if block == 0 else "last", phase, number
        if run != mine or abs(block - at) > 1:
            raise Unlike
        return "beside", block - at, run, phase, number

    def compared(self) -> Between:
        """The log as a `Between`. Raises `Unlike` if the inner blocks of a run are treated
        differently, or do not run in order."""
        left = dict(self.words)
        for run, length in enumerate(self.lengths):
            for phase, blocks in (
                ("forward", range(length)),
                ("backward", range(length - 1, -1, -1)),
            ):
                parts = [(run, phase, block) for block in blocks]
                self._check(parts)
                for part in parts:
                    if 2 < part[2] < length - 2:
                        del left[part]
        ends = {
            (run, length - back): -back
            for run, length in enumerate(self.lengths)
            for back in (1, 2)
        }
        return Between(
            tuple(
                ((run, phase, ends.get((run, at), at)), tuple(words))
                for (run, phase, at), words in left.items()
            )
        )

    def _check(self, parts: list[Part]) -> None:
        order = list(self.words)
        start = order.index(parts[0]) if parts[0] in self.words else 0
        if order[start : start + len(parts)] != parts:
            raise Unlike
        run, phase, _ = parts[0]
        if not all(_same(self.words[part], self.words[run, phase, 2]) for part in parts[1:-1]):
            raise Unlike


def _same(one: Any, other: Any) -> bool:
    """Whether a block's words equal those of one with inner blocks on both sides. The second block
    reads from the first, and the last but one from the last, in other words; the shortened module
    has these blocks too."""
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        if one[:1] == ("end",) and one[1] and other[:2] == ("beside", one[1]):
            return True
        if one[:1] == other[:1] == ("end",):
            return one[2:] == other[2:]
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------------------------- stand-ins


@dataclass(frozen=True, slots=True)
class _Template:
    """A block's result: its nesting and, for each leaf, the number of the input that it is, or a
    tensor like it, or its value; for inputs of these shapes and dtypes."""

    inputs: list[tuple[torch.Size, torch.dtype]]
    spec: Any
    leaves: list[Any]
    new: list[Tensor]


class _Place(int):
    """A leaf that is an input (0, 1, ...) or a new tensor (-1, -2, ...)."""


@contextmanager
def _stand_in(module: nn.Module, log: _Log, run: int, block: int) -> Iterator[None]:
    """A context in which a call of the block returns results like a block's. The first two blocks
    do run, to provide examples."""
    forward, own = module.forward, vars(module).get("forward")

    @functools.wraps(forward)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        log.enter((run, "forward", block))
        log.note("call", args, kwargs, running_in())
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if block < 2:
            log.templates[run] = _template(log, inputs, lambda: forward(*args, **kwargs))
        template = log.templates[run]
        if [(t.shape, t.dtype) for t in inputs] != template.inputs:
            raise Unlike
        made: tuple[Tensor, ...] = ()
        if template.new:
            made = _Block.apply(log, (run, "backward", block), template.new, log.anchor, *inputs)  # type: ignore[no-untyped-call]
        log.made(made)
        leaves = [_placed(leaf, inputs, made) for leaf in template.leaves]
        return tree_unflatten(leaves, template.spec)

    module.forward = stand_in
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _template(log: _Log, inputs: list[Tensor], forward: Callable[[], Any]) -> _Template:
    like = [(t.shape, t.dtype) for t in inputs]
    log.paused = True
    with torch.no_grad():
        leaves, spec = tree_flatten(forward())
    log.paused = False
    new: list[Tensor] = []
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            same = [place for place, one in enumerate(inputs) if one is leaf]
            if not same:
                new.append(leaf)
            leaves[number] = _Place(same[0] if same else -len(new))
    return _Template(like, spec, leaves, new)


def _placed(leaf: Any, inputs: list[Tensor], made: tuple[Tensor, ...]) -> Any:
    if not isinstance(leaf, _Place):
        return leaf
    return inputs[leaf] if leaf >= 0 else made[-1 - leaf]


class _Block(torch.autograd.Function):
    """Returns new tensors like a block's results; its backward returns new tensors like the
    block's inputs."""

    @staticmethod
    def forward(
        ctx: Any, log: _Log, part: Part, new: list[Tensor], _: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.log, ctx.part, ctx.inputs = log, part, inputs
        ctx.set_materialize_grads(False)
        log.paused = True
        made = tuple(torch.empty_like(tensor) for tensor in new)
        log.paused = False
        ctx.mark_non_differentiable(
            *(t for t in made if not (t.is_floating_point() or t.is_complex()))
        )
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        log: _Log = ctx.log
        log.enter(ctx.part)
        log.note("gradients", gradients)
        log.paused = True
        needed = ctx.needs_input_grad[4:]
        made = [
            torch.empty_like(t) if need else None
            for t, need in zip(ctx.inputs, needed, strict=True)
        ]
        log.paused = False
        log.made(t for t in made if t is not None)
        return None, None, None, None, *made
