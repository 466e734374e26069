"""The choices of a plan in its file: options of ops and parameters, hubs; and those of a pipeline,
stage by stage.

Choices <-> JSON, each part checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NotRequired, Protocol, TypedDict

from cost_models.errors import BadValue
from planner.graph.layout import Layout, Mesh
from planner.plans.plan import PipelinePlan, PlanStage
from planner.plans.plan_modes import read_modes, show_modes
from planner.plans.plan_schema import Count, Damaged, Hub, Natural, check, part, same_length
from planner.schedules.csv_text import read_csv
from planner.schedules.schedule import Schedule
from planner.strategy.strategies import Option

__all__ = [
    "check_choices",
    "check_pipeline",
    "in_file_order",
    "option_text",
    "read_choices",
    "read_pipeline",
    "show_choices",
    "show_pipeline",
]


class _Chosen(Protocol):
    """A plan, or a stage of one."""

    @property
    def options(self) -> tuple[tuple[Option, ...] | None, ...]: ...
    @property
    def parameters(self) -> tuple[tuple[Option, ...], ...]: ...
    @property
    def hubs(self) -> tuple[tuple[int, str, Layout], ...]: ...
    @property
    def bucket_bytes(self) -> int: ...
    @property
    def recast(self) -> bool: ...


class _Stage(TypedDict):
    begins: Natural
    at: str
    mesh: dict[str, Any]
    options: list[list[str] | None]
    parameters: list[list[str]]
    hubs: list[Hub]
    bucket_bytes: Count
    recast: bool
    modes: NotRequired[dict[str, str]]


class _Pipeline(TypedDict):
    schedule: str
    orders: str
    stages: list[_Stage]


def show_choices(plan: _Chosen) -> dict[str, Any]:
    """The choices as JSON."""
    return {
        "options": [None if o is None else [option_text(x) for x in o] for o in plan.options],
        "parameters": [[option_text(x) for x in o] for o in plan.parameters],
        "hubs": _show_hubs(plan.hubs),
        "bucket_bytes": plan.bucket_bytes,
        "recast": plan.recast,
    }


def read_choices(body: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `show_choices`, as fields of a plan. Raises Damaged."""
    options = part(body, "options", list[list[str] | None])
    return {
        "options": tuple(None if o is None else tuple(map(_read_option, o)) for o in options),
        "parameters": tuple(
            tuple(map(_read_option, o)) for o in part(body, "parameters", list[list[str]])
        ),
        "hubs": tuple(
            (value, h["phase"], tuple(h["layout"]))
            for h in part(body, "hubs", list[Hub])
            for value in h["values"]
        ),
        "bucket_bytes": part(body, "bucket_bytes", Count),
        "recast": part(body, "recast", bool),
    }


def show_pipeline(pipeline: PipelinePlan) -> dict[str, Any]:
    """A pipeline as JSON."""
    return {
        "schedule": pipeline.schedule,
        "orders": pipeline.orders,
        "stages": [
            {
                "begins": stage.begins,
                "at": stage.at,
                "mesh": {"names": stage.mesh.names, "sizes": stage.mesh.sizes},
                **show_choices(stage),
                **({"modes": show_modes(stage.modes)} if stage.modes else {}),
            }
            for stage in pipeline.stages
        ],
    }


def read_pipeline(body: Mapping[str, Any]) -> PipelinePlan | None:
    """The inverse of `show_pipeline`; None if the file has none. Raises Damaged."""
    if "pipeline" not in body:
        return None
    shown = part(body, "pipeline", _Pipeline)
    return PipelinePlan(
        schedule=shown["schedule"],
        orders=shown["orders"],
        stages=tuple(
            PlanStage(
                begins=stage["begins"],
                at=stage["at"],
                mesh=part(stage, "mesh", Mesh),
                **read_choices(stage),
                modes=read_modes(stage),
            )
            for stage in shown["stages"]
        ),
    )


def check_choices(plan: _Chosen, mesh: Mesh) -> None:
    """Raises Damaged for choices that no plan on the mesh can have."""
    phases = sorted({phase for _, phase, _ in plan.hubs} - {"forward", "backward", "update"})
    check(not phases, "the phase of a hub", phases, "forward, backward or update")
    for name, rows in (("options", plan.options), ("parameters", plan.parameters)):
        same_length(rows, len(mesh.sizes), name)


def check_pipeline(pipeline: PipelinePlan, microbatches: int, num_devices: int) -> Schedule:
    """The schedule. Raises Damaged for stages and a schedule that do not go together."""
    try:
        schedule = read_csv(pipeline.orders, pipeline.schedule)
    except BadValue as error:
        raise Damaged(f"pipeline.orders: {error}") from error
    stages = pipeline.stages
    check(len(stages) == schedule.num_stages, "pipeline.stages", len(stages), "one per stage")
    check(
        schedule.microbatches == microbatches,
        "ask.microbatches",
        microbatches,
        f"the schedule has {schedule.microbatches}",
    )
    begins = [stage.begins for stage in stages]
    check(
        begins == sorted(set(begins)) and begins[:1] == [0],
        "pipeline.stages",
        begins,
        "stages begin with unit 0 and follow each other",
    )
    used = 0
    for place in range(schedule.num_places):
        sizes = {stages[stage].mesh.num_devices for stage in schedule.stages_at(place)}
        check(len(sizes) == 1, "pipeline.stages", sorted(sizes), "stages of a place share devices")
        used += sizes.pop()
    check(used == num_devices, "mesh", num_devices, f"the stages have {used} devices")
    for stage in stages:
        check_choices(stage, stage.mesh)
    return schedule


def option_text(option: Option) -> str:
    """An option as text, as in plan files and messages."""
    return option.kind if option.number < 0 else f"{option.kind}:{option.number}"


def _read_option(text: str) -> Option:
    kind, _, number = text.partition(":")
    if kind not in ("whole", "split", "linear", "update"):
        raise Damaged(f"unknown option {text!r}")
    if number and not (number.isascii() and number.isdigit()):
        raise Damaged(f"option {text!r} has no number")
    return Option(kind, int(number) if number else -1)


def in_file_order(hubs: Mapping[tuple[int, str], Layout]) -> tuple[tuple[int, str, Layout], ...]:
    """Layouts of hubs by (value, phase), in the order in which a file lists them: a plan read back
    equals the plan written."""
    groups: dict[tuple[str, Layout], list[tuple[int, str, Layout]]] = {}
    for (value, phase), layout in hubs.items():
        groups.setdefault((phase, layout), []).append((value, phase, layout))
    return tuple(itertools.chain(*groups.values()))


def _show_hubs(hubs: tuple[tuple[int, str, Layout], ...]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, Layout], list[int]] = {}
    for value, phase, layout in hubs:
        groups.setdefault((phase, layout), []).append(value)
    return [
        {"phase": phase, "layout": layout, "values": values}
        for (phase, layout), values in groups.items()
    ]
