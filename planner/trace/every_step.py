"""Whether every step of a workload is the one that was traced.

State that Python keeps from one step to the next is found by comparing two recorded steps.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.state.carried import Steps, check_carried
from planner.state.fold import digest
from planner.state.known import Known
from planner.state.snapshot import Snapshot
from planner.state.state import State
from planner.trace.record import record_step
from planner.trace.traced import Traced
from planner.workload.workload import Workload

__all__ = ["same_every_step"]


def same_every_step(
    workload: Workload, state: State, known: Known, once: Callable[[Callable[[], None]], Traced]
) -> Traced:
    """The result of `once`, checked to hold for every step; `state` is the workload's. Leaves the
    workload unchanged.

    Raises NotTraceable if a step depends on the one before it other than by tensors of the graph.
    """
    known.forget([*state.trained.values(), *workload.batch])
    known.name(state.kept)
    before = Snapshot(workload.module, workload.loss)

    def again() -> Traced:
        before.restore()
        return once(before.restore)

    traced = _decided(known, frozenset(state.constants), again)
    changed = before.changes()
    before.restore()
    if changed:
        names, given = known.names - _written(traced), set(map(id, state.kept.values()))

        def record() -> str:
            known.remember(names)
            graph, _, _, (parameters, kept, *_), _ = record_step(workload, lines=False)
            left = {
                name: f"{name} of the step before"
                for name, tensor in kept.items()
                if id(tensor) not in given
            }
            values = known.held(names - left.keys()) | {
                name: known.value_of(kept[name]) for name in left
            }
            return digest(graph, values, [*parameters, *kept], left, known.value_of)

        check_carried(
            Steps(name=workload.name, module=workload.module, loss=workload.loss, record=record),
            before,
            changed,
        )
    return traced


def _decided(known: Known, constants: frozenset[str], once: Callable[[], Traced]) -> Traced:
    """The result of `once`. Buffers are data; only if a step cannot be traced so, the values of
    buffers that no step changes may decide branches."""
    known.remember(constants & known.names)
    try:
        return once()
    except Exception:
        if known.names <= constants:
            raise
    known.remember(known.names)
    traced = once()
    while changing := known.decided & _written(traced):
        known.remember(known.names - changing)
        traced = once()
    return traced


def _written(traced: Traced) -> set[str]:
    """The names of the buffers that the step writes."""
    return {traced.graph.values[value].name for value, _ in traced.graph.updates}
