"""What a person types of a pipeline: `--pipeline`, `--schedule`, `--chunks`, `--mesh`,
`--microbatches`, or all of it in one pin with Megatron's names.

Words -> `PipelineOptions`, checked against the devices. `--pin pp=4,tp=2,dp=1,microbatch=2` counts
samples of a microbatch on a data-parallel rank, so the batch is needed to count microbatches.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cost_models.errors import BadValue, unknown_name
from planner.graph.layout import Mesh
from planner.schedules.csv_text import load_schedule
from planner.schedules.registry import NAMES
from planner.schedules.schedule import Schedule
from planner.strategy.pins import (
    PINS,
    RECOMPUTE,
    Pin,
    parse_mesh,
    parse_pin,
    recompute_pins,
    role_of,
)
from planner.strategy.rank_meshes import devices_of, example, rank_meshes

__all__ = ["PipelineOptions", "pipeline_options"]

#: The keys of a pin with Megatron's names, and what each takes.
_KEYS = {
    "pp": "pipeline ranks",
    "tp": "tensor-parallel devices",
    "dp": "data-parallel devices",
    "microbatch": "samples of a microbatch on a data-parallel rank",
    "chunks": "stages of a pipeline rank",
    "schedule": "a schedule",
    "recompute": "none, selective, full or chosen",
    "zero": "0, 1 or 3",
}
_ZERO = {"0": "ddp", "1": "zero1", "3": "zero3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """What was typed. `places`: pipeline ranks, 0 if nobody said. `mesh`: that of a stage, None for
    the best; or `meshes`, one for each pipeline rank, if they are unlike. `microbatches`: 0 for the
    best; or `samples` of a microbatch on each of `data` ranks. `schedule`: a name, or one read from
    a file in `given`. `chunks`: stages of a pipeline rank, 0 for as few as the schedule can have.
    `recompute` is as for `--recompute`."""

    places: int = 0
    mesh: Mesh | None = None
    meshes: tuple[Mesh, ...] = ()
    microbatches: int = 0
    samples: int = 0
    data: int = 1
    schedule: str = ""
    given: Schedule | None = None
    chunks: int = 0
    recompute: str = ""
    pins: tuple[Pin, ...] = field(default=())

    @property
    def is_pipeline(self) -> bool:
        """Whether there is to be more than one stage."""
        return self.places > 1 or (self.places == 1 and self.chunks > 1)

    @property
    def all_pins(self) -> tuple[Pin, ...]:
        """The pins, those of `recompute` first."""
        return (*recompute_pins(self.recompute or "chosen"), *self.pins)

    def number(self, batch: int) -> int:
        """The microbatches of a batch of so many samples, 0 if nobody said. Raises BadValue with
        the nearest legal sizes if the batch does not divide."""
        if not self.samples:
            return self.microbatches
        each = self.samples * self.data
        number, rest = divmod(batch, each)
        if rest or not number:
            raise BadValue(
                f"--pin microbatch={self.samples}: a batch of {batch} cannot be cut into "
                f"microbatches of {each} samples ({self.samples} on each of dp={self.data}): "
                f"{_nearest_batch(batch, self.samples, self.data)}"
            )
        return number


def pipeline_options(
    *,
    num_devices: int,
    pipeline: int | None = None,
    schedule: str | None = None,
    chunks: int | None = None,
    mesh: str | None = None,
    microbatches: int = 0,
    recompute: str | None = None,
    pins: Sequence[str] = (),
) -> PipelineOptions:
    """The options in one record. Raises UnknownName and BadValue for words that mean nothing, for
    the same said twice in unlike ways, and for devices that are not as many as they need."""
    typed = [pin for pin in pins if _is_megatrons(pin)]
    if len(typed) > 1:
        raise BadValue(f"--pin {typed[0]} and --pin {typed[1]}: give one pin with all of it")
    said = _megatrons(typed[0], num_devices, pipeline, mesh) if typed else PipelineOptions()
    given = _schedule_file(schedule)
    for option, value, other in (
        ("--pipeline", pipeline, said.places),
        ("--chunks", chunks, said.chunks),
        ("--schedule", schedule, said.schedule),
        ("--recompute", recompute, said.recompute),
        ("--microbatches", microbatches, said.samples and "another number"),
    ):
        if value and other and value != other:
            raise BadValue(f"{option} {value} and --pin {typed[0]} say two things: leave one out")
    if schedule and given is None and schedule not in NAMES:
        raise unknown_name("schedule", schedule, NAMES)
    typed_meshes = mesh.split("+") if mesh is not None and "+" in mesh else []
    places = pipeline or said.places or (given.num_places if given else len(typed_meshes))
    options = replace(
        said,
        places=places,
        schedule=schedule or said.schedule,
        given=given,
        chunks=chunks or said.chunks,
        microbatches=microbatches or (given.microbatches if given else 0),
        recompute=recompute or said.recompute,
        pins=(*said.pins, *(parse_pin(pin) for pin in pins if pin not in typed)),
    )
    _check_needs_pipeline(options, schedule, chunks)
    if given is not None:
        _check_file(options, given)
    if typed_meshes:
        return replace(
            options, meshes=rank_meshes(typed_meshes, num_devices, options.places, options.samples)
        )
    return replace(options, mesh=_stage_mesh(options, mesh, num_devices))


def _check_needs_pipeline(
    options: PipelineOptions, schedule: str | None, chunks: int | None
) -> None:
    """Raises BadValue for what says nothing without stages."""
    if options.places:
        return
    for option, value in (("--schedule", schedule), ("--chunks", chunks)):
        if value:
            raise BadValue(
                f"{option} {value} is for a pipeline: say of how many ranks, as in --pipeline 2"
            )


def _schedule_file(schedule: str | None) -> Schedule | None:
    """The schedule of a CSV file; None for a name."""
    if schedule is None or not schedule.endswith(".csv"):
        return None
    return load_schedule(Path(schedule))


def _check_file(options: PipelineOptions, given: Schedule) -> None:
    """Raises BadValue if other options say otherwise than the schedule's file."""
    stages = max(len(given.stages_at(place)) for place in range(given.num_places))
    for what, own, other in (
        ("pipeline ranks", given.num_places, options.places),
        ("microbatches", given.microbatches, options.microbatches),
        ("stages a rank", stages, options.chunks),
    ):
        if other and own != other:
            raise BadValue(
                f"--schedule {options.schedule} has {own} {what}, and the options say {other}: "
                "make them equal"
            )


def _stage_mesh(options: PipelineOptions, mesh: str | None, num_devices: int) -> Mesh | None:
    """The mesh of a stage, if it was said. Raises BadValue unless the stages have all devices."""
    places = options.places or 1
    if num_devices % places:
        raise BadValue(
            f"--pipeline {places} does not divide {num_devices} devices: use --pipeline "
            f"{_near_divisors(num_devices, places)}, or --gpus {places * -(-num_devices // places)}, or say "
            f"the devices of each rank, as in --mesh {example(num_devices, places)}"
        )
    if mesh is None:
        return options.mesh
    if places == 1:
        return parse_mesh(mesh, num_devices)
    each = devices_of(mesh)
    if each * places != num_devices:
        raise BadValue(
            f"--pipeline {places} with --mesh {mesh} for each of its ranks needs {places * each} "
            f"devices and --gpus is {num_devices}: use --gpus {places * each}, or a mesh of "
            f"{num_devices // places}"
        )
    return parse_mesh(mesh, each)


def _near_divisors(number: int, near: int) -> str:
    """The divisors of a number next to another: `2 or 4`."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = [d for d in divisors if d < near][-1:]
    return " or ".join(map(str, below + [d for d in divisors if d > near][:1]))


# ---------------------------------------------------------------------------- Megatron's names


def _is_megatrons(text: str) -> bool:
    """Whether a pin is one of Megatron's names: `pp=4,tp=2`, `zero=1`. `dp=tensor` pins a module."""
    key, _, value = text.partition("=")
    return "," in text or (key in _KEYS and value not in PINS)


def _megatrons(
    text: str, num_devices: int, pipeline: int | None, mesh: str | None
) -> PipelineOptions:
    """The options that a pin with Megatron's names stands for. Raises BadValue and UnknownName."""
    said = dict(_parts(text))
    if mesh is not None and {"dp", "tp"} & set(said):
        raise BadValue(f"--mesh {mesh} and --pin {text} say two things: leave one out")
    places = int(said.get("pp", pipeline or 1))
    own = None
    if mesh is None and {"pp", "dp", "tp", "microbatch"} & set(said):
        own = _megatrons_mesh(text, said, places, num_devices)
    axes = re.findall(r"(\w+)\s*=\s*([0-9]+)", str(own) if mesh is None else mesh)
    data = math.prod(int(size) for name, size in axes if role_of(name) == "data")
    zero = _ZERO[said["zero"]] if "zero" in said and (data > 1 or not axes) else ""
    return PipelineOptions(
        places=places if "pp" in said else 0,
        mesh=own,
        samples=int(said.get("microbatch", 0)),
        data=data,
        schedule=said.get("schedule", ""),
        chunks=int(said.get("chunks", 0)),
        recompute=said.get("recompute", ""),
        pins=(Pin("*", zero),) if zero else (),
    )


def _megatrons_mesh(text: str, said: Mapping[str, str], places: int, num_devices: int) -> Mesh:
    """The mesh of a stage: a tensor axis, whose devices are adjacent, and a data axis with all that
    are left if its size was not said."""
    tensor = int(said.get("tp", 1))
    data = int(said.get("dp", max(1, num_devices // (places * tensor))))
    if places * tensor * data != num_devices:
        near = _nearest_devices((places, tensor, data), num_devices)
        raise BadValue(
            f"--pin {text}: pp={places} x tp={tensor} x dp={data} are {places * tensor * data} "
            f"devices and --gpus is {num_devices}: use --gpus {places * tensor * data}, or "
            + ",".join(f"{k}={n}" for k, n in zip(("pp", "tp", "dp"), near, strict=True))
        )
    axes = [(name, size) for name, size in (("dp", data), ("tp", tensor)) if size > 1]
    axes = axes or [("dp", 1)]
    return Mesh(tuple(name for name, _ in axes), tuple(size for _, size in axes))


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """The keys of a pin and their values, each checked."""
    seen: set[str] = set()
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if key not in _KEYS:
            raise unknown_name(f"key in --pin {text}", key, tuple(_KEYS))
        if key in seen:
            raise BadValue(f"--pin {text}: {key} is given twice")
        seen.add(key)
        _check_value(text, key, value if equals else "")
        yield key, value


def _check_value(text: str, key: str, value: str) -> None:
    """Raises UnknownName or BadValue for a value that a key cannot have."""
    known: dict[str, Sequence[str]] = {"schedule": NAMES, "recompute": tuple(RECOMPUTE)}
    if key in known:
        if value not in known[key]:
            raise unknown_name(key, value, tuple(known[key]))
    elif key == "zero":
        if value not in _ZERO:
            raise BadValue(
                f"--pin {text}: zero={value} is not one of {', '.join(_ZERO)}: 0 keeps all whole, "
                "1 updates in pieces (as 2), 3 keeps parameters in pieces"
            )
    elif not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < 1:
        raise BadValue(
            f"--pin {text}: {key}={value} ({_KEYS[key]}): give a whole number of at least 1"
        )


def _nearest_devices(wanted: tuple[int, int, int], num_devices: int) -> tuple[int, ...]:
    """The numbers of ranks on three axes with so many devices that are nearest to those wanted, by
    the factors between them; of such the one that changes the last."""
    divisors = [d for d in range(1, num_devices + 1) if num_devices % d == 0]

    def far(sizes: tuple[int, ...]) -> tuple[float, ...]:
        apart = [abs(math.log(a / b)) for a, b in zip(sizes, wanted, strict=True)]
        return (round(sum(apart), 9), *apart)

    return min(
        (
            (pp, tp, num_devices // (pp * tp))
            for pp, tp in itertools.product(divisors, divisors)
            if num_devices % (pp * tp) == 0
        ),
        key=far,
    )


def _nearest_batch(batch: int, samples: int, data: int) -> str:
    """What would divide: other samples, or another batch."""

    def nearest(legal: Callable[[int], bool], wanted: int, most: int) -> list[int]:
        found = [n for n in range(1, most + 1) if legal(n)]
        below, above = [n for n in found if n < wanted][-1:], [n for n in found if n > wanted][:1]
        return below + above

    sizes = nearest(lambda n: batch % (n * data) == 0, samples, batch)
    batches = [b for b in (batch // (samples * data), -(-batch // (samples * data))) if b]
    words = [f"microbatch={' or '.join(map(str, sizes))}"] if sizes else []
    words.append(f"--batch {' or '.join(str(b * samples * data) for b in dict.fromkeys(batches))}")
    return "use " + ", or ".join(words)
