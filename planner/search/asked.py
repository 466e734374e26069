"""What was asked for -> its plan: a pipeline that was typed, or the best plan, in stages or not.

The one place where the command line and the Python API call the search.
"""

from __future__ import annotations

from cost_models.machine import Cluster
from planner.search.budget import Budget
from planner.search.joint import joint_search
from planner.search.pipeline_planned import FoundPipeline
from planner.search.search import Found
from planner.search.searched import Progress
from planner.search.typed_pipelines import plan_typed, with_microbatches
from planner.strategy.pipeline_options import PipelineOptions
from planner.workload.ask import Ask

__all__ = ["plan_asked"]


def plan_asked(
    ask: Ask,
    cluster: Cluster,
    options: PipelineOptions,
    *,
    any_microbatches: bool = False,
    own_process: bool = False,
    budget: Budget | None = None,
    progress: Progress = lambda what, done: None,
) -> Found | FoundPipeline:
    """The plan of `ask` on `cluster` under the options that were typed. Raises what `joint_search` and
    `plan_typed` raise."""
    if options.is_pipeline:
        return plan_typed(ask, cluster, options, budget=budget, progress=progress)
    return joint_search(
        with_microbatches(ask, options),
        cluster,
        mesh=options.mesh,
        pins=options.all_pins,
        progress=progress,
        any_microbatches=any_microbatches and not options.samples,
        own_process=own_process,
        budget=budget,
    )
