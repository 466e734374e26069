"""The host's seconds per op and per step in the executor, measured with programs of many tiny ops
of many kinds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from planner.graph.layout import Mesh
from planner.program.actions import STEP
from planner.program.program import (
    Compute,
    InputState,
    Instruction,
    ParameterState,
    Program,
    Ref,
    Update,
)
from planner.workload.workload import Workload
from runtime.executor import Executor

__all__ = ["overheads"]

#: The ops, in turn, mixed as in a step; each on the last result and the parameter, 8 x 8.
_OPS = (
    "aten.add.Tensor", "aten.t.default", "aten.mul.Tensor", "aten.tanh.default", "aten.sub.Tensor",
    "aten.t.default", "aten.relu.default", "aten.mm.default", "aten.maximum.default",
    "aten.sigmoid.default",
)  # fmt: skip
_UNARY = ("aten.t.default", "aten.tanh.default", "aten.relu.default", "aten.sigmoid.default")
_SHORT, _LONG = 32, 128


def overheads(device: torch.device, evict: Callable[[], None]) -> tuple[float, float]:
    """(seconds per op, seconds per step beside its ops): slope and intercept over programs of 32
    and 128 tiny ops, each run on evicted caches, as between two large ops of a step."""
    short, long = (_step_seconds(length, device, evict) for length in (_SHORT, _LONG))
    slope = max((long - short) / (_LONG - _SHORT), 1e-7)
    return slope, max(short - _SHORT * slope, 0.0)


def _step_seconds(num_ops: int, device: torch.device, evict: Callable[[], None]) -> float:
    module = nn.Linear(8, 8, bias=False)
    batch = torch.randn(8, 8)
    workload = Workload(
        name="overhead", module=module, batch=(batch,), loss=lambda a, b: a, optimizer="sgd"
    )
    executor = Executor(_program(num_ops), workload, device=device)
    local = executor.local_batch(workload.batch)
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    times = []
    for _ in range(22):
        evict()
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        executor.step_local(local)
        times.append(clock() - start)
    return statistics.median(times[2:])


def _program(num_ops: int) -> Program:
    """A program: a chain of ops on an input (value 0) and a parameter (1), its sum as the loss, and
    an update."""
    chain: list[Instruction] = []
    for i in range(num_ops):
        op = _OPS[i % len(_OPS)]
        before = i + 1 if i else 0
        chain.append(
            _op(
                f"op{i}",
                op,
                (Ref(before),) if op in _UNARY else (Ref(before), Ref(1)),
                i + 2,
                (before,) if i else (),
            )
        )
    last = num_ops + 1
    chain.append(_op("loss", "aten.sum.default", (Ref(last),), last + 1, ()))
    chain.append(Update(id="update", gradients=(last,), frees=(last,)))
    state = ParameterState(
        name="weight",
        value=1,
        shard=1,
        subshape=((8,), (8,)),
        stored=(-1,),
        updated=(-1,),
        dtype="float32",
    )
    return Program(
        mesh=Mesh(("dp",), (1,)),
        bodies={STEP: tuple(chain)},
        parameters=(state,),
        loss=last + 1,
        value_bytes={},
        initial_bytes={},
        inputs=(
            InputState(name="0", value=0, subshape=((8,), (8,)), layout=(-1,), dtype="float32"),
        ),
    )


def _op(name: str, op: str, args: tuple[Ref, ...], result: int, frees: tuple[int, ...]) -> Compute:
    return Compute(
        id=name,
        op=op,
        args=args,
        results=(result,),
        shapes=((8, 8),),
        dtypes=("float32",),
        kind="elementwise",
        phase="forward",
        frees=frees,
    )
