"""Traces a model's whole training step into one `Graph`, without running it or holding its memory.

Workload builder -> Graph. Invariant: the graph does not depend on the machine it was traced on
(fused attention, recurrent layers and the loss are captured as our own ops), and every node knows
its module and whether it is forward or backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import FailedCheck, NotTraceable, UserError
from planner.graph.checking import checked
from planner.graph.graph import Graph
from planner.kernels import Canonical, precision
from planner.kernels.functional import Functional
from planner.program.check_graph import called_faults, graph_faults, lint_faults
from planner.state.carried import Steps, check_carried
from planner.state.chance import seeded
from planner.state.fold import digest
from planner.state.hung import check_training_mode
from planner.state.known import Known, begin_step
from planner.state.outside import check_kept, check_leaves, check_set, set_by_loss, take_out_unread
from planner.state.shared_memory import check_apart
from planner.state.snapshot import Snapshot
from planner.state.source_line import from_text
from planner.state.state import State
from planner.torch_private.fake_tensors import FakeTensorMode, is_fake, memory_of, unlogged
from planner.torch_private.recording import (
    distributions_unchecked,
    functional,
    joint_trace,
    label_new_nodes,
)
from planner.trace.alone import alone
from planner.trace.between import Between, Unlike, between
from planner.trace.built import FAILURES, built, really_built, worth_building
from planner.trace.decompose import decomposition_table
from planner.trace.gradients import check_sparse, check_untouched, gradients_of
from planner.trace.paths import paths_of
from planner.trace.read_fx import ChangedInPlace, Refused, read_graph
from planner.trace.stacks import Run, Stack, shortened, stacks_of, watched
from planner.trace.steady import steady
from planner.trace.still import still
from planner.trace.unroll import Given, unroll
from planner.trace.untraceable import explain, place_of
from planner.workload.workload import Workload, unused

__all__ = ["Traced", "line_of", "trace"]

aten = torch.ops.aten

#: Graphs of more nodes are given at these lesser depths too.
_DEEP, _SHALLOW = 4_000, (6, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The graph, and the workload it was traced from (its tensors are fake: shapes without
    memory). Of a module whose stacks all have `depth` blocks, many of them, `shallow` has the
    graphs of some lesser depths."""

    graph: Graph
    workload: Workload
    depth: int = 0
    shallow: tuple[tuple[int, Graph], ...] = ()

    @property
    def unused(self) -> tuple[str, ...]:
        """The parameters that take no part in the loss: they have no gradient, and the optimizer
        leaves them alone."""
        return unused(self.workload.module, (p.name for p in self.graph.parameters))


def trace(
    build: Callable[[], Workload], name: str = "of one's own", *, whole: bool = False, seed: int = 0
) -> Traced:
    """The graph of one training step of the workload that `build` makes; `name` is what it is
    called where building fails. Of a long stack of like blocks a few are traced and repeated,
    unless the `whole` is to be traced. What the builder draws it draws from `seed`.

    Raises NotTraceable, naming the line of the model, where the step is not one static graph of
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
    # What a module makes when it is imported is real.
    state = workload.state()
    mode.allow_non_fake_inputs = not all(map(is_fake, state.tensors.values()))
    traced = _same_every_step(
        workload,
        state,
        known,
        lambda begin: steady(workload, lambda: _traced(workload, whole, begin)),
    )
    check_apart(workload.state(), traced.graph, workload.name)
    return traced


def _traced(workload: Workload, whole: bool, begin: Callable[[], None]) -> Traced:
    """`begin` has the model begin as it was given, whatever a trace that led to nothing did to
    it."""
    return (None if whole else _repeated(workload)) or Traced(
        graph=_whole(workload, begin), workload=workload
    )


def line_of(build: Callable[[], Workload], op: str, path: str) -> str:
    """` at FILE:LINE (CODE)` of the model that calls `op` in module `path`, traced again to find
    it; empty where that is not known."""
    stem = op.split(".")[1]
    with (
        distributions_unchecked(),
        FakeTensorMode(allow_non_fake_inputs=False),
        unlogged(),
        Known(),
    ):
        fx_graph, *_ = _record(build(), lines=True)
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


def _same_every_step(
    workload: Workload, state: State, known: Known, once: Callable[[Callable[[], None]], Traced]
) -> Traced:
    """What `once` traces, where every step is the one that it traced; `state` is the workload's.
    The workload is left as it was given.

    Raises NotTraceable where a step depends on the one before it, otherwise than by tensors of the
    graph.
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
            graph, _, _, (parameters, kept, *_), _ = _record(workload, lines=False)
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
    """What `once` traces. Buffers are data, unless a step cannot be traced so: then those decide
    that no step changes."""
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
    """The names of what the step writes."""
    return {traced.graph.values[value].name for value, _ in traced.graph.updates}


def _repeated(workload: Workload) -> Traced | None:
    """The graph of a module with long stacks, from a trace of a few blocks of each; None where
    that does not give it."""
    module = workload.module
    stacks = stacks_of(module)
    if not stacks:
        return None
    try:
        whole = _between(workload, tuple(stack.whole_run for stack in stacks))
        with shortened(module, stacks):
            if _between(workload, tuple(stack.short_run for stack in stacks)) != whole:
                return None
            with watched(module, stacks) as used:
                short = _graph(workload)
    except (
        Unlike,
        *FAILURES,
    ):  # a step that needs all its blocks; whatever is wrong with the model, tracing the whole tells it
        return None
    if used:
        return None
    given = tuple(_given(workload, short, stacks))
    graph = unroll(short, stacks, given)
    if graph is None:
        return None
    _check("unrolling", graph)
    depth = stacks[0].length
    shallow: list[tuple[int, Graph]] = []
    if len(graph.nodes) > _DEEP and all(
        stack.length == depth > max(_SHALLOW) and stack.path == stack.short for stack in stacks
    ):
        for less in _SHALLOW:
            found = unroll(
                short,
                tuple(replace(stack, length=less) for stack in stacks),
                _given_less(given, stacks, less),
            )
            assert found is not None, stacks
            _check("unrolling", found)
            shallow.append((less, found))
    return Traced(graph=graph, workload=workload, depth=depth, shallow=tuple(shallow))


def _between(workload: Workload, runs: tuple[Run, ...]) -> Between:
    """What the step does outside the blocks of the runs."""
    return between(workload.module, runs, lambda: _loss(workload), workload.batch)


def _loss(workload: Workload) -> Tensor:
    """The loss, not recorded."""
    begin_step()
    module = workload.module
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with Canonical(torch.empty((), dtype=torch.int64)), precision(workload.compute):
        inputs, named, target = workload.arguments(workload.batch)
        outputs = torch.func.functional_call(
            module, tensors, inputs, named
        )  # what it sets its buffers to is taken back
        return workload.losses(outputs, target)[0]


def _given_less(
    given: tuple[Given, ...], stacks: tuple[Stack, ...], depth: int
) -> tuple[Given, ...]:
    """What a module is given whose stacks have `depth` blocks."""
    out = []
    for one in given:
        for stack in stacks:
            number = stack.block_of(one.name)
            if number is not None and number >= stack.start + stack.length:
                one = replace(one, name=stack.renamed(one.name, by=depth - stack.length))
            elif number is not None and number >= stack.start + depth:
                break
        else:
            out.append(one)
    return tuple(out)


def _given(workload: Workload, short: Graph, stacks: tuple[Stack, ...]) -> Iterator[Given]:
    """What the step is given by the module, in the order of `_record`'s arguments; `short` is
    the graph of the module shortened."""
    state, read = workload.state(), set()
    for value in short.values:
        name = value.name
        for stack in reversed(stacks):
            name = stack.renamed(name)
        read.add(name)
    constants = {name: tensor for name, tensor in state.constants.items() if name in read}
    for name, tensor in {**state.trained, **state.buffers, **constants}.items():
        yield Given(
            name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch.")
        )


def _whole(workload: Workload, begin: Callable[[], None]) -> Graph:
    begin()
    try:
        return _graph(workload)
    except Refused:  # again, slowly, to name the line
        begin()
        return _graph(workload, lines=True)


def _graph(workload: Workload, *, lines: bool = False) -> Graph:
    """The graph as recorded; where an op writes in place and something sees it, with all such
    ops made functional."""
    fx_graph, names, losses, arguments, unused = _record(workload, lines)
    checked("recording", lambda: lint_faults(fx_graph))
    try:
        return _check("reading", read_graph(fx_graph, names, losses, workload, unused))
    except ChangedInPlace as refused:
        try:
            again = functional(fx_graph, arguments, decomposition_table())
            checked("making ops functional", lambda: lint_faults(again))
            return _check(
                "reading", read_graph(again, names, losses, workload, unused, functional=True)
            )
        except (
            ChangedInPlace
        ):  # it writes to a parameter or an input: told of the op as the person wrote it
            raise refused from None


def _check(name: str, graph: Graph) -> Graph:
    checked(name, lambda: graph_faults(graph))
    return graph


# ---------------------------------------------------------------------------------------- recording


def _record(
    workload: Workload, lines: bool
) -> tuple[torch.fx.Graph, list[str], list[str], tuple[Any, ...], tuple[str, ...]]:
    """The recorded step, the names of its parameters and buffers, those of its losses, what it
    was called with, and the names of the parameters that take no part in the loss: they have no
    gradient."""
    begin_step()
    module, before = workload.module, workload.state()
    parameters, buffers = dict(before.trained), before.kept
    if not parameters:
        raise NotTraceable(
            f"model {workload.name!r} has no parameter that requires a gradient: there is nothing to train"
        )
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}

    losses: list[str] = []
    unused: list[str] = []

    def step(
        weights: dict[str, Tensor], state: dict[str, Tensor], key: Tensor, *batch: Tensor
    ) -> tuple[Tensor, ...]:
        with paths_of(module) as paths, _written_back(module, weights, state) as write:
            label_new_nodes({"phase": "forward", "path": ""})
            with Functional(), Canonical(key, module) as canonical, precision(workload.compute):
                inputs, named, target = workload.arguments(batch)
                tensors = {
                    name: tensor for name, tensor in {**weights, **state}.items() if name in own
                }
                outputs = torch.func.functional_call(module, tensors, inputs, named)
                with set_by_loss(module, workload.loss, state) as found:
                    loss, several = workload.losses(outputs, target)
            check_sparse(canonical.sparse, weights, workload)
            for one in (*several.values(), loss):
                _check_loss(one, workload.name)
            paths.label_backward(loss)
            check_leaves(paths.owner, before.constants, workload.name)
            with Functional():
                gradients = gradients_of(loss, weights)
                write(found)
        losses[:] = several
        unused[:] = [name for name, gradient in gradients.items() if gradient is None]
        return (loss, *(g for g in gradients.values() if g is not None), *several.values())

    batch = tuple(
        tensor.detach().requires_grad_(tensor.requires_grad) for tensor in workload.batch
    )  # the model may hold it too
    arguments = (parameters, buffers, torch.empty((), dtype=torch.int64), *batch)
    graph = joint_trace(step, arguments, decomposition_table(), lines=lines)
    if len(unused) == len(parameters):
        raise NotTraceable(
            f"model {workload.name!r}: no parameter takes part in the loss: there is nothing to train"
        )
    if unused:
        check_untouched(unused, parameters, lambda: _loss(workload), workload.name)
    for name in take_out_unread(graph, [*parameters, *buffers], before.constants):
        del buffers[name]
    return (
        graph,
        [*parameters, *buffers],
        losses,
        (parameters, buffers, *arguments[2:]),
        tuple(unused),
    )


@contextmanager
def _written_back(
    module: torch.nn.Module, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Iterator[Callable[[Sequence[tuple[Tensor, Tensor]]], None]]:
    """A function that writes to the buffers what the module has set them to (`self.seen = 0.9 *
    self.seen`), as if they were changed in place, and to others what it is given for them. It is
    for the step's end: backward reads what a buffer was before it was set."""
    found: list[tuple[Tensor, Tensor]] = []

    def look(*_: Any) -> None:
        check_kept(module, {**weights, **state})
        for name, value in module.named_buffers(remove_duplicate=False):
            given = state.get(
                name, value
            )  # one that the module has just made is no state of the step
            if value is not given:
                check_set(name, value, given)
                _check_memory(module, name, value)
                found.append((given, value))

    def write(more: Sequence[tuple[Tensor, Tensor]]) -> None:
        label_new_nodes({"phase": "forward", "path": ""})
        with torch.no_grad():
            for given, value in (*found, *more):
                given.copy_(value)

    handle = module.register_forward_hook(look)
    try:
        yield write
    finally:
        handle.remove()


def _check_memory(module: torch.nn.Module, name: str, value: Tensor) -> None:
    """Raises NotTraceable where a buffer is set to memory that changes with something else."""
    for other, tensor in (
        *module.named_parameters(),
        *module.named_buffers(remove_duplicate=False),
    ):
        if other != name and memory_of(tensor) == memory_of(value):
            raise NotTraceable(
                f"buffer {name!r} is set to a tensor that shares memory with {other!r}, and would change with it: "
                "set it to a clone"
            )


def _check_loss(loss: Any, name: str) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = (
            f"of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor)
            else f"a {type(loss).__name__}"
        )
        raise NotTraceable(
            f"model {name!r}: the loss must be one scalar tensor, got {what}; reduce it with .mean() or .sum()"
        )
