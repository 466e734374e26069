"""Which pipelines are worth planning: every number of places, mesh of a place and number of
microbatches with an estimate, the fastest first, and bounds.

Costs of units -> estimates. What is estimated is compute as in `UnitCosts`, split evenly over the
devices of a place; two all-reduces of what crosses a block in forward and two in backward for a
tensor axis; the sum of gradients over a data axis, of which half hides; 1F1B in time. It only orders
and prunes: candidates are solved, lowered and simulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes, optimizer_state_bytes
from cost_models.point_to_point import send_time
from planner.graph.layout import Mesh
from planner.search.pipeline_spec import Spec
from planner.search.stage_costs import UnitCosts, balanced, cuts
from planner.strategy.costing import Costing
from planner.workload.precision import Formats

__all__ = ["Estimate", "compute_bound", "estimates"]

#: The share of the sum of gradients that hides behind the last backward.
_HIDDEN = 0.5
#: Stages are tried in numbers up to this, if there are as many units.
_MOST_PLACES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A spec, its estimated seconds, and whether it fits only if ops run again."""

    spec: Spec
    seconds: float
    recomputes: bool = False


def compute_bound(costs: UnitCosts, num_devices: int) -> float:
    """Seconds of all kernels of a step, each on the whole batch on one device, over the number of
    devices: no split of the batch makes a kernel do more than it does whole."""
    return sum(costs.both(1)) / num_devices


def estimates(
    costs: UnitCosts,
    cluster: Cluster,
    numbers: Sequence[int],
    *,
    optimizer: str,
    formats: Formats,
    capacity: float,
    places: Sequence[int] = (),
) -> list[Estimate]:
    """All specs that divide, without those that fit in no way, the fastest first. `numbers` are
    those of microbatches that the batch can be cut into, `places` those of stages (default: all)."""
    found = []
    for num in places or _divisors(cluster.num_devices, min(_MOST_PLACES, len(costs.model.units))):
        for data, tensor in _meshes(cluster, cluster.num_devices // num):
            for number in numbers:
                if number * data <= max(numbers) * data and number > 1:
                    one = _estimate(
                        costs, cluster, num, data, tensor, number, optimizer, formats, capacity
                    )
                    if one is not None:
                        found.append(one)
    return sorted(found, key=lambda one: one.seconds)


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(2, min(number, most) + 1) if number % d == 0]


def _meshes(cluster: Cluster, num: int) -> Iterator[tuple[int, int]]:
    """(data, tensor) sizes of a place of `num` devices; the tensor axis stays inside a node."""
    for tensor in range(1, min(num, cluster.node_width) + 1):
        if num % tensor == 0 and cluster.node_width % tensor == 0:
            yield num // tensor, tensor


def _estimate(
    costs: UnitCosts,
    cluster: Cluster,
    places: int,
    data: int,
    tensor: int,
    microbatches: int,
    optimizer: str,
    formats: Formats,
    capacity: float,
) -> Estimate | None:
    batch = costs.model.graph.values[costs.model.graph.inputs[0]].shape[0]
    parts = microbatches * data
    if batch % parts:
        return None
    forward, backward = costs.seconds(parts)
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    units = costs.model.units
    begins = balanced(both, places, cuts(units, places)) if len(units) >= places else ()
    if not begins:
        return None
    ends = (*begins[1:], len(units))
    costing = Costing(
        cluster.slice(0, data * tensor), (data, tensor), optimizer, 0.0, formats=formats
    )
    runs = [slice(a, b) for a, b in zip(begins, ends, strict=True)]
    messages = _tensor_seconds(costs, costing, parts, tensor)
    crossing = [units[begin].out_bytes / (parts * tensor) for begin in begins]
    sent = _sent_seconds(cluster, places, data * tensor, max(crossing))
    times = [(sum(both[run]) / tensor + sum(messages[run])) + sent for run in runs]
    again = [(sum(forward[run]) / tensor + sum(messages[run]) / 3) for run in runs]
    held = [sum(costs.parameters[run]) / tensor for run in runs]
    kept = [sum(costs.kept[run]) / (parts * tensor) for run in runs]
    recomputes = False
    for stage in range(places):
        state = _state_bytes(held[stage], optimizer, formats, data)
        in_flight = min(microbatches, places - stage)
        if state > capacity:
            return None
        if state + kept[stage] * in_flight > capacity:
            recomputes = True
            if state + crossing[stage] * in_flight > capacity:
                return None
    if recomputes:
        times = [t + a for t, a in zip(times, again, strict=True)]
    slowest = max(times)
    sync = 0.0
    if data > 1:
        sync = (1 - _HIDDEN) * costing.messages.communication("all_reduce", (0,), max(held))
    seconds = sum(times) + (microbatches - 1) * slowest + sync
    mesh = (
        Mesh(("a", "b"), (data, tensor))
        if 1 not in (data, tensor)
        else Mesh(("a",), (data * tensor,))
    )
    return Estimate(
        spec=Spec(places=places, mesh=mesh, microbatches=microbatches),
        seconds=seconds,
        recomputes=recomputes,
    )


def _sent_seconds(cluster: Cluster, places: int, num: int, nbytes: float) -> float:
    """Seconds in which what a stage sends to the next one, and back, arrives: from one device."""
    if places == 1:
        return 0.0
    return 2 * send_time(cluster, ((0, min(num, cluster.num_devices - 1)),), nbytes)


def _tensor_seconds(costs: UnitCosts, costing: Costing, parts: int, tensor: int) -> list[float]:
    """Seconds of the messages of a tensor axis, by unit: four all-reduces of what crosses it for a
    block, shared out over the block's units."""
    units = costs.model.units
    if tensor == 1:
        return [0.0] * len(units)
    counts: dict[str, int] = {}
    for unit in units:
        counts[unit.block] = counts.get(unit.block, 0) + 1
    return [
        4
        / counts[unit.block]
        * costing.messages.communication("all_reduce", (1,), unit.out_bytes / parts)
        if unit.block
        else 0.0
        for unit in units
    ]


def _state_bytes(parameters: float, optimizer: str, formats: Formats, data: int) -> float:
    """Bytes of parameters, gradients and state, the state in pieces over the data axis."""
    numel = int(parameters / 4)
    master = dtype_bytes(formats.master) * numel if formats.master else 0
    state = optimizer_state_bytes(optimizer, numel=numel, dtype=formats.updated("float32"))
    return (parameters + master + state) / data + parameters * math.ceil(data > 1)
