"""Step time and memory of the measured plans of the Sailor artefact, predicted from its layer
profiles by our model of a pipeline.

python benchmarks/sailor_measured.py [--plans FILE.csv] [--out FILE.json]

What the profiles do not have is added with a reason:

* Messages go in the order in which DeepSpeed, which trained these plans, posts them: the output of
  a forward leaves after the gradient for the next backward has come, if that backward is next. With
  tensor parallelism a message is sent in parts, one a rank, and gathered where it arrives.
* The update of the profiling run is of an embedding, two layers and a head; it reads and writes 28
  bytes a parameter (Adam in float32), so it also gives the rate of memory. By that rate a stage is
  updated, gradients of the second and later microbatches are added up, and the gradient of the
  embedding, which the profile's hooks miss, is made (12 bytes a parameter each).
* Gradients are reduced after the last backward of a stage, in a ring over nodes, all ranks of a
  node at once, once they lie in flat buffers (`FLATTENING`).
* Memory is 16 bytes a parameter (weights, gradients, Adam), 4 for the flat copy that is reduced, what
  forward keeps of the microbatches in flight, the same once more for the largest layer (its
  gradients); and what no profile has: see `RESERVED` and `CACHED`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from sailor_profiles import DATA, FLOAT_BYTES, End, Network, Profiles, rows

from planner.schedules.named import one_f_one_b

__all__ = ["Body", "Predicted", "predicted", "stage_ends"]

#: Bytes that Adam in float32 reads and writes a parameter; bytes to add up or to make a gradient.
UPDATE_TRAFFIC, ADD_TRAFFIC = 28, 12
#: Bytes held a parameter: weights, gradients, two states; the flat copy of the gradients.
STATE_BYTES, COPY_BYTES = 16, 4
#: Seconds of a reduction beside the ring: gradients are copied tensor by tensor into flat buffers,
#: which are allocated, and back. The median of the measured reductions (`grad_reduce_s`, which is no
#: part of what is predicted here) on GH200 less the ring, 2026-11-28.
FLATTENING = 0.033
#: Of what forward keeps, the share by which the allocator's cache is larger: blocks freed in one
#: size are asked for in another. The median over the measured plans on GH200, 2026-11-28.
CACHED = 0.08
#: Bytes of context, kernels, libraries and communicators, by whether the GPUs of a node are joined
#: by NVLink (more channels, so larger communicators). Medians over the measured plans, 2026-11-28.
RESERVED = {True: 4.3e9, False: 3.0e9}
NVLINK = ("GH-96", "A100-40", "A100-80", "V100-16")


class Replica(NamedTuple):
    """A tensor-parallel group: its kind of GPU, how many a node has in use, its size."""

    gpu: str
    per_node: int
    tp: int

    @property
    def end(self) -> End:
        """All GPUs of the group as a side of a message."""
        return End(self.gpu, min(self.tp, self.per_node))


class Body(NamedTuple):
    """Seconds of a stage for one microbatch: forward and backward; on the wire, the output to the
    stage after and the gradient to the stage before; gathering what came from either side."""

    forward: float
    backward: float
    sends: float = 0.0
    returns: float = 0.0
    gathers_output: float = 0.0
    gathers_gradient: float = 0.0


@dataclass(frozen=True)
class Predicted:
    """Seconds of a step, and bytes at the peak of the fullest GPU."""

    seconds: float
    nbytes: float


def stage_ends(bodies: Sequence[Body], microbatches: int) -> list[float]:
    """When each stage has run its last action, under 1F1B with messages in DeepSpeed's order. A
    sender does not wait; messages from stage to stage travel one after another."""
    orders = one_f_one_b(len(bodies), microbatches).orders
    free, at = [0.0] * len(bodies), [0] * len(bodies)
    arrived: dict[tuple[int, int, int], float] = {}
    wire: dict[tuple[int, int], float] = {}
    waiting: dict[int, int] = {}

    def send(source: int, target: int, microbatch: int, seconds: float) -> None:
        wire[source, target] = max(free[source], wire.get((source, target), 0.0)) + seconds
        arrived[source, target, microbatch] = wire[source, target]

    def run(stage: int) -> bool:
        """Runs the next action of the stage if what it reads is on its way."""
        action, body = orders[stage][at[stage]], bodies[stage]
        forward = action.body == "F"
        source = stage - 1 if forward else stage + 1
        if 0 <= source < len(bodies):
            if (source, stage, action.microbatch) not in arrived:
                return False
            gather = body.gathers_output if forward else body.gathers_gradient
            free[stage] = max(free[stage], arrived[source, stage, action.microbatch]) + gather
        if stage in waiting:
            send(stage, stage + 1, waiting.pop(stage), body.sends)
        free[stage] += body.forward if forward else body.backward
        at[stage] += 1
        if not forward and stage > 0:
            send(stage, stage - 1, action.microbatch, body.returns)
        if forward and stage + 1 < len(bodies):
            if action.microbatch < len(bodies) - 1 - stage:
                send(stage, stage + 1, action.microbatch, body.sends)
            else:
                waiting[stage] = action.microbatch
        return True

    while any(index < len(order) for index, order in zip(at, orders, strict=True)):
        moved = False
        for stage, order in enumerate(orders):
            while at[stage] < len(order) and run(stage):
                moved = True
        assert moved, "the schedule deadlocks"
    return free


class Model:
    """What the facts say of one model on the measured machines."""

    def __init__(self, name: str) -> None:
        self.profiles = Profiles.of(name)
        gpus = sorted({gpu for gpu, _, _ in self.profiles.times})
        self.network = Network.read(gpus)
        self.inside = Network(
            {
                (End(row["gpu"], int(row["count"])),) * 2: _fit(row)
                for row in rows("network_same_gpu.csv")
                if row["where"] == "intra"
            }
        )

    def rate(self, replica: Replica, microbatch: int) -> float:
        """Bytes a second of a GPU's memory, from the update of the profiling run."""
        held = self.profiles.held[replica.tp]
        parameters = sum(held[layer].parameters for layer in (0, 1, 2, -1))
        update = self.profiles.times[replica.gpu, microbatch, replica.tp][0].update
        return UPDATE_TRAFFIC * parameters / update

    def parameters(self, tp: int, layers: range) -> int:
        """Parameters of some layers on one rank."""
        return sum(self.profiles.held[tp][layer].parameters for layer in layers)

    def body(
        self, stages: Sequence[Replica], index: int, layers: range, microbatch: int, many: bool
    ) -> Body:
        """The seconds of a stage of one pipeline: `stages` are its groups, first to last."""
        own = stages[index]
        times = self.profiles.times[own.gpu, microbatch, own.tp]
        added = self.parameters(own.tp, layers) if many else 0
        added += self.parameters(own.tp, range(1)) if 0 in layers else 0
        nbytes = FLOAT_BYTES * microbatch * self.profiles.held[own.tp][1].output
        last = index + 1 == len(stages)
        return Body(
            sum(times[layer].forward for layer in layers),
            sum(times[layer].backward for layer in layers)
            + ADD_TRAFFIC * added / self.rate(own, microbatch),
            0.0 if last else self.sent(nbytes, own, stages[index + 1]),
            self.sent(nbytes, own, stages[index - 1]) if index else 0.0,
            self.gathered(nbytes, own) if index else 0.0,
            0.0 if last else self.gathered(nbytes, own),
        )

    def sent(self, nbytes: float, source: Replica, target: Replica) -> float:
        """Seconds of a message in parts: the groups of a node send at once."""
        groups = max(1, source.per_node // source.tp)
        if groups == 1:
            return self._over(nbytes, source.end, target.end)
        ends = [End(replica.gpu, replica.per_node) for replica in (source, target)]
        return self._over(groups * nbytes, *ends)

    def _over(self, nbytes: float, source: End, target: End) -> float:
        """Seconds over a link, by the fit of the other direction if it has none of its own."""
        known = (source, target) in self.network.fits
        ends = (source, target) if known else (target, source)
        return self.network.seconds(nbytes, *ends)

    def gathered(self, nbytes: float, group: Replica) -> float:
        """Seconds until every rank of a group has all parts."""
        if group.tp == 1:
            return 0.0
        return self.inside.seconds((group.tp - 1) * nbytes, *(group.end,) * 2)

    def reduced(self, replicas: Sequence[Replica], layers: range) -> float:
        """Seconds in which the replicas of a stage add up their gradients."""
        count, tp = len(replicas), min(replica.tp for replica in replicas)
        if count == 1:
            return 0.0
        part = FLOAT_BYTES * self.parameters(tp, layers) * tp / count
        around = [*itertools.pairwise([*replicas, replicas[0]])]
        ring = 2 * (count - 1) * max(self._over(part, a.end, b.end) for a, b in around)
        return ring + FLATTENING


def _fit(row: dict[str, str]) -> tuple[float, float, float]:
    return float(row["c2"]), float(row["c1"]), float(row["c0"])


def predicted(model: Model, plan: dict[str, str]) -> Predicted:
    """The step of a plan in the words of measured_plans.csv."""
    layers = [_layers(text) for text in plan["layers_per_stage"].split(";")]
    stages = [_replicas(text) for text in plan["gpus_per_stage"].split(";")]
    microbatch, microbatches = int(plan["microbatch"]), int(plan["n_microbatches"])
    ends = []
    for pipeline in zip(*stages, strict=True):
        bodies = [
            model.body(pipeline, index, own, microbatch, microbatches > 1)
            for index, own in enumerate(layers)
        ]
        ends.append(stage_ends(bodies, microbatches))
    seconds = max(
        max(end) + model.reduced(replicas, own) + _update(model, replicas, own, microbatch)
        for end, replicas, own in zip(zip(*ends, strict=True), stages, layers, strict=True)
    )
    nbytes = max(
        _bytes(model, replica, own, microbatch, min(microbatches, len(stages) - index))
        for index, (replicas, own) in enumerate(zip(stages, layers, strict=True))
        for replica in replicas
    )
    return Predicted(seconds, nbytes)


def _update(model: Model, replicas: Sequence[Replica], layers: range, microbatch: int) -> float:
    return max(
        UPDATE_TRAFFIC * model.parameters(replica.tp, layers) / model.rate(replica, microbatch)
        for replica in replicas
    )


def _bytes(model: Model, replica: Replica, layers: range, microbatch: int, in_flight: int) -> float:
    held = model.profiles.held[replica.tp]
    kept = [FLOAT_BYTES * microbatch * held[layer].kept for layer in layers]
    return (
        (STATE_BYTES + COPY_BYTES) * model.parameters(replica.tp, layers)
        + (1 + CACHED) * in_flight * sum(kept)
        + max(kept)
        + RESERVED[replica.gpu in NVLINK]
    )


def _layers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _replicas(text: str) -> tuple[Replica, ...]:
    replicas: list[Replica] = []
    for part in text.split("|"):
        found = re.fullmatch(r"(\d+)\*(.+)x(\d+):tp(\d+)", part.strip())
        assert found is not None, part
        count, gpu, per_node, tp = found.groups()
        replicas += [Replica(gpu, int(per_node), int(tp))] * int(count)
    return tuple(replicas)


def compared(plans: Path) -> list[dict[str, Any]]:
    """Each plan: predicted over measured, less 1, of its seconds and bytes."""
    models: dict[str, Model] = {}
    table = []
    with plans.open(encoding="utf-8", newline="") as lines:
        for plan in csv.DictReader(lines):
            name = plan["model"]
            ours = predicted(models.setdefault(name, models.get(name) or Model(name)), plan)
            table.append(
                {
                    "plan": plan["name"],
                    "seconds": ours.seconds,
                    "time_error": ours.seconds / float(plan["step_time_s"]) - 1,
                    "bytes": ours.nbytes,
                    "memory_error": ours.nbytes / float(plan["peak_mem_bytes_per_gpu"]) - 1,
                    "suspect": plan["suspect"],
                }
            )
    return table


def summary(table: Sequence[dict[str, Any]], error: str) -> str:
    """Mean and largest of an error over the rows that are not suspect."""
    errors = [row[error] for row in table if not row["suspect"]]
    mean = sum(map(abs, errors)) / len(errors)
    return f"{len(errors)} plans, mean {100 * mean:.1f} %, {100 * min(errors):+.1f} .. {100 * max(errors):+.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", type=Path, default=DATA / "measured_plans.csv")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    table = compared(asked.plans)
    for row in table:
        print(
            f"{row['plan']:42s} {row['seconds']:9.4f} s {100 * row['time_error']:+6.1f} % "
            f"{row['bytes'] / 1e9:7.2f} GB {100 * row['memory_error']:+6.1f} %"
            f"{'  suspect' if row['suspect'] else ''}"
        )
    print("time:  ", summary(table, "time_error"))
    print("memory:", summary(table, "memory_error"))
    if asked.out is not None:
        from provenance import write_results

        write_results(asked, rows=table)


if __name__ == "__main__":
    main()
