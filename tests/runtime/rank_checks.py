"""What the tests run on every rank; each returns a dict of what is wrong, empty where all is
well."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import platform
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from hand_programs import all_splits, make_workload, perceptron
from torch import Tensor

from planner import kernels
from planner.graph.layout import Mesh, piece_sizes, start_of
from planner.kernels import shared
from planner.predict.transfers import shared_bytes
from planner.program.actions import STEP
from planner.program.program import Communicate, Program, Ref
from runtime.collectives import Collective, compile_collective
from runtime.worker import RunRequest, join, train

# On either side of the size at which gloo changes its algorithm.
SIZES = {"small": (4, 8, 4), "large": (32, 32, 256)}
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "slice")


def failing(payload: Any, emit: Any) -> None:
    with join(payload) as place:
        if place.rank == 1:
            raise RuntimeError("the disk is full\nand so is the log")
        dist.barrier()


def talking(payload: Any, emit: Any) -> None:
    """Rank 1 is killed while rank 0 is in the middle of an event that no pipe holds."""
    if os.environ["RANK"] == "0":
        emit({"step": 1})
        emit({"big": "x" * 10_000_000})
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)


def killed(payload: Any, emit: Any) -> None:
    with join(2) as place:
        if place.rank == 1:
            os.kill(os.getpid(), payload or signal.SIGKILL)
        dist.barrier()


def broken_program(payload: Any, emit: Any) -> None:
    program = perceptron(all_splits(2)["data"])
    first = dataclasses.replace(program.instructions[1], args=(Ref(0), Ref(1)), path="first")
    wrong = dataclasses.replace(
        program, bodies={STEP: (program.instructions[0], first, *program.instructions[2:])}
    )
    with join(2) as place:
        train(wrong, make_workload, RunRequest(plan=""), place, emit)


def sleeping(payload: Any, emit: Any) -> None:
    emit({"pid": os.getpid()})
    time.sleep(120)


def echo(payload: Any, emit: Any) -> tuple[int, Any, int]:
    with join(2) as place:
        emit({"rank": place.rank})
        dist.barrier()  # a rank that left while the other was still joining would be missed
        return place.rank, payload, hash("the same in every process")


def run_programs(num_ranks: int, emit: Any) -> dict[str, Any]:
    out = {}
    with join(num_ranks) as place:
        for name, split in all_splits(num_ranks).items():
            request = RunRequest(plan="", num_steps=3, verify=True, record=True)
            out[name] = train(perceptron(split), make_workload, request, place, emit)
    return out


def check_collectives(num_ranks: int, emit: Any) -> dict[str, Tensor]:
    """Every kind at every sub-dim, one value and two, waited for at once and later, through
    shared memory and gloo; the differences to plain slicing."""
    with join(num_ranks) as place:
        cases = [
            *itertools.product(KINDS, range(3), (1, 2), (False, True), ("sum", "max"), ("small",))
        ]
        cases += itertools.product(KINDS, range(3), (1,), (False,), ("sum", "max"), ("large",))
        ways = itertools.product(cases, (True, False))
        return {
            f"{case} {shared}": _collective_error(num_ranks, place.rank, *case, shared)
            for case, shared in ways
        }


def _collective_error(
    num_ranks: int,
    rank: int,
    kind: str,
    dim: int,
    num_values: int,
    asynchronous: bool,
    reduce: str,
    scale: str,
    shared: bool,
) -> float:
    other = (dim + 1) % 3
    sizes = [tuple(s * (i + 1) for s in SIZES[scale]) for i in range(num_values)]
    wholes, values, wanted = [], [], []
    for size in sizes:
        parts = (
            torch.arange(num_ranks * math.prod(size), dtype=torch.float64)
            .reshape(num_ranks, *size)
            .sin()
        )
        summed = parts.amax(0) if reduce == "max" else parts.sum(0)
        full = parts[0]
        wholes.append(full)
        chunk = full.chunk(num_ranks, dim)[rank]
        values.append(
            {"all_gather": chunk, "all_to_all": chunk, "slice": full}.get(kind, parts[rank])
        )
        wanted.append(
            {
                "all_reduce": summed,
                "all_gather": full,
                "reduce_scatter": summed.chunk(num_ranks, dim)[rank],
                "all_to_all": full.chunk(num_ranks, other)[rank],
                "slice": chunk,
            }[kind]
        )
    expanded = tuple(tuple(v.shape) for v in values)
    instruction = Communicate(
        id="x",
        kind=kind,
        axes=(0,),
        sources=tuple(range(num_values)),
        results=tuple(range(9, 9 + num_values)),
        expanded=expanded,
        shapes=tuple((w.shape[0] * w.shape[1], w.shape[2]) for w in wanted),
        dtypes=("float64",) * num_values,
        gather=dim if kind in ("all_gather", "all_to_all") else None,
        split=other if kind == "all_to_all" else dim,
        reduce=reduce,
        phase="forward",
        asynchronous=asynchronous,
    )
    collective = compile_collective(instruction, dist.group.WORLD, num_ranks, rank, shared=shared)
    assert (collective.shared is not None) == (shared and kind != "slice" and _shares_memory())
    _check_shared_bytes(collective, instruction, num_ranks)
    before = [v.clone() for v in values]
    pending = collective.start(*(v.reshape(-1, v.shape[2]) for v in values))
    results = collective.finish(pending)
    error = max(
        (r - w.reshape(r.shape)).abs().max().item() for r, w in zip(results, wanted, strict=True)
    )
    shapes_right = all(
        tuple(r.shape) == s for r, s in zip(results, instruction.shapes, strict=True)
    )
    untouched = all(torch.equal(a, b) for a, b in zip(before, values, strict=True))
    return error if shapes_right and untouched else math.inf


def check_uneven_collectives(num_ranks: int, emit: Any) -> dict[str, float]:
    """As `check_collectives`, of pieces that differ in size, of one value or of an uneven and an
    even one in one buffer."""
    with join(num_ranks) as place:
        cases = itertools.product(
            KINDS[1:], range(3), (1, 2), (False, True), ("sum", "max"), ("odd", "large odd")
        )
        ways = itertools.product(cases, (True, False))
        return {
            f"{case} {shared}": _uneven_error(num_ranks, place.rank, *case, shared)
            for case, shared in ways
        }


def _uneven_error(
    num_ranks: int,
    rank: int,
    kind: str,
    dim: int,
    num_values: int,
    asynchronous: bool,
    reduce: str,
    scale: str,
    shared: bool,
) -> float:
    other = (dim + 1) % 3
    gathers, splits = kind in ("all_gather", "all_to_all"), kind != "all_gather"
    at = other if kind == "all_to_all" else dim
    odd = {"odd": (5, 7, 6), "large odd": (33, 31, 130)}[scale]
    sizes = [odd, SIZES["small"]][:num_values]
    values, wanted, gather_pieces, split_pieces = [], [], [], []
    for size in sizes:
        parts = (
            torch.arange(num_ranks * math.prod(size), dtype=torch.float64)
            .reshape(num_ranks, *size)
            .sin()
        )
        full, summed = parts[0], parts.amax(0) if reduce == "max" else parts.sum(0)
        values.append(
            full.tensor_split(num_ranks, dim)[rank]
            if gathers
            else full
            if kind == "slice"
            else parts[rank]
        )
        result = summed if kind == "reduce_scatter" else full
        wanted.append(result.tensor_split(num_ranks, at)[rank] if splits else result)
        gather_pieces.append(_unlike(size[dim], num_ranks))
        split_pieces.append(_unlike(size[at], num_ranks))
    instruction = Communicate(
        id="x",
        kind=kind,
        axes=(0,),
        sources=tuple(range(num_values)),
        results=tuple(range(9, 9 + num_values)),
        expanded=tuple(tuple(v.shape) for v in values),
        shapes=tuple(tuple(w.shape) for w in wanted),
        dtypes=("float64",) * num_values,
        gather=dim if gathers else None,
        split=at if splits else None,
        gather_pieces=tuple(gather_pieces) if gathers else (),
        split_pieces=tuple(split_pieces) if splits else (),
        reduce=reduce,
        phase="forward",
        asynchronous=asynchronous,
    )
    collective = compile_collective(instruction, dist.group.WORLD, num_ranks, rank, shared=shared)
    _check_shared_bytes(collective, instruction, num_ranks)
    before = [v.clone() for v in values]
    results = collective.finish(collective.start(*values))
    same = all(torch.equal(a, b) for a, b in zip(before, values, strict=True))
    shapes = all(r.shape == w.shape for r, w in zip(results, wanted, strict=True))
    return (
        max((r - w).abs().max().item() for r, w in zip(results, wanted, strict=True))
        if same and shapes
        else math.inf
    )


def _check_shared_bytes(collective: Collective, instruction: Communicate, num_ranks: int) -> None:
    """The region is as large as predicted."""
    if collective.shared is not None:
        program = Program(
            mesh=Mesh(("dp",), (num_ranks,)),
            bodies={STEP: (instruction,)},
            parameters=(),
            inputs=(),
            loss=0,
            value_bytes={},
            initial_bytes={},
        )
        assert collective.shared.nbytes // num_ranks == shared_bytes(program), instruction


def _shares_memory() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _unlike(size: int, num_ranks: int) -> tuple[int, ...]:
    """The pieces, or none where all are alike, as a program tells them."""
    pieces = piece_sizes(size, (num_ranks,))
    return pieces if len(set(pieces)) > 1 else ()


def check_kernels(num_ranks: int, emit: Any) -> dict[str, float]:
    """The kernels with their work split over the group against the unsplit ones, through shared
    memory and gloo: the largest differences."""
    with join(num_ranks) as place:
        group = dist.group.WORLD
        assert group is not None
        errors = _kernel_errors(num_ranks, place.rank, group)
        assert (shared._MEMORIES[group] is not None) == _shares_memory()
        shared._MEMORIES[group] = None
        return {
            **errors,
            **{f"gloo {n}": e for n, e in _kernel_errors(num_ranks, place.rank, group).items()},
        }


def _kernel_errors(num_ranks: int, rank: int, group: dist.ProcessGroup) -> dict[str, float]:
    torch.manual_seed(0)
    return {
        **_lstm_errors(num_ranks, rank, group, hidden=12),
        **{f"uneven {n}": e for n, e in _lstm_errors(num_ranks, rank, group, hidden=7).items()},
        **_cross_entropy_errors(num_ranks, rank, group, classes=12),
        **{
            f"uneven {n}": e
            for n, e in _cross_entropy_errors(num_ranks, rank, group, classes=11).items()
        },
        **_batch_norm_errors(num_ranks, rank, group, batch=8),
        **{
            f"uneven {n}": e for n, e in _batch_norm_errors(num_ranks, rank, group, batch=7).items()
        },
        **_rms_norm_errors(num_ranks, rank, group, width=8),
        **{f"uneven {n}": e for n, e in _rms_norm_errors(num_ranks, rank, group, width=7).items()},
    }


def _rms_norm_errors(
    num_ranks: int, rank: int, group: dist.ProcessGroup, width: int
) -> dict[str, float]:
    """The normalised values split over the ranks."""
    (x, grad), weight = torch.randn(2, 3, 4, width).double(), torch.randn(width).double()
    wanted = kernels.rms_norm(x, weight, 1, width, 1e-5)
    wanted_grads = kernels.rms_norm_backward(grad, x, weight, wanted[1], 1, width)
    own, own_grad, own_weight = (t.tensor_split(num_ranks, -1)[rank] for t in (x, grad, weight))
    ours = kernels.rms_norm(own, own_weight, 1, width, 1e-5, group=group)
    grads = kernels.rms_norm_backward(own_grad, own, own_weight, ours[1], 1, width, group=group)
    found = zip(("y", "rstd", "gx", "gw"), (*ours, *grads), (*wanted, *wanted_grads), strict=True)
    return {
        f"rms_norm {n}": (
            (a - (b if n == "rstd" else b.tensor_split(num_ranks, -1)[rank])).abs().max()
            / b.abs().max()
        ).item()
        for n, a, b in found
    }


def _batch_norm_errors(
    num_ranks: int, rank: int, group: dist.ProcessGroup, batch: int
) -> dict[str, float]:
    x, grad = 3 + torch.randn(2, batch, 4, 3).double()
    weight, bias, mean, var = torch.randn(4, 4).double()
    wanted = kernels.batch_norm(x, weight, bias, mean, var, 0.1, 1e-5)
    wanted_grads = kernels.batch_norm_backward(grad, x, weight, wanted[1], wanted[2], 1e-5)
    own, own_grad = x.tensor_split(num_ranks)[rank], grad.tensor_split(num_ranks)[rank]
    ours = kernels.batch_norm(own, weight, bias, mean, var, 0.1, 1e-5, group=group)
    grads = kernels.batch_norm_backward(own_grad, own, weight, ours[1], ours[2], 1e-5, group=group)
    names = ["y", "mean", "rstd", "running mean", "running var", "gx", "gw", "gb"]
    found = zip(names, (*ours, *grads), (*wanted, *wanted_grads), strict=True)
    return {
        f"batch_norm {n}": (
            (a - (b.tensor_split(num_ranks)[rank] if n in ("y", "gx") else b)).abs().max()
            / b.abs().max()
        ).item()
        for n, a, b in found
    }


def _lstm_errors(
    num_ranks: int, rank: int, group: dist.ProcessGroup, hidden: int
) -> dict[str, float]:
    steps, batch, inputs, pieces = 5, 3, 6, _unlike(hidden, num_ranks)
    x, grad_y = (
        torch.randn(steps, batch, inputs).double(),
        torch.randn(steps, batch, hidden).double(),
    )
    h0, c0, gh, gc = torch.randn(4, batch, hidden).double()
    weights = [
        torch.randn(s).double()
        for s in ((4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))
    ]

    def rows(t: Tensor) -> Tensor:
        return (
            t.view(4, hidden, *t.shape[1:])
            .tensor_split(num_ranks, 1)[rank]
            .reshape(-1, *t.shape[1:])
        )

    def units(t: Tensor) -> Tensor:
        return t.tensor_split(num_ranks, -1)[rank].contiguous()

    def run(
        group: Any, x: Tensor, gy: Tensor, states: list[Tensor], weights: list[Tensor]
    ) -> list[Tensor]:
        h0, c0, gh, gc = states
        split = {} if group is None else {"group": group, "units": pieces}
        y, h, c, reserve = kernels.lstm_forward(x, h0, c0, *weights, **split)
        grads = kernels.lstm_backward(gy, gh, gc, x, h0, c0, *weights, y, c, reserve, **split)
        return [y, h, c, *grads]

    y, h, c, gx, gh0, gc0, gw_ih, gw_hh, gb = run(None, x, grad_y, [h0, c0, gh, gc], weights)
    wanted = [
        units(y),
        units(h),
        units(c),
        gx,
        units(gh0),
        units(gc0),
        rows(gw_ih),
        rows(gw_hh),
        rows(gb),
    ]
    ours = run(
        group, x, units(grad_y), [units(t) for t in (h0, c0, gh, gc)], [rows(w) for w in weights]
    )
    dist.all_reduce(ours[3])
    names = ["y", "h", "c", "gx", "gh0", "gc0", "gw_ih", "gw_hh", "gb"]
    return {
        f"lstm {n}": (a - b).abs().max().item() for n, a, b in zip(names, ours, wanted, strict=True)
    }


def _cross_entropy_errors(
    num_ranks: int, rank: int, group: dist.ProcessGroup, classes: int
) -> dict[str, float]:
    rows = 10
    logits, target = 5 * torch.randn(rows, classes).double(), torch.randint(0, classes, (rows,))
    target[3] = -100
    grad = torch.tensor(0.7).double()
    wanted = kernels.cross_entropy(logits, target, -100)
    wanted_grad = kernels.cross_entropy_backward(grad, logits, target, wanted[1], -100)
    mine, offset = logits.tensor_split(num_ranks, 1)[rank], start_of(classes, num_ranks, rank)
    ours = kernels.cross_entropy(mine, target, -100, group=group, offset=offset, classes=classes)
    ours_grad = kernels.cross_entropy_backward(grad, mine, target, ours[1], -100, offset=offset)
    pairs = [
        *zip(ours, wanted, strict=True),
        (ours_grad, wanted_grad.tensor_split(num_ranks, 1)[rank]),
    ]
    names = ["loss", "lse", "gradient"]
    return {
        f"cross_entropy {n}": (a - b).abs().max().item()
        for n, (a, b) in zip(names, pairs, strict=True)
    }
