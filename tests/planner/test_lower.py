"""Lowered programs: values live from their writer to their last reader, and what is communicated
is what theory says."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import pytest
from small_plans import Planned, ask_for, planned

from cost_models.cluster import load_cluster
from cost_models.memory import dtype_bytes
from planner.graph.layout import local_shape
from planner.lowering.lower import lower
from planner.program.copies import slice_copies
from planner.program.program import Communicate, Compute, Program, Update, reads, writes

PLANS = [
    ("gpt", "dp=4", ("*=ddp",), None),
    ("gpt", "dp=4", ("*=zero1",), None),
    ("gpt", "dp=4", ("*=zero3",), None),
    ("gpt", "tp=4", ("*=tensor",), None),
    ("gpt", "dp=2,tp=2", ("*=zero3", "*=tensor"), None),
    ("lstm", "tp=2", ("*=tensor",), None),
    ("cnn", "dp=2,tp=2", ("*=zero1",), None),
    ("mlp", "a=1", (), None),
    ("bilstm", "a=4", (), None),
    *(
        (model, "a=2,b=2", (), seed)
        for model in ("gpt", "lstm", "bilstm", "cnn", "mlp")
        for seed in (0, 1)
    ),
]
every_plan = pytest.mark.parametrize(("model", "mesh", "pins", "seed"), PLANS)


@cache
def plan(model: str, mesh: str, pins: tuple[str, ...] = (), seed: int | None = None) -> Planned:
    return planned(
        ask_for(model, **({"layers": 3} if model == "gpt" else {})), mesh, pins, seed=seed
    )


def base_of(program: Program) -> dict[int, int]:
    """The value whose memory each value stands in: views, and slices that copy nothing, have
    none of their own."""
    base: dict[int, int] = {}
    for instruction in program.instructions:
        for value in writes(instruction):
            slices = (
                isinstance(instruction, Communicate)
                and instruction.kind == "slice"
                and not slice_copies(instruction)
            )
            looks = (instruction.kind == "view" or slices) and reads(instruction)
            base[value] = base.get(reads(instruction)[0], reads(instruction)[0]) if looks else value
    return base


@every_plan
def test_values_live_from_their_writer_to_their_last_reader(
    model: str, mesh: str, pins: tuple[str, ...], seed: int | None
) -> None:
    program = plan(model, mesh, pins, seed).program
    given = (
        {s.value for s in program.inputs}
        | {s.value for s in program.parameters}
        | {s.shard for s in program.parameters}
    )
    kept = {*given, program.loss}
    base, written, freed = base_of(program), set(given), set()
    for instruction in program.instructions:
        for value in reads(instruction):
            assert value in written, (instruction.id, value)
            assert value not in freed and base.get(value, value) not in freed, (
                instruction.id,
                value,
            )
        for value in writes(instruction):
            assert value not in written or value in {s.value for s in program.parameters}, (
                instruction.id,
                value,
            )
            written.add(value)
        for value in instruction.frees:
            assert value in written and value not in freed and value not in kept, (
                instruction.id,
                value,
            )
            freed.add(value)
    left = {
        v for v in written - freed - kept if program.value_bytes[v] and base.get(v, v) not in kept
    }
    assert left == set()


@every_plan
def test_nothing_is_held_longer_than_it_is_used(
    model: str, mesh: str, pins: tuple[str, ...], seed: int | None
) -> None:
    """A value is freed where it, or a view of it, is read last (or where it is written, if
    nobody reads it)."""
    program = plan(model, mesh, pins, seed).program
    base, last = base_of(program), {}
    for position, instruction in enumerate(program.instructions):
        for value in (*reads(instruction), *writes(instruction)):
            last[base.get(value, value)] = position
    for position, instruction in enumerate(program.instructions):
        for value in instruction.frees:
            if program.value_bytes[value]:
                assert position == last[base.get(value, value)], (instruction.id, value)


@every_plan
def test_names_sizes_and_order(
    model: str, mesh: str, pins: tuple[str, ...], seed: int | None
) -> None:
    found = plan(model, mesh, pins, seed)
    program, instructions = found.program, found.program.instructions
    assert len({i.id for i in instructions}) == len(instructions)
    assert sum(isinstance(i, Update) for i in instructions) == 1
    update = next(i for i in instructions if isinstance(i, Update))
    assert len(update.gradients) == len(program.parameters)
    for state in program.parameters:
        nbytes = math.prod(
            local_shape(state.subshape, state.stored, found.mesh.sizes)
        ) * dtype_bytes(state.dtype)
        assert program.value_bytes[state.value] == nbytes
    for instruction in instructions:
        assert instruction.time >= 0.0
        if isinstance(instruction, Compute) and instruction.kind != "view":
            for value, shape, dtype in zip(
                instruction.results, instruction.shapes, instruction.dtypes, strict=True
            ):
                assert value is None or program.value_bytes[value] == math.prod(
                    shape
                ) * dtype_bytes(dtype)
        if isinstance(instruction, Communicate):
            assert (
                len(instruction.sources)
                == len(instruction.results)
                == len(instruction.shapes)
                == len(instruction.expanded)
            )
            before, after = (
                sum(map(math.prod, x)) for x in (instruction.expanded, instruction.shapes)
            )
            size = math.prod(found.mesh.sizes[a] for a in instruction.axes)
            scale = {"all_gather": size, "reduce_scatter": 1 / size, "slice": 1 / size}.get(
                instruction.kind, 1
            )
            whole = after if instruction.kind == "all_gather" else before
            nbytes = whole * dtype_bytes(instruction.dtypes[0])
            # This is rank 0, whose pieces are the largest.
            if any((*instruction.gather_pieces, *instruction.split_pieces)):
                assert (
                    after <= before * size
                    if instruction.kind == "all_gather"
                    else after >= before / size
                )
                assert instruction.nbytes >= nbytes
            else:
                assert after == before * scale
                assert instruction.nbytes == nbytes


# ------------------------------------------------------------------------------------------ volumes


def moved(
    program: Program, *, phases: tuple[str, ...] = ("forward", "backward", "update"), least: int = 9
) -> Counter[str]:
    """Bytes of whole buffers by kind of collective, without scalars (the loss and its counts)."""
    out: Counter[str] = Counter()
    for i in program.instructions:
        if (
            isinstance(i, Communicate)
            and i.kind != "slice"
            and i.phase in phases
            and i.nbytes >= least
        ):
            out[i.kind] += i.nbytes - sum(
                dtype_bytes(d) for d, shape in zip(i.dtypes, i.shapes, strict=True) if shape == ()
            )
    return out


def parameter_bytes(found: Planned) -> int:
    return sum(
        math.prod(math.prod(d) for d in s.subshape) * dtype_bytes(s.dtype)
        for s in found.program.parameters
    )


@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt", "lstm"])
def test_data_parallel_moves_one_all_reduce_of_all_gradients(model: str) -> None:
    """Each gradient once: those of an LSTM's two biases are the same tensor."""
    found = plan(model, "dp=4", ("*=ddp",))
    graph = found.model.graph
    distinct = {found.model.roots[p.gradient].value for p in graph.parameters}
    assert (len(distinct) < len(graph.parameters)) == (model == "lstm")
    assert moved(found.program) == {"all_reduce": 8 * sum(graph.values[v].numel for v in distinct)}


@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt"])
def test_zero1_moves_one_reduce_scatter_and_one_gather(model: str) -> None:
    """2 W (d - 1) / d, as an all-reduce: in halves."""
    found = plan(model, "dp=4", ("*=zero1",))
    assert moved(found.program) == {
        "reduce_scatter": parameter_bytes(found),
        "all_gather": parameter_bytes(found),
    }


@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt"])
def test_zero3_moves_two_gathers_and_one_reduce_scatter(model: str) -> None:
    """3 W (d - 1) / d. Backward gathers what it reads: no bias, and of lookups and the first
    layer no weight."""
    found = plan(model, "dp=4", ("*=zero3",))
    graph, roots = found.model.graph, found.model.roots
    read = {roots[v].value for n in graph.nodes if n.phase == "backward" for v in n.operands}
    again = sum(graph.values[p.value].numel * 8 for p in graph.parameters if p.value in read)
    assert 0 < again < parameter_bytes(found)
    assert moved(found.program, phases=("forward",)) == {"all_gather": parameter_bytes(found)}
    assert moved(found.program, phases=("backward",)) == {"all_gather": again}
    assert moved(found.program, phases=("update",)) == {"reduce_scatter": parameter_bytes(found)}


@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt", "llama"])
def test_zero3_in_mixed_precision_moves_what_is_computed_with(model: str) -> None:
    """Pieces are cast, and gathered in the format of products once for forward and again for
    backward; what is left in float32 (norms, tables) is gathered so. No whole weight stays from
    forward to backward."""
    ask = ask_for(
        model, dtype="float32", compute="bfloat16", **({"tied": "false"} if model == "gpt" else {})
    )
    found = planned(ask, "dp=4", ("*=zero3",))
    graph, roots, formats = found.model.graph, found.model.roots, found.model.formats
    phases = ("forward", "backward")
    read = {
        phase: {roots[v].value for n in graph.nodes if n.phase == phase for v in n.operands}
        for phase in phases
    }
    cast = {v for v in formats if graph.values[v].writer is not None}
    for n in graph.nodes:  # a parameter that is only cast is not gathered itself
        if n.results[0] in cast:
            read["forward"] -= {roots[v].value for v in n.operands}
    wanted = {
        phase: sum(
            v.numel * dtype_bytes(v.dtype)
            for v in graph.values
            if v.id in formats and v.id in values
        )
        for phase, values in read.items()
    }
    program = found.program
    assert {
        phase: moved(program, phases=(phase,)).get("all_gather", 0) for phase in phases
    } == wanted
    given = {state.value: state for state in program.parameters}
    casts = [
        i
        for i in program.instructions
        if isinstance(i, Compute) and given.keys() & set(reads(i)) and "bfloat16" in i.dtypes
    ]
    pieces = [
        math.prod(math.prod(d) for d in given[value].subshape) // 4
        for i in casts
        for value in reads(i)
    ]
    assert [math.prod(shape) for i in casts for shape in i.shapes] == pieces


@pytest.mark.parametrize(
    ("mesh", "pin"), [("dp=2", "*=ddp"), ("dp=2", "*=zero3"), ("tp=2", "*=tensor")]
)
def test_casting_again_holds_no_copy_of_a_parameter_between_forward_and_backward(
    mesh: str, pin: str
) -> None:
    ask = ask_for("llama", 2, dtype="float32", compute="bfloat16")
    programs = [planned(ask, mesh, (pin,), recast=recast).program for recast in (False, True)]
    for program, held in zip(programs, (True, False), strict=True):
        given = {state.value for state in program.parameters}
        casts = [
            i
            for i in program.instructions
            if isinstance(i, Compute) and given & set(reads(i)) and "bfloat16" in i.dtypes
        ]
        assert Counter(i.phase for i in casts)["backward"] == (0 if held else len(casts) / 2)
        last = {v: n for n, i in enumerate(program.instructions) for v in i.frees}
        turn = next(
            n
            for n, i in enumerate(program.instructions)
            if isinstance(i, Compute) and i.phase == "backward"
        )
        kept = [v for i in casts if i.phase == "forward" for v in writes(i) if last[v] >= turn]
        assert bool(kept) == held


def test_tensor_parallel_gpt_moves_four_all_reduces_a_layer() -> None:
    """Megatron's column-then-row pairs: attention and MLP each end in one all-reduce of batch x
    sequence x width, and so does the backward of each (MODELLING 5.1). Found by the planner on
    an NVLink node, without a word about it."""
    cluster = load_cluster("dgx-h100", num_devices=8)
    sizes = {"width": 2048, "heads": 16, "vocab": 32000, "positions": 1024, "seq": 1024}
    by_depth = [
        planned(ask_for("gpt", layers=n, dtype="bfloat16", **sizes), "tp=8", cluster=cluster)
        for n in (3, 4)
    ]
    activation = 8 * 1024 * 2048 * 2
    for phase in ("forward", "backward"):
        few, many = (moved(found.program, phases=(phase,)) for found in by_depth)
        many.subtract(few)
        assert {kind: nbytes / activation for kind, nbytes in many.items() if nbytes} == {
            "all_reduce": 2.0
        }
    for path, shard in (
        ("h.0.attn.qkv", 0),
        ("h.0.attn.proj", 1),
        ("h.0.mlp.fc", 0),
        ("h.0.mlp.proj", 1),
    ):
        state = next(s for s in by_depth[0].program.parameters if s.name == f"{path}.weight")
        whole, local = (
            [math.prod(d) for d in state.subshape],
            local_shape(state.subshape, state.stored, (8,)),
        )
        assert [a // b for a, b in zip(whole, local, strict=True)] == [
            8 if dim == shard else 1 for dim in (0, 1)
        ], path


@pytest.mark.parametrize(("model", "seed"), [("dropped", 0), ("gpt", 0), ("lstm", 1)])
def test_every_message_is_read(model: str, seed: int) -> None:
    """Also if backward keeps a small value of forward instead of having it sent by its hub."""
    program = planned(ask_for(model, 2), "a=2", seed=seed).program
    read = {value for one in program.instructions for value in reads(one)}
    read |= {program.loss, *(value for _, value in (*program.reported, *program.stores))}
    messages = [one for one in program.instructions if isinstance(one, Communicate)]
    assert messages and [one.id for one in messages if read.isdisjoint(one.results)] == []


def test_one_device_communicates_nothing() -> None:
    assert not any(isinstance(i, Communicate) for i in plan("mlp", "a=1").program.instructions)


def test_another_clusters_times_leave_the_program_alone() -> None:
    """A plan simulated on calibrated hardware is the same program: only seconds differ."""
    found = plan("gpt", "dp=2,tp=2", ("*=zero3", "*=tensor"))
    other = planned(
        found.ask, "dp=2,tp=2", cluster=load_cluster("dgx-h100", num_devices=4)
    ).table.costing
    timed = lower(found.model, found.mesh, found.choices, found.table.costing, timing=other)
    same = [(i.id, reads(i), writes(i), i.frees) for i in timed.instructions]
    assert same == [(i.id, reads(i), writes(i), i.frees) for i in found.program.instructions]
    assert [i.time for i in timed.instructions] != [i.time for i in found.program.instructions]
