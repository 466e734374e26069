"""The format in which gradients are added up over microbatches, in the graph of one of them."""

from __future__ import annotations

from functools import partial

import pytest
from plain_graph import far, interpreted, torch_step
from small_plans import ask_for

from planner.dims.subdims import infer
from planner.graph.graph import Graph
from planner.graph.sections import AFTER, is_accumulate, sections_of
from planner.microbatch import accumulated_in, microbatch_graph
from planner.plans.models import modelled
from planner.program.check_calls import called_faults
from planner.program.check_graph import graph_faults
from planner.strategy.traced_model import Model
from planner.trace.trace import trace
from planner.workload.ask import Ask, build
from planner.workload.precision import precision_of
from runtime.parameters import build as built

SHORT = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}


def ask_in(precision: str, reduce: str, accumulate: str, microbatches: int = 4) -> Ask:
    formats = precision_of(precision, reduce, accumulate).fields()
    return ask_for("mlp", 1, microbatches=microbatches, **formats)


def graph_in(ask: Ask) -> Graph:
    whole = trace(partial(build, ask), ask.model).graph
    dims = infer(whole)
    return accumulated_in(microbatch_graph(whole, dims, ask.microbatches), ask.formats)


@pytest.mark.parametrize(
    ("precision", "reduce", "accumulate", "added", "summed"),
    [
        ("fp32", "", "", "fp32", "fp32"),
        ("bf16", "", "", "bf16", "bf16"),
        ("bf16", "fp32", "", "fp32", "fp32"),
        ("bf16", "", "fp32", "fp32", "bf16"),
        ("bf16-mixed", "", "", "fp32", "fp32"),
        ("bf16-mixed", "bf16", "", "fp32", "bf16"),
        ("bf16-mixed", "", "bf16", "bf16", "fp32"),
        ("bf16-master", "", "", "fp32", "fp32"),
        ("bf16-master", "bf16", "", "fp32", "bf16"),
        ("bf16-master", "bf16", "bf16", "bf16", "bf16"),
        ("fp16-master", "", "fp16", "fp16", "fp32"),
    ],
)
def test_gradients_are_added_up_and_summed_in_their_formats(
    precision: str, reduce: str, accumulate: str, added: str, summed: str
) -> None:
    graph = graph_in(ask_in(precision, reduce, accumulate))
    assert [*graph_faults(graph), *called_faults(graph)] == []
    values = graph.values
    assert {values[p.gradient].dtype for p in graph.parameters} == {SHORT[summed]}
    sums = {n.results[0] for n in graph.nodes if is_accumulate(n) and n.phase == "update"}
    assert {values[v].dtype for v in sums if v is not None} == {SHORT[added]}
    sections = sections_of(graph)
    late = [n for n, own in zip(graph.nodes, sections, strict=True) if own == AFTER]
    # Only the casts of whole sums, once a step.
    assert len(late) == (len(graph.parameters) if added != summed else 0)


def test_microbatches_added_up_in_float32_have_the_whole_batchs_gradients() -> None:
    """To what rounds each microbatch's gradient to bfloat16; added up in bfloat16 they are
    further off."""
    errors = {}
    for accumulate in ("fp32", "bf16"):
        ask = ask_in("bf16-mixed", "", accumulate, 8)
        workload = built(partial(build, ask), 0)
        errors[accumulate] = far(interpreted(graph_in(ask), workload), torch_step(workload))
    assert errors["fp32"] < errors["bf16"] < 0.05


def test_ranks_sum_gradients_in_their_own_format_whenever_they_do() -> None:
    """Before they are added up (in every microbatch) or after (once a step): never in the format
    between."""
    model = modelled_in("bf16-master", "bf16")
    short = [v.id for v in model.graph.values if v.dtype == "bfloat16"]
    sums = [n for n in model.graph.nodes if is_accumulate(n) and n.phase == "update"]
    for node in sums:
        assert node.results[0] in model.cast_gradients
        assert model.roots[node.operands[0]].value in model.cast_gradients
    assert model.cast_gradients.isdisjoint(short)
    plain = modelled_in("bf16-master", "")
    assert all(plain.graph.values[v].dtype == "bfloat16" for v in plain.cast_gradients)
    assert len(plain.cast_gradients) == len(plain.graph.parameters)


def modelled_in(precision: str, reduce: str) -> Model:
    ask = ask_in(precision, reduce, "")
    return modelled(trace(partial(build, ask), ask.model), ask)
