"""The order of a step: gradients leave in buckets beside backward, parameters come one layer
ahead, the loss is waited for last."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from small_plans import Planned, ask_for, chosen_at_random, mesh_of, planned, table_of

from cost_models.cluster import load_cluster
from planner.lowering.in_flight import PRODUCTS, continued_late
from planner.lowering.lower import lower
from planner.lowering.order import finish
from planner.predict.footprint import CATEGORIES, footprint
from planner.program.actions import STEP
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Program,
    Ref,
    Update,
    reads,
    waits_for,
    writes,
)
from planner.strategy.choices import read_choices
from planner.strategy.problem import problem_of


def gpt(*pins: str, mesh: str = "dp=4", bucket: int | None = None, compute: str = "") -> Planned:
    ask = ask_for("gpt", layers=4, dtype="float32" if compute else "float64", compute=compute)
    return planned(ask, mesh, pins, bucket=bucket)


def positions(plan: Planned, where: Callable[[Instruction], bool]) -> list[int]:
    return [at for at, instruction in enumerate(plan.program.instructions) if where(instruction)]


def update_at(plan: Planned) -> int:
    return positions(plan, lambda i: isinstance(i, Update))[0]


def without_loss(bucket: Communicate) -> Communicate:
    """A bucket without the scalar that rides along."""
    kept = [at for at, shape in enumerate(bucket.shapes) if shape != ()]
    return replace(
        bucket,
        sources=tuple(bucket.sources[at] for at in kept),
        nbytes=bucket.nbytes - 8 * (len(bucket.shapes) - len(kept)),
    )


@pytest.mark.parametrize("size", [1, 5_000, 20_000, 10**9])
@pytest.mark.parametrize("kind", ["ddp", "zero1"])
def test_buckets_are_sent_when_they_are_full(size: int, kind: str) -> None:
    """Without its last part every bucket is below the size; but for the last of its kind, it has
    reached it."""
    plan = gpt(f"*={kind}", bucket=size)
    end = update_at(plan)
    buckets = [
        without_loss(i)
        for i in plan.program.instructions[:end]
        if isinstance(i, Communicate) and i.phase == "update"
    ]
    assert sum(len(i.sources) for i in buckets) == len(plan.program.parameters)
    last = {(i.kind, i.split): i.id for i in buckets}
    for bucket in buckets:
        assert bucket.asynchronous
        assert bucket.nbytes >= size or bucket.id == last[bucket.kind, bucket.split]
        assert bucket.nbytes - plan.program.value_bytes[bucket.sources[-1]] < size
        assert len(bucket.sources) == 1 or all(
            plan.program.value_bytes[source] < size for source in bucket.sources
        )
    assert (
        len(buckets) == len(plan.program.parameters)
        if size == 1
        else len(buckets) < len(plan.program.parameters)
    )


@pytest.mark.parametrize("kind", ["zero1", "zero3"])
def test_two_reductions_are_under_way_at_most(kind: str) -> None:
    """What is reduce-scattered is held whole until it is waited for: never more than the two
    that are sent and the one that fills."""
    ask = ask_for("gpt", layers=4, dtype="float32")
    plan = planned(
        ask, "dp=4", (f"*={kind}",), bucket=10_000, cluster=load_cluster("dgx-h100", num_devices=4)
    )
    under_way: dict[int, str] = {}
    sent: set[str] = set()
    for instruction in plan.program.instructions:
        for value in waits_for(instruction):
            done = under_way.get(value)
            under_way = {other: message for other, message in under_way.items() if message != done}
        if (
            isinstance(instruction, Communicate)
            and instruction.asynchronous
            and instruction.kind == "reduce_scatter"
        ):
            under_way.update(dict.fromkeys(instruction.results, instruction.id))
            sent.add(instruction.id)
        assert len({*under_way.values()}) <= 2
    assert len(sent) >= 6
    free = [
        replace(i, after=()) if isinstance(i, Communicate) else i for i in plan.program.instructions
    ]
    assert gradients(plan.program) < 0.8 * gradients(
        replace(plan.program, bodies={STEP: tuple(free)})
    )


_IDS = itertools.count(100)


def message(
    source: int, kind: str = "all_reduce", axes: tuple[int, ...] = (0,), phase: str = "update"
) -> Communicate:
    """A message of one value, with an id of its own."""
    value = next(_IDS)
    return Communicate(
        id=f"{kind}{value}",
        kind=kind,
        axes=axes,
        sources=(source,),
        results=(value,),
        expanded=((8,),),
        shapes=((8,),),
        dtypes=("float32",),
        phase=phase,
        asynchronous=kind != "slice",
        nbytes=32,
    )


def product(source: int, phase: str = "backward") -> Compute:
    """A product that reads one value."""
    value = next(_IDS)
    return Compute(
        id=f"mm{value}",
        op="aten.mm.default",
        args=(Ref(source), Ref(source)),
        results=(value,),
        shapes=((8,),),
        dtypes=("float32",),
        kind="gemm",
        phase=phase,
    )


def test_a_slice_of_a_reduced_gradient_is_cut_when_two_more_have_started() -> None:
    """Compute does not wait for a reduction as soon as it has started, and no more than two are
    held whole."""
    sent = [message(at) for at in range(4)]
    cut = [message(m.results[0], "slice") for m in sent]
    again = message(cut[3].results[0], "slice")
    other = message(9, axes=(1,))
    kept = message(50, "slice")  # of a value that no message gives
    end = Update(
        id="update.optimizer",
        gradients=(cut[0].results[0], cut[1].results[0], cut[2].results[0], again.results[0]),
    )
    order = [
        sent[0],
        cut[0],
        kept,
        other,
        sent[1],
        cut[1],
        sent[2],
        cut[2],
        sent[3],
        cut[3],
        again,
        end,
    ]
    expected = [
        sent[0],
        kept,
        other,
        sent[1],
        cut[0],
        sent[2],
        cut[1],
        sent[3],
        cut[2],
        cut[3],
        again,
        end,
    ]
    assert continued_late(order) == expected
    early = replace(other, sources=(cut[0].results[0],))
    assert continued_late([sent[0], cut[0], early, end]) == [sent[0], cut[0], early, end], (
        "read before"
    )
    assert continued_late([replace(sent[0], asynchronous=False), cut[0], end])[1] == cut[0], (
        "nothing to wait for"
    )


def test_the_next_message_of_a_reduced_gradient_starts_a_few_products_later() -> None:
    """Compute does not wait for a reduction to pack what goes over another axis; a third message
    does not start before the second."""
    first = message(0, "reduce_scatter")
    second = message(first.results[0], axes=(1,))
    third = message(second.results[0], "all_gather", axes=(2,))
    products = [product(1) for _ in range(2 * PRODUCTS)]
    end = Update(id="update.optimizer", gradients=third.results)
    order = [first, second, third, *products, end]
    expected = [
        first,
        *products[: PRODUCTS - 1],
        second,
        *products[PRODUCTS - 1 : 2 * PRODUCTS - 1],
        third,
        products[-1],
        end,
    ]
    assert continued_late(order) == expected
    assert continued_late([first, second, third, end]) == [first, second, third, end], (
        "before what reads it"
    )
    between = message(2, axes=(1,))
    early = replace(end, gradients=second.results)
    assert continued_late([first, second, between, early]) == [first, between, second, early], (
        "nothing waits for it"
    )


def test_each_step_of_a_chain_of_gathers_starts_a_layer_before_the_next() -> None:
    """A gather over one axis and then over another: compute does not wait for the second where a
    layer reads it."""
    instructions: list[Instruction] = []
    gathers: dict[str, str] = {}
    chains: list[list[Communicate]] = []
    for layer in range(4):
        first = message(layer, "all_gather", (1,), "forward")
        second = message(first.results[0], "all_gather", (0,), "forward")
        chains.append([first, second])
        instructions += [first, second, product(second.results[0], "forward")]
        gathers |= {first.id: f"{layer}:forward", second.id: f"{layer}:forward"}
    end = Update(
        id="update.optimizer",
        gradients=tuple(writes(i)[0] for i in instructions if isinstance(i, Compute)),
    )
    costing = table_of(
        ask_for("mlp", 4), "a=2,b=2", cluster=load_cluster("dgx-h100", num_devices=4)
    ).costing
    order = finish(
        [*instructions, end],
        gathers,
        {},
        set(),
        costing,
        mesh_of("a=2,b=2"),
        1,
        frozenset(),
        overlaps=True,
        buffered=True,
    )
    ids = [instruction.id for instruction in order]
    products = [ids.index(one.id) for one in instructions if isinstance(one, Compute)]
    for layer, (first, second) in enumerate(chains[2:]):
        assert (
            ids.index(first.id)
            < products[layer]
            < ids.index(second.id)
            < products[layer + 1]
            < products[layer + 2]
        )
    assert max(ids.index(one.id) for one in chains[0]) < products[0]


def test_chains_at_random_read_what_is_written() -> None:
    """The best choices under random costs, on three axes: lowering checks that a program reads
    nothing before it is written."""
    cluster = load_cluster("dgx-h100", num_devices=8)
    table = table_of(
        ask_for("gpt", 8, dtype="float32", compute="bfloat16"), "a=2,b=2,c=2", cluster=cluster
    )
    for seed in range(4):
        choices = read_choices(table, chosen_at_random(problem_of(table), seed))
        lower(table.model, mesh_of("a=2,b=2,c=2"), choices, table.costing)


def gradients(program: Program) -> int:
    """The most bytes of gradients that are held at once."""
    return max(held[CATEGORIES.index("gradients")] for held in footprint(program).during)


def test_gradients_leave_beside_backward() -> None:
    """Backward goes on after most buckets have started; nothing reads them before the update."""
    plan = gpt("*=ddp", bucket=10_000)
    buckets = positions(plan, lambda i: isinstance(i, Communicate) and i.phase == "update")
    last = positions(plan, lambda i: i.phase == "backward")[-1]
    assert len(buckets) >= 4
    assert sum(at < last for at in buckets) >= len(buckets) - 1
    reduced = {v for at in buckets for v in writes(plan.program.instructions[at])}
    readers = positions(
        plan, lambda i: bool(reduced & set(reads(i))) and i.kind != "view" and i.phase != "forward"
    )
    assert readers == [update_at(plan)]


def test_all_gradients_are_there_before_the_update() -> None:
    plan = gpt("*=ddp")
    written = {v for i in plan.program.instructions[: update_at(plan)] for v in writes(i)}
    assert set(plan.program.instructions[update_at(plan)].gradients) <= written  # type: ignore[union-attr]


def test_updated_pieces_are_gathered_a_layer_ahead_and_kept() -> None:
    """ZeRO-1: every parameter is gathered once, in forward, before the layer in front of its own
    is read; nothing is sent after the update, and backward reads what forward gathered."""
    plan = gpt("*=zero1")
    instructions = plan.program.instructions
    held = {state.value: state.name for state in plan.program.parameters}
    assert all(
        state.shard == state.value and state.stored == state.updated
        for state in plan.program.parameters
    )
    gathers = [
        (at, i)
        for at, i in enumerate(instructions)
        if isinstance(i, Communicate) and i.kind == "all_gather"
    ]
    assert sorted(held[s] for _, i in gathers for s in i.sources) == sorted(held.values())
    assert {i.phase for _, i in gathers} == {"forward"} and all(i.asynchronous for _, i in gathers)
    assert not [
        i.id
        for i in instructions[update_at(plan) + 1 :]
        if isinstance(i, Communicate) and i.kind != "all_reduce"
    ]
    starts = {layer: max(at for at, i in gathers if f".h.{layer}." in i.id) for layer in range(4)}
    read = {
        layer: min(
            positions(plan, lambda i, layer=layer: i.kind == "gemm" and f"h.{layer}." in i.path)
        )
        for layer in range(4)
    }
    assert all(starts[layer + 1] < read[layer] < read[layer + 1] for layer in range(3))
    whole = {result for _, i in gathers for result in i.results}
    assert whole & {v for i in instructions if i.phase == "backward" for v in i.frees}


@pytest.mark.parametrize("compute", ["", "bfloat16"])
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_layer_is_gathered_while_the_one_before_it_runs(phase: str, compute: str) -> None:
    """ZeRO-3: a layer's gathers start after those of the layer before, and before the first op
    that reads what those gathered. Biases lie otherwise than matrices, and norms stay in
    float32."""
    plan = gpt("*=zero3", compute=compute)
    order = range(4) if phase == "forward" else range(3, -1, -1)
    instructions = plan.program.instructions

    def starts(layer: int) -> list[int]:
        return positions(
            plan, lambda i: i.kind == "all_gather" and i.phase == phase and f"h.{layer}." in i.id
        )

    def needed(layer: int) -> int:
        gathered = {v for at in starts(layer) for v in writes(instructions[at])}
        return positions(
            plan, lambda i: i.kind != "view" and bool(gathered & {seen(v) for v in reads(i)})
        )[0]

    looks = {writes(i)[0]: reads(i)[0] for i in instructions if i.kind == "view" and reads(i)}

    def seen(value: int) -> int:
        return seen(looks[value]) if value in looks else value

    for before, layer in itertools.pairwise(order):
        assert len(starts(layer)) in ((1, 2, 3) if compute else (1, 2))
        assert max(starts(before)) < min(starts(layer))
        assert max(starts(layer)) < needed(before) < needed(layer)


def test_gathers_of_a_layer_go_together() -> None:
    """One message a layer, phase and split dim, of all its parameters."""
    plan = gpt("*=zero3")
    gathers = [
        i
        for i in plan.program.instructions
        if isinstance(i, Communicate) and i.kind == "all_gather" and i.phase == "forward"
    ]
    in_layers = [i for i in gathers if ".h." in i.id]
    assert sum(len(i.sources) for i in gathers) == len(plan.program.parameters)
    assert len(in_layers) <= 2 * 4


@pytest.mark.parametrize("model", ["gpt", "mlp", "lstm", "cnn"])
def test_the_loss_goes_along_with_the_gradients(model: str) -> None:
    """Data parallel, a step sends its buckets and nothing else: the loss rides, and targets are
    counted by every rank."""
    plan = planned(ask_for(model), "dp=4", ("*=ddp",))
    messages = [
        i for i in plan.program.instructions if isinstance(i, Communicate) and i.kind != "slice"
    ]
    assert {i.phase for i in messages} == {"update"}
    assert sum(shape == () for i in messages for shape in i.shapes) == 1
    update = plan.program.instructions[update_at(plan)]
    assert isinstance(update, Update)
    assert sum(len(i.sources) for i in messages) == len(set(update.gradients)) + 1


@pytest.mark.parametrize("model", ["gpt", "mlp", "cnn"])
def test_backward_does_not_wait_for_the_reported_loss(model: str) -> None:
    """A message that only the loss needs is asynchronous, and what reads it comes after all that
    trains."""
    plan = planned(ask_for(model), "dp=4", ("*=zero3",))
    instructions = plan.program.instructions
    trains: set[int] = {s.value for s in plan.program.parameters}
    for instruction in reversed(instructions):
        if isinstance(instruction, Update) or trains & set(writes(instruction)):
            trains.update(reads(instruction))
    reported = positions(plan, lambda i: isinstance(i, Communicate) and not trains & set(writes(i)))
    end = max(
        at for at, i in enumerate(instructions) if isinstance(i, Update) or trains & set(writes(i))
    )
    assert reported
    for at in reported:
        message = instructions[at]
        assert isinstance(message, Communicate) and message.asynchronous
        assert (
            min(
                positions(plan, lambda i, m=message: bool(set(m.results) & set(reads(i)))),
                default=end + 1,
            )
            > end
        )
    assert plan.program.loss in {v for i in instructions for v in writes(i)}


def test_what_backward_reads_is_not_put_off() -> None:
    plan = gpt("*=tensor", mesh="tp=4")
    seen: set[int] = {s.value for s in (*plan.program.parameters, *plan.program.inputs)}
    for instruction in plan.program.instructions:
        assert set(reads(instruction)) <= seen, instruction.id
        seen.update(writes(instruction))


def test_large_gathers_go_alone_and_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes in one buffer is packed, and taken out of its rows; a piece along the leading
    sub-dim that goes alone is neither."""

    def gathers(plan: Planned) -> list[Communicate]:
        found = [
            i
            for i in plan.program.instructions
            if isinstance(i, Communicate) and i.kind == "all_gather"
        ]
        return [i for i in found if i.phase == "forward" and i.asynchronous]

    together = gathers(gpt("*=zero3"))
    assert max(len(i.sources) for i in together) > 1
    assert sum(i.packing + i.unpacking for i in together) > 0
    size = 2048
    monkeypatch.setattr("planner.lowering.prefetch.ALONE", size)
    apart = gathers(gpt("*=zero3"))
    assert {s for i in apart for s in i.sources} == {s for i in together for s in i.sources}
    large = [i for i in apart if i.nbytes >= size and len(i.sources) == 1]
    assert large and max(len(i.sources) for i in apart) > 1
    for one in large:
        assert one.packing + one.unpacking == 0 or one.gather != 0
