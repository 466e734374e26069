"""The files of a plan: plan.json, report.md, timeline.json and two pictures, for a pipeline its
schedule too, made whole before the first is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.plans.plan_file import plan_text
from planner.predict.predict import memory_over_time
from planner.report.pipeline_files import PIPELINE_FILES, pipeline_contents
from planner.report.report import report
from planner.report.sections import markdown
from planner.search.pipeline_planned import FoundPipeline

if TYPE_CHECKING:
    from cost_models.machine import Cluster
    from cost_models.timeline import Timeline
    from planner.plans.plan import Plan
    from planner.predict.footprint import Footprint
    from planner.program.program import Program
    from planner.search.search import Found

__all__ = ["file_names", "plan_files", "timeline_files"]

#: With more microbatches than this, pictures show three of them; a trace does if it would have more
#: events than this.
_MOST_DRAWN, _MOST_EVENTS = 4, 100_000

_TIMELINE = {
    "timeline": "timeline.json",
    "picture of the step": "timeline.png",
    "picture of memory": "memory.png",
}


def file_names(folder: Path, *, plan: str = "plan.json", pipeline: bool = False) -> dict[str, str]:
    """The files of a plan by what they hold."""
    names = {"plan": plan, "report": "report.md", **(PIPELINE_FILES if pipeline else _TIMELINE)}
    return {what: str(folder / name) for what, name in names.items()}


def plan_files(
    found: Found | FoundPipeline, cluster: Cluster, folder: Path
) -> tuple[dict[str, str], dict[str, str | bytes]]:
    """The paths of the files of a plan, and their contents by name; plan.json is the last."""
    plan = found.plan
    names = file_names(folder, pipeline=plan.pipeline is not None)
    if isinstance(found, FoundPipeline):
        best = found.candidate
        _, contents = pipeline_contents(plan, best.pipeline, best.prediction, cluster, folder)
    else:
        _, contents = timeline_files(
            plan, found.program, found.run.timeline, cluster, folder, found.run.memory
        )
    return names, {
        **contents,
        "report.md": markdown(report(plan, names)),
        "plan.json": plan_text(plan),
    }


def timeline_files(
    plan: Plan,
    program: Program,
    timeline: Timeline,
    cluster: Cluster,
    folder: Path,
    memory: Footprint | None = None,
) -> tuple[dict[str, str], dict[str, str | bytes]]:
    """The paths of the files of a simulated step, and their contents by name; `memory` is the
    program's, if known."""
    from planner.report.memory_picture import draw_memory
    from planner.report.shown_microbatches import shown
    from planner.report.timeline_picture import draw_timeline

    title = f"{plan.ask.model} on {cluster.num_devices} x {cluster.device.name}, {plan.mesh}"
    drawn = shown(timeline, _MOST_DRAWN)
    times, held = drawn.cut(*memory_over_time(program, timeline, memory))
    title += f", {drawn.words}" if drawn.words else ""
    traced = shown(
        timeline, max(_MOST_DRAWN, _MOST_EVENTS * program.microbatches // len(timeline.events))
    )
    trace = traced.timeline
    if traced.words:
        trace = replace(trace, metadata={**trace.metadata, "shown": traced.words})
    contents: dict[str, str | bytes] = {
        "timeline.json": trace.to_chrome_trace(),
        "timeline.png": draw_timeline(drawn.timeline, title, timeline.step_time),
        "memory.png": draw_memory(
            times, held, drawn.timeline.step_time, cluster.device.usable_memory, title
        ),
    }
    return {what: str(folder / name) for what, name in _TIMELINE.items()}, contents
