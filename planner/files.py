"""The files of a plan: plan.json, report.md, timeline.json and two pictures, made whole before the first is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.pictures import draw_memory, draw_timeline
from planner.plan import plan_text
from planner.predict import memory_over_time, simulate_program
from planner.report import markdown, report

if TYPE_CHECKING:
    from cost_models.cluster import Cluster
    from planner.search import Found

__all__ = ["file_names", "plan_files"]


def file_names(folder: Path, *, plan: str = "plan.json") -> dict[str, str]:
    """The files of a plan by what they hold."""
    names = {"plan": plan, "report": "report.md", "timeline": "timeline.json", "pictures": "timeline.png, memory.png"}
    return {what: str(folder / name) for what, name in names.items()}


def plan_files(found: Found, cluster: Cluster, folder: Path) -> tuple[dict[str, str], dict[str, str | bytes]]:
    """Where the files of a plan will be, and their contents by name; plan.json is the last."""
    names = file_names(folder)
    timeline = simulate_program(found.program, cluster)
    title = f"{found.plan.ask.model} on {cluster.num_devices} x {cluster.device.name}, {found.plan.mesh}"
    times, held = memory_over_time(found.program, timeline)
    return names, {
        "timeline.json": timeline.to_chrome_trace(),
        "timeline.png": draw_timeline(timeline, title),
        "memory.png": draw_memory(times, held, timeline.step_time, cluster.device.usable_memory, title),
        "report.md": markdown(report(found.plan, names)),
        "plan.json": plan_text(found.plan),
    }
