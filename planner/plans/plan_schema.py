"""The schema of a plan's file: the type and range of every value are checked before anything is
made of it.

JSON -> the parts of a `Plan`, or one line that names the place of the damage. msgspec checks types
and ranges. `plan_file` checks that values agree with each other; whether a choice exists is checked
once the model has been traced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, NotRequired, TypedDict, get_type_hints

import msgspec

from planner.predict.predict import CATEGORIES

__all__ = [
    "Count",
    "Damaged",
    "Hub",
    "Summary",
    "check",
    "check_stages",
    "check_summary",
    "part",
    "same_length",
    "undeclared",
]

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e300)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1e300)]


class Damaged(ValueError):
    """A part of a plan's file that no plan can have."""


class Group(TypedDict):
    """What the mesh axes split in one group of like modules."""

    group: str
    count: Count
    ops: list[str]
    parameters: list[str]


class Axis(TypedDict):
    """The links that a mesh axis crosses."""

    name: str
    size: Count
    num_nodes: Count
    ranks_per_node: Count
    links: list[str]


class Padding(TypedDict):
    """A larger vocabulary that is faster."""

    setting: str
    step_time_s: Positive


class RecomputedGroup(TypedDict):
    """What runs again in like layers."""

    group: str
    count: Count
    ops: dict[str, Count]
    time_s: Share
    held_less_bytes: int


class Recomputed(TypedDict):
    """What runs again in backward, its seconds of a step, and what is held less for it."""

    time_s: Share
    messages_time_s: Share
    held_less_bytes: int
    groups: list[RecomputedGroup]


class StageFigures(TypedDict):
    """A stage of a pipeline: its place and devices (the first and the last), what it holds of the
    model, the seconds of its bodies, the most microbatches in flight, its memory at the peak."""

    stage: Natural
    place: Natural
    devices: Annotated[list[Natural], msgspec.Meta(min_length=2, max_length=2)]
    mesh: str
    layers: list[str]
    begins_at: str
    forward_s: Share
    backward_s: Share
    input_s: Share
    weight_s: Share
    before_s: Share
    after_s: Share
    memory_bytes: dict[str, Natural]
    in_flight: Natural
    recomputed_ops: Natural
    recomputed: NotRequired[Recomputed]


class Summary(TypedDict):
    """The figures of a plan. Only for the report and `--json`: nothing is lowered from them."""

    model: str
    options: dict[str, Any]
    optimizer: str
    dtype: str
    num_parameters: Natural
    constants: NotRequired[list[str]]
    microbatches: NotRequired[Count]
    per_microbatch: NotRequired[list[str]]
    take_no_part: list[str]
    step_time_s: Positive
    compute_time_s: Share
    exposed_communication_time_s: Share
    idle_time_s: Share
    samples_per_s: Share
    tokens_per_s: Share
    mfu: Share
    memory_bytes: dict[str, Natural]
    shared_memory_bytes: NotRequired[Natural]
    memory_capacity_bytes: Count
    memory_allowed_bytes: Natural
    fits: bool
    replicated_ops: list[str]
    discovered_ops: list[str]
    ops_without_rule: list[str]
    groups: list[Group]
    axes: list[Axis]
    planning_time_s: Share
    standard_name: NotRequired[str]
    padding: NotRequired[Padding]
    recomputed: NotRequired[Recomputed]
    checkpoints: NotRequired[list[str]]
    bound_of_fitting: NotRequired[bool]
    only_one_microbatch: NotRequired[str]
    left_out: NotRequired[list[str]]
    late: NotRequired[list[str]]
    time_limit_s: NotRequired[Share]
    extrapolated_from: NotRequired[list[Natural]]
    stages: NotRequired[list[StageFigures]]
    bubble: NotRequired[list[Share]]
    pipelines: NotRequired[dict[str, Natural]]


class Hub(TypedDict):
    """A layout that several readers of a value share in a phase."""

    phase: str
    layout: tuple[Annotated[int, msgspec.Meta(ge=-2)], ...]
    values: list[Natural]


def part(body: Mapping[str, Any], name: str, kind: Any) -> Any:
    """The part `name` of a file as a `kind`: a record, or any type that msgspec knows. Raises
    Damaged with the place of the fault."""
    if name not in body:
        raise Damaged(f"{name} is missing")
    _check_keys(name, body[name], kind)
    try:
        return msgspec.convert(body[name], kind, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        text, _, place = str(error).partition(" - at ")
        raise Damaged(f"{name}{place.strip('`').removeprefix('$')}: {text}") from error


def _check_keys(name: str, value: Any, kind: Any) -> None:
    """Raises Damaged for a key that records of the kind, or those within them, do not have."""
    if isinstance(value, Mapping) and is_dataclass(kind):
        known = {field.name for field in fields(kind)}
        unknown = [key for key in value if key not in known]
        if unknown:
            raise Damaged(f"{name} has an unknown key {unknown[0]!r}")
        hints = get_type_hints(kind)
        for key, inner in value.items():
            _check_keys(f"{name}.{key}", inner, hints[key])


def undeclared(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a file that `Summary` does not have, unchanged: another version may write
    more."""
    declared = get_type_hints(Summary)
    return {key: value for key, value in summary.items() if key not in declared}


def check_summary(summary: Mapping[str, Any], num_axes: Collection[int]) -> None:
    """Raises Damaged for figures that contradict each other. `num_axes` are the numbers of words that
    a row of `groups` may have: of axes, those of the mesh, or the stage and those of its mesh."""
    if set(summary["memory_bytes"]) != {*CATEGORIES, "total"}:
        raise Damaged(
            f"summary.memory_bytes has {', '.join(summary['memory_bytes'])}: not the categories "
            "of memory and their total"
        )
    wanted = " or ".join(map(str, sorted(num_axes)))
    for row in summary["groups"]:
        if len(row["ops"]) not in num_axes or len(row["parameters"]) != len(row["ops"]):
            raise Damaged(
                f"summary.groups: {row['group']!r} does not have a value for each of {wanted} axes"
            )


def check_stages(summary: Mapping[str, Any], num_stages: int, num_places: int) -> None:
    """Raises Damaged for figures of stages that are not those of the pipeline."""
    stages, bubble = summary.get("stages", ()), summary.get("bubble", ())
    check(len(stages) == num_stages, "summary.stages", len(stages), f"{num_stages} stages")
    check(len(bubble) == num_places, "summary.bubble", len(bubble), f"{num_places} ranks")
    for number, row in enumerate(stages):
        check(row["stage"] == number, "summary.stages", row["stage"], f"stage {number}")
        check(row["place"] < num_places, "summary.stages", row["place"], f"one of {num_places}")
        known = {*CATEGORIES, "total"}
        held = row["memory_bytes"]
        check(set(held) == known, "summary.stages.memory_bytes", sorted(held), "all categories")
    words = {f"stage {number}" for number in range(num_stages)}
    for row in summary["groups"]:
        check(row["ops"][0] in words, "summary.groups", row["ops"][0], "one of the stages")


def check(good: bool, what: str, value: object, wanted: str) -> None:
    """Raises Damaged unless `good`."""
    if not good:
        raise Damaged(f"{what} is {value!r}: {wanted}")


def same_length(rows: Sequence[Sequence[Any] | None], num_axes: int, name: str) -> None:
    """Raises Damaged for a row that does not have one entry per axis."""
    for number, row in enumerate(rows):
        if row is not None and len(row) != num_axes:
            raise Damaged(f"{name}[{number}] has {len(row)} choices for {num_axes} axes")
