"""The graph of a microbatch: run one microbatch after another, it has the losses, the gradients and
the new buffers of plain torch on the whole batch; or it is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_graph import far, interpreted, plain, torch_step
from small_plans import ask_for
from torch import Tensor, nn
from trace_models import BUILDERS, workload

from cost_models.errors import BadValue, UnknownName
from planner.dims.roots import roots_of
from planner.dims.subdims import infer
from planner.dims.ties import tie
from planner.graph.graph import Graph
from planner.graph.sections import AFTER, BEFORE, BODY, is_accumulate, sections_of
from planner.microbatch import (
    CannotSplit,
    check_globs,
    microbatch_graph,
    possible_microbatches,
)
from planner.program.check_calls import called_faults
from planner.program.check_graph import graph_faults
from planner.trace.trace import trace
from planner.workload.ask import build
from planner.workload.workload import Workload

SAMPLES = 12


class Two(nn.Module):
    """Two layers; `between` is applied between them, with the module."""

    count: Tensor
    mean: Tensor

    def __init__(self, between: Callable[[Two, Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, width), nn.Linear(6, 4)
        self.each, self.between = nn.Parameter(torch.rand(SAMPLES, 6)), between
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("last", torch.zeros(SAMPLES, 6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.between(self, torch.tanh(self.first(x))))
        return out


def model(
    between: Callable[[Any, Tensor], Tensor] = lambda module, x: x,
    loss: Callable[[Any, Any], Any] = F.cross_entropy,
    target: Callable[[], Tensor] | None = None,
    x: Callable[[], Tensor] = lambda: torch.randn(SAMPLES, 5),
) -> Callable[[], Workload]:
    def made() -> Workload:
        module = Two(between)
        if "each" not in between.__code__.co_names:
            del module.each
        return workload(module, x(), (target or _ignored)(), loss=loss)

    return made


def _ignored() -> Tensor:
    """Targets of which each third has another number of ignored ones."""
    found = torch.randint(0, 4, (SAMPLES,))
    found[[0, 1, 3, 9]] = -100
    return found


def _mask() -> Tensor:
    found = torch.zeros(SAMPLES, 4)
    found[2:, :3] = torch.rand(SAMPLES - 2, 3)
    return found


def _counts(module: Two, x: Tensor) -> Tensor:
    """A counter that the step reads, and a mean over the batch that it only keeps."""
    module.count += 1
    with torch.no_grad():
        module.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x / module.count


def _by_place(module: Two, x: Tensor) -> Tensor:
    """Constants with a row for each sample, drawn and counted."""
    place = torch.arange(len(x), dtype=x.dtype)
    return x * torch.cos(place)[:, None] + torch.zeros(len(x), 6).cumsum(0) + torch.rand_like(x)


def _masked_at_random(out: Tensor, target: Tensor) -> Tensor:
    """The loss of targets chosen at random: their number is random, too."""
    chosen = (torch.rand(target.shape) < 0.5).double()
    loss = F.cross_entropy(out, target.clamp(min=0), reduction="none")
    return (loss * chosen).sum() / chosen.sum()


#: Models that can be cut into microbatches.
ALIKE: dict[str, Callable[[], Workload]] = {
    "ignored": model(),
    "sum": model(loss=partial(F.cross_entropy, reduction="sum")),
    "weighted": model(
        loss=lambda out, t: F.cross_entropy(out, t, weight=torch.tensor([1.0, 2.0, 0.5, 3.0]))
    ),
    "smoothed": model(loss=partial(F.cross_entropy, label_smoothing=0.2)),
    "own mask": model(loss=lambda out, m: (out.square() * m).sum() / m.sum(), target=_mask),
    "drawn mask": model(loss=_masked_at_random),
    "named": model(
        loss=lambda out, t: {
            "words": F.cross_entropy(out, t),
            "size": 0.1 * out.square().mean(),
            "all": out.abs().sum(),
        }
    ),
    "decayed": model(
        lambda module, x: x * module.second.weight.square().sum(),
    ),
    "regularised": model(
        lambda module, x: torch.cat([x[:, :3], x[:, 3:] * module.second.weight.norm()], 1)
    ),
    "buffers": model(_counts),
    "by place": model(_by_place),
    "dropout": model(lambda module, x: F.dropout(x.view(4, 3, 6), 0.3).view(-1, 6)),
    "nested": model(lambda module, x: x.view(6, 2, 6).mul(torch.rand(2, 6)).reshape(-1, 6)),
    "turned": model(lambda module, x: x.t().contiguous().view(3, 2, -1).flatten(0, 1).t()),
    "started": model(
        lambda module, x: nn.functional.pad(x, (0, 0)) + x.new_zeros(len(x), 1) + torch.ones(6)
    ),
}


class OfPositions(nn.Module):
    """Reads, beside its samples, a mask of positions and a number, and is given flat targets."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 9)

    def forward(self, ids: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        x = self.table(ids)
        scores = (x @ x.transpose(1, 2)).masked_fill(mask, -10.0)
        return self.out(scores.softmax(-1) @ x * scale)


def of_positions() -> Workload:
    hidden, scale = torch.ones(5, 5, dtype=torch.bool).triu(1), torch.tensor(0.7)
    targets = torch.randint(0, 9, (SAMPLES * 5,))
    ids = torch.randint(0, 9, (SAMPLES, 5))
    return workload(
        OfPositions(),
        ids,
        hidden,
        scale,
        targets,
        loss=lambda o, t: F.cross_entropy(o.flatten(0, 1), t),
    )


ALIKE["positions"] = of_positions


def cut(graph: Graph, microbatches: int, per_microbatch: tuple[str, ...] = ()) -> Graph:
    """The graph of a microbatch, checked."""
    found = microbatch_graph(graph, infer(graph), microbatches, per_microbatch)
    assert [*graph_faults(found), *called_faults(found)] == []
    return found


def check(make: Callable[[], Workload], *, most: int = 2) -> None:
    """Compares the step in several numbers of microbatches with that of the whole batch."""
    graph, whole = traced(make), torch_step(plain(make))
    numbers = possible_microbatches(graph, infer(graph))[1:]
    assert numbers
    for microbatches in numbers[-most:]:
        assert far(interpreted(cut(graph, microbatches), plain(make)), whole) < 1e-12, microbatches


def traced(make: Callable[[], Workload]) -> Graph:
    """The whole step's graph."""
    return trace(make, whole=True).graph


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ALIKE)
def test_microbatches_have_the_step_of_the_whole_batch(name: str) -> None:
    check(ALIKE[name])


@pytest.mark.parametrize("name", ["gpt-untied", "lstm", "cosine", "nll-weighted"])
def test_traced_models_in_microbatches(name: str) -> None:
    check(BUILDERS[name], most=1)


@pytest.mark.parametrize("name", ["moe", "t5", "dropped", "nested"])
def test_families_in_microbatches(name: str) -> None:
    check(partial(build, ask_for(name)), most=1)


#: Models that cannot, and what they are told.
REFUSED: dict[str, tuple[Callable[[], Workload], str]] = {
    "contrast": (
        model(loss=lambda out, t: F.cross_entropy(out @ out.t(), torch.arange(len(out)))),
        "mm in the model needs all samples of a batch at once",
    ),
    "root of a mean": (
        model(loss=lambda out, t: (out - t).square().mean().sqrt(), target=_mask),
        "sqrt in the model needs all samples",
    ),
    "centred": (model(lambda module, x: x - x.mean(0)), "sub in the model needs all samples"),
    "largest": (model(lambda module, x: x / x.detach().max()), "max in the model needs all"),
    "sorted": (model(lambda module, x: x.sort(0).values), "sort in the model needs all samples"),
    "rows": (
        model(lambda module, x: x + module.each),
        "parameter 'each' is another in every microbatch",
    ),
    "state by sample": (
        model(lambda module, x: (setattr(module, "last", x.detach()), x)[1]),
        "the new value of buffer 'last' is another in every microbatch",
    ),
    "norm": (
        lambda: workload(
            nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), torch.randn(12, 5), _ignored(),
            loss=F.cross_entropy,
        ),
        "batch_norm in 1 takes statistics over all samples of a batch, which no microbatch has: "
        "allow those of each microbatch with --per-microbatch '1', or '*' for all modules; or use "
        "--microbatches 1",
    ),
    "mean read at once": (
        lambda: build(ask_for("normed")), "batch_norm in norm takes statistics"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_looks_across_microbatches_is_refused(name: str) -> None:
    make, says = REFUSED[name]
    with pytest.raises(CannotSplit) as error:
        cut(traced(make), 2)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_statistics_of_each_microbatch_are_those_of_plain_accumulation() -> None:
    make = partial(build, ask_for("resnet", depth=10, image=32))
    graph = traced(make)
    one = cut(graph, 4, ("stem", "blocks.*"))
    assert {*one.carried} == {buffer for buffer, _ in one.updates} != set()
    assert far(interpreted(one, plain(make)), torch_step(plain(make), 4)) < 1e-12
    with pytest.raises(CannotSplit, match=r"batch_norm in blocks\.0"):
        cut(graph, 4, ("stem",))
    with pytest.raises(UnknownName, match="'block': did you mean 'blocks"):
        check_globs(graph, ("stem", "block"))


def test_sections() -> None:
    """The number of targets is counted before the first forward, by ops of its own where the body
    needs their results too; gradients are added up in the body, one for each parameter; a buffer
    that all samples change is stored once."""
    graph = cut(traced(ALIKE["own mask"]), 3)
    sections = sections_of(graph)
    before = [n.op for n, s in zip(graph.nodes, sections, strict=True) if s == BEFORE]
    assert before == ["aten.sum.default", "shardwright.accumulate"]
    sums = [n for n in graph.nodes if is_accumulate(n)]
    assert [n.phase for n in sums].count("update") == len(graph.parameters)
    assert len(sums) == len(graph.parameters) + 2
    buffers = cut(traced(ALIKE["buffers"]), 2)
    late = [n.op for n, s in zip(buffers.nodes, sections_of(buffers), strict=True) if s == AFTER]
    assert late == ["aten.mul.Tensor", "aten.add.Tensor"] and not buffers.carried


def test_ops_of_two_sections_share_no_choice() -> None:
    """A mask that is drawn to be counted, and again in every microbatch: only the latter has the
    batch's samples."""
    graph = cut(traced(ALIKE["drawn mask"]), 2)
    dims, sections = infer(graph), sections_of(graph)
    drawn = [n.index for n in graph.nodes if "uniform" in n.op]
    assert [sections[n] for n in drawn] == [BEFORE, BODY]
    for members in tie(graph, dims, roots_of(graph, dims)).nodes_of:
        assert len({sections[n] for n in members}) == 1


@pytest.mark.parametrize(
    ("microbatches", "says"),
    [
        (
            5,
            "--microbatches 5: 12 samples are not cut into 5 equal parts; use --microbatches 4 or 6",
        ),
        (13, "--microbatches 13: more than the 12 samples of a batch; use --microbatches 12"),
    ],
)
def test_numbers_that_do_not_divide_the_batch(microbatches: int, says: str) -> None:
    with pytest.raises(BadValue, match=f"^{says}$"):
        cut(traced(ALIKE["ignored"]), microbatches)


def test_samples_that_the_model_takes_apart() -> None:
    graph = traced(ALIKE["dropout"])
    assert possible_microbatches(graph, infer(graph)) == (1, 2, 4)
    with pytest.raises(BadValue, match="takes the 12 samples apart"):
        cut(graph, 3)


def test_one_microbatch_is_the_whole_batch() -> None:
    graph = traced(ALIKE["ignored"])
    assert microbatch_graph(graph, infer(graph), 1) is graph
    assert graph.digest() != cut(graph, 2).digest() != cut(graph, 3).digest()
