"""Traces a model's whole training step into one `Graph`, without running it or holding its memory.

Workload builder -> Graph. Invariant: the graph does not depend on the machine it was traced on
(fused attention, recurrent layers and the loss are captured as our own ops), and every node knows
its module and whether it is forward or backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from cost_models.errors import FailedCheck, NotTraceable, UserError
from planner.graph.checking import checked
from planner.program.check_calls import called_faults
from planner.program.check_graph import graph_faults
from planner.state.chance import seeded
from planner.state.hung import check_training_mode
from planner.state.known import Known
from planner.state.shared_memory import check_apart
from planner.state.source_line import from_text
from planner.torch_private.fake_tensors import FakeTensorMode, is_fake, unlogged
from planner.torch_private.recording import distributions_unchecked
from planner.trace.alone import alone
from planner.trace.built import FAILURES, built, really_built, worth_building
from planner.trace.every_step import same_every_step
from planner.trace.gradient_format import with_gradients_in
from planner.trace.record import record_step
from planner.trace.refused import Refused
from planner.trace.repeated import repeated
from planner.trace.steady import steady
from planner.trace.step_graph import whole_graph
from planner.trace.still import still
from planner.trace.traced import Traced
from planner.trace.untraceable import explain, place_of
from planner.workload.workload import Workload

__all__ = ["line_of", "trace"]


def trace(
    build: Callable[[], Workload], name: str = "of one's own", *, whole: bool = False, seed: int = 0
) -> Traced:
    """The graph of one training step of the workload that `build` returns; `name` is the model's
    name in messages if building fails. Only a few blocks of a long stack are traced, and repeated,
    unless `whole`. The builder's random numbers are drawn from `seed`.

    Raises NotTraceable, naming the line of the model, if the step is not one static graph of
    tensors.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    with (
        alone(),
        still(),
        seeded(seed),
        distributions_unchecked(),
        mode,
        unlogged(),
        Known() as known,
    ):
        try:
            workload = built(build, mode, known, seed)
            name = workload.name
            try:
                traced = _checked(workload, mode, known, whole)
            except FAILURES:
                if not worth_building(workload, known):
                    raise
                traced = _checked(really_built(build, mode, known, seed), mode, known, whole)
        except NotTraceable as error:
            place = place_of(error).strip()
            if isinstance(error, Refused) or not place:
                raise
            raise NotTraceable(f"{error} ({place})") from error
        except (UserError, FailedCheck):
            raise
        except Exception as error:
            raise NotTraceable(explain(error, name)) from error
    checked(
        "tracing", lambda: itertools.chain(graph_faults(traced.graph), called_faults(traced.graph))
    )
    return traced


def _checked(workload: Workload, mode: FakeTensorMode, known: Known, whole: bool) -> Traced:
    check_training_mode(workload.name, workload.module)
    # Tensors that a module makes when it is imported are real.
    state = workload.state()
    mode.allow_non_fake_inputs = not all(map(is_fake, state.tensors.values()))
    traced = same_every_step(
        workload,
        state,
        known,
        lambda begin: steady(workload, lambda: _traced(workload, whole, begin)),
    )
    check_apart(workload.state(), traced.graph, workload.name)
    return traced


def _traced(workload: Workload, whole: bool, begin: Callable[[], None]) -> Traced:
    """The traced step. `begin` resets the model to its state before tracing, whatever an unfinished
    trace did to it."""
    traced = (None if whole else repeated(workload)) or Traced(
        graph=whole_graph(workload, begin), workload=workload
    )
    reduced = workload.formats.reduce
    return replace(
        traced,
        graph=with_gradients_in(traced.graph, reduced),
        shallow=tuple((d, with_gradients_in(graph, reduced)) for d, graph in traced.shallow),
    )


def line_of(build: Callable[[], Workload], op: str, path: str) -> str:
    """` at FILE:LINE (CODE)` of the model's call of `op` in module `path`, found by tracing again;
    empty if it is not known."""
    stem = op.split(".")[1]
    with (
        distributions_unchecked(),
        FakeTensorMode(allow_non_fake_inputs=False),
        unlogged(),
        Known(),
    ):
        fx_graph, *_ = record_step(build(), lines=True)
    for node in fx_graph.nodes:
        name = str(node.target).split(".")
        if (
            len(name) > 1
            and name[1].rstrip("_") == stem
            and node.meta.get("custom", {}).get("path", "") == path
        ):
            line = from_text(str(node.meta.get("stack_trace") or ""))
            if line:
                return f" at {line}"
    return ""
