"""The message if a typed pipeline does not fit: which stage holds too much, how much is missing, of
what it holds most, and a change under which the pipeline fits, found by making it.

PipelineCandidate -> one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from cost_models.errors import BadValue, NoPlan
from cost_models.units import format_bytes
from planner.dims.subdims import infer
from planner.graph.layout import Mesh
from planner.microbatch import possible_microbatches
from planner.search.microbatches import doublings
from planner.search.pipelines import PipelineCandidate, Pipelines
from planner.strategy.pins import MODE_PINS, Pin
from planner.strategy.pipeline_options import PipelineOptions

__all__ = ["misfit_words"]

_Try = tuple[str, Callable[[], PipelineCandidate]]

#: How many categories of memory are named.
_LARGEST = 3


def misfit_words(made: Pipelines, best: PipelineCandidate, options: PipelineOptions) -> str:
    """The one line of `DoesNotFit`."""
    held, schedule = best.prediction.place_bytes, best.pipeline.schedule
    place = max(range(len(held)), key=held.__getitem__)
    stages = schedule.stages_at(place)
    words = f"stage{'s' * (len(stages) > 1)} {' and '.join(map(str, stages))}"
    at_peak: dict[str, int] = {}
    for stage in stages:
        for name, nbytes in best.prediction.stages[stage].memory_bytes.items():
            at_peak[name] = at_peak.get(name, 0) + nbytes
    largest = sorted(at_peak.items(), key=lambda item: -item[1])[:_LARGEST]
    terms = ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in largest)
    return (
        f"{made.traced.workload.name!r} does not fit as typed: {words} of {schedule.num_stages} "
        f"need{'s' * (len(stages) == 1)} {format_bytes(held[place])} per device, "
        f"{format_bytes(held[place] - best.capacity)} more than the {format_bytes(best.capacity)} "
        f"allowed ({schedule.name}, {_parts(schedule.microbatches)}); largest: {terms}; "
        f"{_change(made, best, options)}"
    )


def _parts(microbatches: int) -> str:
    return f"{microbatches} microbatch{'es' * (microbatches > 1)}"


def _change(made: Pipelines, best: PipelineCandidate, options: PipelineOptions) -> str:
    """The first change that fits, in words."""
    for words, candidate in _tries(made, best, options):
        if made.budget.over():
            return "no change that fits was found within the time limit: raise --time-limit"
        try:
            if candidate().fits:
                return f"what fits: {words}"
        except (NoPlan, BadValue):
            continue
    return (
        "neither more microbatches, recomputation nor more stages of these devices fit: use a "
        "smaller batch or more devices"
    )


def _tries(made: Pipelines, best: PipelineCandidate, options: PipelineOptions) -> Iterator[_Try]:
    """The changes, those that cost least first."""
    spec = best.spec
    free = _with_pins(made, [p for p in made.pins if p.choice not in MODE_PINS])
    if len(free.pins) < len(made.pins):
        yield "--recompute chosen", partial(free.candidate, spec)
    graph = made.traced.graph
    for number in doublings(possible_microbatches(graph, infer(graph))):
        if number > spec.microbatches and spec.given is None:
            more = replace(spec, microbatches=number)
            yield _microbatches(options, best, number), partial(free.candidate, more)
    if "zero1" not in (pin.choice for pin in made.pins) and options.data > 1:
        sharded = _with_pins(made, [*free.pins, Pin("*", "zero3")])
        yield "zero=3", partial(sharded.candidate, spec)
    for places in (2 * spec.places, 4 * spec.places):
        if not spec.is_uniform:
            break
        mesh = _smaller(spec.meshes[0], places // spec.places)
        if mesh is not None and spec.given is None:
            deeper = replace(spec, places=places, mesh=mesh)
            yield (
                f"--pipeline {places} --mesh {mesh}",
                partial(free.candidate, deeper),
            )


def _microbatches(options: PipelineOptions, best: PipelineCandidate, number: int) -> str:
    if not options.samples:
        return f"--microbatches {number}"
    return f"microbatch={options.samples * best.spec.microbatches // number}"


def _smaller(mesh: Mesh, times: int) -> Mesh | None:
    """The mesh with so many times fewer devices on its first axis that has enough; None if none
    has."""
    for axis, size in enumerate(mesh.sizes):
        if size % times == 0:
            sizes = list(mesh.sizes)
            sizes[axis] //= times
            return Mesh(mesh.names, tuple(sizes))
    return None


def _with_pins(made: Pipelines, pins: list[Pin]) -> Pipelines:
    return Pipelines(made.ask, made.cluster, tuple(pins), made.budget, made.traced)
