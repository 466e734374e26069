"""Programs written by hand for a two-layer perceptron, one for each way of splitting it, and the
workload they belong to."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planner.graph.layout import PARTIAL_SUM, REPLICATE, Layout, Mesh, local_shape
from planner.program.actions import STEP
from planner.program.program import (
    Communicate,
    Compute,
    InputState,
    Instruction,
    ParameterState,
    Program,
    Ref,
    Update,
)
from planner.workload.workload import Workload

BATCH, INPUTS, HIDDEN, OUTPUTS = 8, 12, 16, 4
R, P = REPLICATE, PARTIAL_SUM


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN, bias=False)
        self.second = nn.Linear(HIDDEN, OUTPUTS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def make_workload(optimizer: str = "adam") -> Workload:
    module = Perceptron()
    batch = (
        torch.randn(BATCH, INPUTS, dtype=torch.float64),
        torch.randn(BATCH, OUTPUTS, dtype=torch.float64),
    )
    return Workload(
        name="perceptron",
        module=module,
        batch=batch,
        loss=nn.functional.mse_loss,
        optimizer=optimizer,
    )


@dataclass
class Builder:
    """Collects instructions; every value is float64."""

    mesh: Mesh
    instructions: list[Any] = field(default_factory=list)
    num_values: int = 0
    loss: int = -1

    def value(self) -> int:
        self.num_values += 1
        return self.num_values - 1

    def compute(self, op: str, *args: Any, phase: str = "forward") -> int:
        out = self.value()
        self.instructions.append(
            Compute(
                id=f"c{out}",
                op=op,
                args=args,
                results=(out,),
                shapes=((),),
                dtypes=("float64",),
                kind="elementwise",
                phase=phase,
            )
        )
        return out

    def communicate(
        self,
        kind: str,
        axes: tuple[int, ...],
        sources: list[tuple[int, tuple[int, ...]]],
        shapes: list[tuple[int, ...]],
        results: list[int] | None = None,
        **more: Any,
    ) -> list[int]:
        outs = results or [self.value() for _ in sources]
        self.instructions.append(
            Communicate(
                id=f"m{len(self.instructions)}",
                kind=kind,
                axes=axes,
                sources=tuple(s for s, _ in sources),
                results=tuple(outs),
                expanded=tuple(e for _, e in sources),
                shapes=tuple(shapes),
                dtypes=("float64",) * len(outs),
                phase="backward",
                **more,
            )
        )
        return outs

    def finish(self, parameters: list[ParameterState], inputs: list[InputState]) -> Program:
        kept = {
            self.loss,
            *(i.value for i in inputs),
            *(v for p in parameters for v in (p.value, p.shard)),
        }
        return Program(
            mesh=self.mesh,
            bodies={STEP: _with_frees(self.instructions, kept)},
            parameters=tuple(parameters),
            inputs=tuple(inputs),
            loss=self.loss,
            value_bytes={},
            initial_bytes={},
        )


def _with_frees(instructions: list[Instruction], kept: set[int]) -> tuple[Instruction, ...]:
    """Every value is freed where it is last used."""
    last: dict[int, int] = {}
    for at, instruction in enumerate(instructions):
        used = list(getattr(instruction, "sources", ())) + list(
            getattr(instruction, "gradients", ())
        )
        used += list(getattr(instruction, "operands", ()))
        used += [i for i in getattr(instruction, "results", ()) if i is not None]
        last.update(dict.fromkeys(used, at))
    return tuple(
        dataclasses.replace(
            instruction,
            frees=tuple(v for v, where in last.items() if where == at and v not in kept),
        )
        for at, instruction in enumerate(instructions)
    )


@dataclass(frozen=True)
class Split:
    """How to split: layouts by mesh axis. `hidden` splits the hidden units over these axes,
    `batch` the batch."""

    mesh: Mesh
    batch: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    zero: int = 0  # 1, 2 or 3: over the batch axes
    zero_dims: tuple[int, int] = (0, 0)  # which dim of each weight ZeRO splits
    asynchronous: bool = False


def perceptron(split: Split) -> Program:
    """One training step of the perceptron."""
    mesh, b = split.mesh, Builder(split.mesh)
    num_axes, zero = len(mesh.sizes), split.zero
    x, target, *weights = (b.value() for _ in range(4))
    full = [(HIDDEN, INPUTS), (OUTPUTS, HIDDEN)]
    used = [_layout(num_axes, dict.fromkeys(split.hidden, dim)) for dim in (0, 1)]
    cut = [
        _layout(
            num_axes,
            dict.fromkeys(split.hidden, dim) | (dict.fromkeys(split.batch, z) if zero else {}),
        )
        for dim, z in zip((0, 1), split.zero_dims, strict=True)
    ]
    stored = cut if zero == 3 else used
    shards = [b.value() for _ in weights] if zero in (1, 2) else weights
    whole = [
        local_shape(tuple((s,) for s in f), u, mesh.sizes) for f, u in zip(full, used, strict=True)
    ]
    piece = [
        local_shape(tuple((s,) for s in f), c, mesh.sizes) for f, c in zip(full, cut, strict=True)
    ]

    def gathered(i: int, source: int, into: list[int] | None = None) -> int:
        (out,) = b.communicate(
            "all_gather",
            split.batch,
            [(source, piece[i])],
            [whole[i]],
            into,
            gather=split.zero_dims[i],
            asynchronous=split.asynchronous,
        )
        return out

    w1, w2 = (gathered(i, w) for i, w in enumerate(weights)) if zero == 3 else weights
    grads = _forward_backward(b, split, x, target, w1, w2)
    if split.batch:
        grads = _reduce(b, split, grads, whole, piece)
    b.instructions.append(Update(id="update", gradients=tuple(grads)))
    if zero in (1, 2):
        for i, shard in enumerate(shards):
            gathered(i, shard, [weights[i]])
    batch_layout = _layout(num_axes, dict.fromkeys(split.batch, 0))
    return b.finish(
        [
            ParameterState(
                name=name,
                value=weights[i],
                shard=shards[i],
                subshape=tuple((s,) for s in full[i]),
                stored=stored[i],
                updated=cut[i],
                dtype="float64",
            )
            for i, name in enumerate(["first.weight", "second.weight"])
        ],
        [
            InputState(
                name="0",
                value=x,
                subshape=((BATCH,), (INPUTS,)),
                layout=batch_layout,
                dtype="float64",
            ),
            InputState(
                name="1",
                value=target,
                subshape=((BATCH,), (OUTPUTS,)),
                layout=batch_layout,
                dtype="float64",
            ),
        ],
    )


def _forward_backward(b: Builder, split: Split, x: int, target: int, w1: int, w2: int) -> list[int]:
    rows = BATCH // math.prod(split.mesh.sizes[axis] for axis in split.batch)
    scale = 1 / (BATCH * OUTPUTS)
    h = b.compute("aten.mm.default", Ref(x), Ref(b.compute("aten.t.default", Ref(w1))))
    a = b.compute("aten.relu.default", Ref(h))
    y = b.compute("aten.mm.default", Ref(a), Ref(b.compute("aten.t.default", Ref(w2))))
    if split.hidden:
        (y,) = b.communicate("all_reduce", split.hidden, [(y, (rows, OUTPUTS))], [(rows, OUTPUTS)])
    d = b.compute("aten.sub.Tensor", Ref(y), Ref(target))
    total = b.compute("aten.sum.default", Ref(b.compute("aten.mul.Tensor", Ref(d), Ref(d))))
    b.loss = b.compute("aten.mul.Tensor", Ref(total), scale)
    if split.batch:
        (b.loss,) = b.communicate(
            "all_reduce", split.batch, [(b.loss, ())], [()], asynchronous=split.asynchronous
        )
    gy = b.compute("aten.mul.Tensor", Ref(d), 2 * scale, phase="backward")
    gw2 = b.compute(
        "aten.mm.default", Ref(b.compute("aten.t.default", Ref(gy))), Ref(a), phase="backward"
    )
    ga = b.compute("aten.mm.default", Ref(gy), Ref(w2), phase="backward")
    gh = b.compute("aten.threshold_backward.default", Ref(ga), Ref(h), 0, phase="backward")
    gw1 = b.compute(
        "aten.mm.default", Ref(b.compute("aten.t.default", Ref(gh))), Ref(x), phase="backward"
    )
    return [gw1, gw2]


def _reduce(
    b: Builder, split: Split, grads: list[int], whole: list[Any], piece: list[Any]
) -> list[int]:
    """The reduction of the gradients over the batch axes: one bucket, or what ZeRO makes of it."""
    together = list(zip(grads, whole, strict=True))
    if split.zero in (0, 1):
        grads = b.communicate(
            "all_reduce", split.batch, together, whole, asynchronous=split.asynchronous
        )
    if split.zero == 1:
        return [
            b.communicate(
                "slice", split.batch, [(g, whole[i])], [piece[i]], split=split.zero_dims[i]
            )[0]
            for i, g in enumerate(grads)
        ]
    if split.zero in (2, 3):
        if split.zero_dims[0] == split.zero_dims[1]:
            return b.communicate(
                "reduce_scatter",
                split.batch,
                together,
                piece,
                split=split.zero_dims[0],
                asynchronous=split.asynchronous,
            )
        return [
            b.communicate(
                "reduce_scatter", split.batch, [both], [piece[i]], split=split.zero_dims[i]
            )[0]
            for i, both in enumerate(together)
        ]
    return grads


def _layout(num_axes: int, splits: dict[int, int]) -> Layout:
    return tuple(splits.get(axis, R) for axis in range(num_axes))


def all_splits(num_ranks: int) -> dict[str, Split]:
    """Every way of splitting that is tested on this many ranks."""
    line = Mesh(("dp",), (num_ranks,))
    out = {
        "data": Split(line, batch=(0,)),
        "data async": Split(line, batch=(0,), asynchronous=True),
        "tensor": Split(line, hidden=(0,)),
        **{f"zero {z}": Split(line, batch=(0,), zero=z) for z in (1, 2, 3)},
        **{
            f"zero {z} by columns, async": Split(
                line, batch=(0,), zero=z, zero_dims=(1, 1), asynchronous=True
            )
            for z in (1, 2, 3)
        },
        "zero 3 by column and row": Split(line, batch=(0,), zero=3, zero_dims=(1, 0)),
    }
    if num_ranks == 4:
        square = Mesh(("dp", "tp"), (2, 2))
        out["data x tensor"] = Split(square, batch=(0,), hidden=(1,))
        out["tensor x data"] = Split(square, batch=(1,), hidden=(0,))
        out["data x data"] = Split(square, batch=(0, 1))
        out["zero 2 over two axes"] = Split(square, batch=(0, 1), zero=2)
        out["zero 3 beside tensor"] = Split(
            square, batch=(0,), hidden=(1,), zero=3, zero_dims=(1, 0)
        )
    return out
