"""The text of a pipeline, for people: the programs of its stages, and what they send.

Pipeline -> lines.
"""

from __future__ import annotations

from planner.program.text import program_text
from planner.stages.pipeline import Pipeline, Transfer

__all__ = ["pipeline_text"]


def pipeline_text(pipeline: Pipeline) -> str:
    """The program of every stage, as the first rank of its place runs it, under what it receives
    and sends and the order of its actions."""
    return "\n".join(_stage(pipeline, stage) for stage in range(len(pipeline.programs)))


def _stage(pipeline: Pipeline, stage: int) -> str:
    program = pipeline.programs[stage]
    first = pipeline.first_rank(stage)
    last = first + program.mesh.num_devices - 1
    ranks = f"rank {first}" if first == last else f"ranks {first}-{last}"
    lines = [
        f"== stage {stage} on {ranks}: {' '.join(map(str, program.actions))}",
        *(_transfer("sends", t, t.target) for t in pipeline.transfers if t.source == stage),
        *(_transfer("receives", t, t.source) for t in pipeline.transfers if t.target == stage),
    ]
    return "\n".join(lines) + "\n" + program_text(program)


def _transfer(what: str, transfer: Transfer, other: int) -> str:
    way = "to" if what == "sends" else "from"
    shape = "x".join(str(size) for dim in transfer.sent.subshape for size in dim)
    return (
        f"-- {what} value {transfer.number} ({transfer.phase}, {transfer.dtype}[{shape}]) {way} "
        f"stage {other}"
    )
