"""The files of a pipeline's plan: the schedule as CSV and as a picture, memory over time, a trace of
the actions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.predict.places import memory_of_places, timeline_of_places
from planner.report.place_memory_picture import draw_place_memory
from planner.report.schedule_picture import draw_schedule
from planner.schedules.csv_text import show_csv

if TYPE_CHECKING:
    from cost_models.machine import Cluster
    from planner.plans.plan import Plan
    from planner.predict.stages import PipelinePrediction
    from planner.stages.pipeline import Pipeline

__all__ = ["PIPELINE_FILES", "pipeline_contents"]

#: The files beside plan and report, by what they hold.
PIPELINE_FILES = {
    "schedule": "schedule.csv",
    "timeline": "timeline.json",
    "picture of the schedule": "schedule.png",
    "picture of memory": "memory.png",
}


def pipeline_contents(
    plan: Plan, pipeline: Pipeline, found: PipelinePrediction, cluster: Cluster, folder: Path
) -> tuple[dict[str, str], dict[str, str | bytes]]:
    """The paths of the files of a simulated step, and their contents by name."""
    title = f"{plan.ask.model} on {cluster.num_devices} x {cluster.device.name}"
    contents: dict[str, str | bytes] = {
        "schedule.csv": show_csv(pipeline.schedule),
        "timeline.json": timeline_of_places(pipeline, found).to_chrome_trace(),
        "schedule.png": draw_schedule(
            found.timing, f"{title}, {plan.mesh}, {pipeline.schedule.name}"
        ),
        "memory.png": draw_place_memory(
            memory_of_places(pipeline, found),
            found.step_time_s,
            cluster.device.usable_memory,
            f"{title}, {plan.mesh}, {pipeline.schedule.name}",
        ),
    }
    return {what: str(folder / name) for what, name in PIPELINE_FILES.items()}, contents
