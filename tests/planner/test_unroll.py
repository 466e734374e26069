"""Long stacks of like blocks: a few are traced, and the graph is the one that tracing all of
them gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trace_models import built_in, workload

import planner.trace.trace
from planner.graph.graph import Graph
from planner.trace.stacks import KEPT, Stack, shortened, stacks_of
from planner.trace.trace import trace
from planner.workload.workload import Workload


class Block(nn.Module):
    """A residual block with what makes blocks hard: dropout with numbers of its own, and buffers
    that the step changes."""

    def __init__(self, number: int, *, slope: float = 0.1, p: float = 0.1) -> None:
        super().__init__()
        self.number, self.slope, self.p = number, slope, p
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        inside = F.dropout(F.leaky_relu(self.linear(x), self.slope), self.p)
        out: Tensor = x + self.norm(inside)
        return out


class Chain(nn.Module):
    """Blocks in a row between two layers; `collect` also gives the last layer every block's
    result."""

    def __init__(self, blocks: Sequence[nn.Module], *, collect: bool = False) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(6, 6), nn.ModuleList(blocks), nn.Linear(6, 4)
        self.collect = collect

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), 0.2)
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        out: Tensor = self.last(F.dropout(torch.stack(seen).sum(0) if self.collect else x, 0.3))
        return out


class ByNumber(Chain):
    """Says how many blocks it runs by a number of its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number in range(10):
            x = self.blocks[number](x)
        out: Tensor = self.last(x)
        return out


class Parent(Chain):
    """Does something of its own after each block, given the block's number and all results so
    far."""

    def __init__(
        self, treat: Callable[[int, Tensor, list[Tensor]], Tensor], count: int = 10
    ) -> None:
        super().__init__([nn.Linear(6, 6) for _ in range(count)])
        self.treat = treat

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.first(x)]
        for number, block in enumerate(self.blocks):
            seen.append(self.treat(number, block(seen[-1]), seen))
        out: Tensor = self.last(seen[-1])
        return out


def _alike(number: int, x: Tensor, seen: list[Tensor]) -> Tensor:
    return torch.relu(x) + 0.1 * seen[-1]


def _one_apart(number: int, x: Tensor, seen: list[Tensor]) -> Tensor:
    return x * 0.25 if number == 6 else x


def _skip(number: int, x: Tensor, seen: list[Tensor]) -> Tensor:
    return x + seen[3] if number == 7 else x


def _hooked(number: int, x: Tensor, seen: list[Tensor]) -> Tensor:
    if number == 5:
        x.register_hook(lambda gradient: gradient * 0.5)
    return x


class _Slower(torch.autograd.Function):
    """The same, with less of a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def _slowed(number: int, x: Tensor, seen: list[Tensor]) -> Tensor:
    return cast(Tensor, _Slower.apply(x, 0.5 if number == 6 else 0.9))


class Counting(Chain):
    """Divides by how many blocks there are."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x / len(self.blocks)


class ByOwnNumber(Block):
    """Knows which block it is, and one of them does something else; nothing in the parent tells
    it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 if self.number == 6 else 1.0)


class Inside(Chain):
    """Calls a part of its blocks, not the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            x = block.norm(block.linear(x)) * (2.0 if number == 5 else 1.0)
        out: Tensor = self.last(x)
        return out


class Checkpointed(Chain):
    """Has some blocks computed again in backward."""

    def __init__(self, chosen: Callable[[int], bool]) -> None:
        super().__init__([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(10)])
        self.chosen = chosen

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            again = self.chosen(number)
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        out: Tensor = self.last(x)
        return out


class TwoLists(nn.Module):
    """Two lists of like modules that take turns: no list's blocks stand by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.ModuleList(nn.Linear(6, 6) for _ in range(9)) for _ in range(2))
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for one, other in zip(self.one, self.other, strict=True):
            x = x + torch.tanh(other(torch.relu(one(x))))
        out: Tensor = self.last(x)
        return out


def chain(count: int = 10) -> nn.Module:
    return Chain([Block(i) for i in range(count)])


def step(module: Callable[[], nn.Module]) -> Callable[[], Workload]:
    return lambda: workload(module(), torch.randn(8, 6), torch.randn(8, 4))


def traced(build: Callable[[], Workload], monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, bool]:
    """The graph, and whether it came of a few blocks."""
    wholes: list[Workload] = []
    ordinary = planner.trace.trace.whole_graph
    monkeypatch.setattr(
        planner.trace.trace,
        "whole_graph",
        lambda w, begin: (wholes.append(w), ordinary(w, begin))[1],
    )
    graph = trace(build).graph
    monkeypatch.undo()
    return graph, not wholes


REPEATED: dict[str, Callable[[], Workload]] = {
    "dropout and buffers": step(chain),
    "two chains": step(
        lambda: nn.Sequential(
            *[Block(i) for i in range(9)], nn.Linear(6, 6), Chain([Block(i) for i in range(12)])
        )
    ),
    "gpt": built_in("gpt", layers=9, width=8, heads=2, vocab=16, positions=8, seq=4),
    "llama": built_in("llama", layers=8, width=16, heads=4, kv_heads=2, mlp=8, vocab=16, seq=4),
    "bert": built_in("bert", layers=8, width=8, heads=2, vocab=16, seq=4),
    "t5": built_in("t5", layers=8, width=8, heads=2, vocab=16, seq=4),
    "moe": built_in("moe", layers=8, width=8, heads=2, kv_heads=2, vocab=16, seq=4),
    "a parent that does the same to all": step(lambda: Parent(_alike)),
    "mlp": built_in("mlp", layers=10, inputs=4, hidden=6, outputs=4),
    "every block under a checkpoint": step(lambda: Checkpointed(lambda number: True)),
}

WHOLE: dict[str, Callable[[], Workload]] = {
    "short": step(lambda: chain(7)),
    "other settings": step(lambda: Chain([Block(i, slope=0.1 * (i % 2)) for i in range(12)])),
    "every result read": step(lambda: Chain([Block(i) for i in range(10)], collect=True)),
    "counted": step(lambda: ByNumber([nn.Linear(6, 6) for _ in range(10)])),
    "shared": step(lambda: Chain([nn.Linear(6, 6)] * 10)),
    "two lists": step(TwoLists),
    "one block apart": step(lambda: Parent(_one_apart)),
    "a skip from one block to another": step(lambda: Parent(_skip)),
    "a hook behind one block": step(lambda: Parent(_hooked)),
    "less of a gradient behind one block": step(lambda: Parent(_slowed)),
    "divided by the number of blocks": step(lambda: Counting([Block(i) for i in range(10)])),
    "a block that asks for its number": step(lambda: Chain([ByOwnNumber(i) for i in range(10)])),
    "every second block under a checkpoint": step(
        lambda: Checkpointed(lambda number: number % 2 == 0)
    ),
    "the first blocks under a checkpoint": step(lambda: Checkpointed(lambda number: number < 6)),
    "parts of blocks": step(lambda: Inside([Block(i) for i in range(10)])),
}


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_blocks_give_the_graph_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, short = traced(REPEATED[name], monkeypatch)
    assert short
    whole = trace(REPEATED[name], whole=True).graph
    assert graph.nodes == whole.nodes
    assert graph.values == whole.values
    assert graph.digest() == whole.digest()


@pytest.mark.parametrize("name", WHOLE)
def test_blocks_that_are_not_alike_are_traced_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, short = traced(WHOLE[name], monkeypatch)
    assert not short
    assert graph.digest() == trace(WHOLE[name], whole=True).graph.digest()


def test_a_setting_of_one_block_ends_a_stack() -> None:
    module = Chain([Block(i, slope=0.2 if i == 3 else 0.1) for i in range(14)])
    assert stacks_of(module) == (Stack(path="blocks", short="blocks", start=4, length=10),)


def test_a_number_that_is_not_the_blocks_own_ends_a_stack() -> None:
    module = Chain([Block(i if i < 11 else 0) for i in range(12)])
    assert stacks_of(module) == (Stack(path="blocks", short="blocks", start=0, length=11),)


def test_a_shortened_module_is_whole_again_afterwards() -> None:
    module = chain(12)
    before = dict(module.named_modules())
    stacks = stacks_of(module)
    with shortened(module, stacks):
        assert len(module.get_submodule("blocks")._modules) == KEPT
    assert dict(module.named_modules()) == before


def test_names_of_a_shortened_module_are_those_of_the_whole() -> None:
    stack = Stack(path="h", short="h", start=1, length=12)
    assert [stack.renamed(f"h.{n}.w") for n in range(7)] == [
        "h.0.w",
        "h.1.w",
        "h.2.w",
        "h.3.w",
        "h.11.w",
        "h.12.w",
        "h.13.w",
    ]
    assert stack.renamed("h.2.w", by=3) == "h.5.w"
    assert stack.renamed("head.2.w") == "head.2.w"
