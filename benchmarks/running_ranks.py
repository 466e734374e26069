"""One rank of `running.py` and `recomputing.py`: our plans and torch's own data parallelism, a step
of each in turn.

The baselines are what one would type: DDP with `gradient_as_bucket_view=True`, FSDP2 with
`fully_shard` for every block and the root, both with torch's fused Adam, on this rank's part of the
same batch. All runs share a process, so that what our launcher sets (one thread a rank, freed
memory kept) holds for the baselines too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from planner.graph.layout import Mesh
from planner.plans.plan_file import read_plan
from planner.plans.replay import program_of, workload_of
from planner.torch_private.allocator import allocations
from planner.workload.workload import Workload
from runtime.executor import Executor
from runtime.groups import make_groups
from runtime.parameters import build, cut
from runtime.worker import Place, join

__all__ = ["BASELINES", "Request", "measure", "peaks"]

#: Steps before the first that counts.
WARM_UP = 3

Step = Callable[[], Tensor | float]


@dataclass(frozen=True)
class Request:
    """Plan files by name, how many rounds of steps count, and the baselines beside them."""

    plans: Mapping[str, str]
    rounds: int
    baselines: tuple[str, ...]


def measure(request: Request, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """On one rank: by name, the seconds of every step, and the losses of the first step, which all
    ranks have the same.

    Every round has one step of each, beginning with another: what a step leaves behind falls on all
    alike.
    """
    first = read_plan(next(iter(request.plans.values())))
    with join(first.mesh.num_devices, "cpu") as place:
        runs: dict[str, Step] = {name: _ours(path, place) for name, path in request.plans.items()}
        runs |= {
            name: BASELINES[name](build(lambda: workload_of(first), 0), place)
            for name in request.baselines
        }
        losses = {
            name: _over_ranks(step(), place, name in BASELINES) for name, step in runs.items()
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        names = list(runs)
        for number in range(request.rounds + WARM_UP):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                dist.barrier()
                start = time.perf_counter()
                runs[name]()
                times[name].append(time.perf_counter() - start)
    return {"times": {name: taken[WARM_UP:] for name, taken in times.items()}, "losses": losses}


def _ours(path: str, place: Place) -> Step:
    plan = read_plan(path)
    program, workload = program_of(plan, rank=place.rank), build(lambda: workload_of(plan), 0)
    executor = Executor(
        program,
        workload,
        rank=place.rank,
        groups=make_groups(program, place.rank),
        device=place.device,
    )
    local = executor.local_batch(workload.batch)
    return lambda: executor.step_local(local)


def _ddp(workload: Workload, place: Place) -> Step:
    return _trained(
        DistributedDataParallel(workload.module, gradient_as_bucket_view=True), workload, place
    )


def _checkpointed(workload: Workload, place: Place) -> Step:
    """DDP with every block run again in backward."""
    for block in _blocks(workload.module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return _ddp(workload, place)


def _fsdp2(workload: Workload, place: Place) -> Step:
    mesh = init_device_mesh("cpu", (place.num_ranks,))
    for block in _blocks(workload.module):
        fully_shard(block, mesh=mesh)
    fully_shard(workload.module, mesh=mesh)
    return _trained(workload.module, workload, place)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost lists and sequences of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (item for item in child if any(True for _ in item.parameters()))
        else:
            yield from _blocks(child)


def _trained(module: nn.Module, workload: Workload, place: Place) -> Step:
    """A step of `module` with the fused optimizer, on this rank's part of the batch."""
    optimizer = torch.optim.Adam(module.parameters(), lr=workload.learning_rate, fused=True)
    mesh = Mesh(("dp",), (place.num_ranks,))
    local = tuple(
        cut(t, tuple((size,) for size in t.shape), (0,), mesh, place.rank) for t in workload.batch
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = workload.loss(module(*local[:-1]), local[-1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


#: torch's data parallelism, by name.
BASELINES: dict[str, Callable[[Workload, Place], Step]] = {
    "DDP": _ddp,
    "FSDP2": _fsdp2,
    "checkpoint": _checkpointed,
}


def peaks(request: tuple[str, str], emit: Callable[[dict[str, Any]], None]) -> int:
    """The most bytes that torch's allocator holds on this rank in the third step of a plan
    (`request[1]` is `ours`) or of a baseline on the plan's model, all that was made for it
    included."""
    path, name = request
    plan = read_plan(path)
    with join(plan.mesh.num_devices, "cpu") as place, allocations(place.device) as recorded:
        step = (
            _ours(path, place)
            if name == "ours"
            else BASELINES[name](build(lambda: workload_of(plan), 0), place)
        )
        step(), step()
        began = time.time_ns()
        step()
    return max(held for at, held in recorded.samples if at >= began) - recorded.before


def _over_ranks(loss: Tensor | float, place: Place, local: bool) -> float:
    """The loss of the whole batch; a baseline's is that of its rank's part."""
    total = torch.tensor(float(loss), dtype=torch.float64)
    if local:
        dist.all_reduce(total)
        total /= place.num_ranks
    return float(total)
