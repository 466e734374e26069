"""Loss and every gradient of plans on real gloo ranks against one process, in float64, for every
kind of strategy.

All plans of one number of ranks run in one group of processes: `run_all` is what each rank does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from small_plans import Planned, ask_for, planned

import planner.lowering.early
from cost_models.cluster import load_cluster
from planner.plans.words import atom_names, op_words
from planner.program.actions import STEP
from planner.program.program import Communicate, Compute, Program
from planner.strategy.pinned import HEAVY
from planner.strategy.strategies import options_of
from planner.workload.ask import Ask
from planner.workload.ask import build as build_workload
from planner.workload.precision import precision_of
from runtime.executor import Executor, gather_buffers, gather_parameters
from runtime.groups import Groups, axes_used, make_groups
from runtime.launcher import launch
from runtime.parameters import build
from runtime.reference import Reference, reference_run
from runtime.verify import Verification, compare
from runtime.worker import Place, join

#: Relative to the largest element of the tensor.
TOLERANCE = 1e-9

MODELS = ("lstm", "bilstm", "mlp", "cnn", "gpt", "llama")

#: What a step may contain, under some of the kinds.
CONTENTS = ("dropped", "normed", "nested", "of_dict")
SOME = {2: ("ddp", "zero3", "tensor"), 4: ("free 2x2", "zero3", "dp x tensor, zero3")}

#: name -> (mesh, pins), on 2 and on 4 ranks.
KINDS: dict[int, dict[str, tuple[str, tuple[str, ...]]]] = {
    2: {
        "free": ("a=2", ()),
        "ddp": ("dp=2", ("*=ddp",)),
        "zero1": ("dp=2", ("*=zero1",)),
        "zero3": ("dp=2", ("*=zero3",)),
        "tp": ("tp=2", ()),
        "tensor": ("tp=2", ("*=tensor",)),
    },
    4: {
        "free": ("a=4", ()),
        "free 2x2": ("a=2,b=2", ()),
        "ddp": ("dp=4", ("*=ddp",)),
        "zero1": ("dp=4", ("*=zero1",)),
        "zero3": ("dp=4", ("*=zero3",)),
        "tensor": ("tp=4", ("*=tensor",)),
        "dp x tensor, zero1": ("dp=2,tp=2", ("*=zero1", "*=tensor")),
        "dp x tensor, zero3": ("dp=2,tp=2", ("*=zero3", "*=tensor")),
        "tensor x dp, ddp": ("tp=2,dp=2", ("*=ddp", "*=tensor")),
        "three axes": ("dp=2,tp=2,x=1", ("*=tensor",)),
    },
}

#: name -> (model, sizes, {op or module: the sub-dim that it splits}): what costs would not choose
#: at these sizes.
WORDS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "vocabulary-parallel embedding and loss": (
        "gpt",
        {},
        {"wte": "vocab", "lm_head": "vocab", "cross_entropy": "vocab"},
    ),
    "vocabulary-parallel, weights not tied": (
        "gpt",
        {"tied": "false"},
        {"wte": "vocab", "cross_entropy": "vocab"},
    ),
    "vocabulary-parallel LSTM embedding": ("lstm", {}, {"embedding": "vocab"}),
    "hidden units of each LSTM gate": ("lstm", {}, {"shardwright.lstm": "hidden"}),
    "hidden units, both directions": ("bilstm", {}, {"shardwright.lstm": "hidden units"}),
    "key heads": ("llama", {}, {"attn": "kv_heads"}),
    "heads inside fused QKV": ("gpt", {}, {"attn": "heads"}),
    "sequence-sharded LayerNorm": ("gpt", {}, {"native_layer_norm": "sequence"}),
    "Megatron with sequence-sharded norms": (
        "gpt",
        {},
        {"attn": "heads", "mlp": "mlp", "native_layer_norm": "sequence"},
    ),
    "channels in and out": (
        "cnn",
        {},
        {"blocks.0.conv": "width", "blocks.1.conv": "width", "linear": "classes"},
    ),
}
#: name -> (model, what the ask has beside): other steps of the same models. A rounding to bfloat16
#: is 4e-3, and there are many.
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped": ("gpt", {"clip_norm": 0.01}),
    "clipped LSTM": ("lstm", {"clip_norm": 0.01}),
    "mixed": ("gpt", {"dtype": "float32", "compute": "bfloat16"}),
    "mixed batch norm": ("normed", {"dtype": "float32", "compute": "bfloat16", "clip_norm": 1.0}),
    "short with a master copy": ("gpt", precision_of("bf16-master").fields()),
    "short batch norm": ("normed", precision_of("bf16-master").fields()),
    "short with a master copy, reduced short": (
        "mlp",
        {**precision_of("bf16-master", "bf16").fields(), "clip_norm": 0.01},
    ),
    "mixed, reduced short": (
        "gpt",
        {**precision_of("bf16-mixed", "bf16").fields(), "clip_norm": 0.01},
    ),
    "short, scaled": ("gpt", {**precision_of("fp16-mixed").fields(), "clip_norm": 0.01}),
}
SHORT_TOLERANCE = 0.15

#: (model, kind) -> the number of microbatches of 20 samples.
MICROBATCHES: dict[int, dict[tuple[str, str], int]] = {
    2: {
        ("gpt", "zero3"): 5,
        ("gpt", "tensor"): 4,
        ("lstm", "ddp"): 4,
        ("cnn", "zero1"): 2,
        ("seq2seq-lstm", "zero1"): 5,
        ("dropped", "zero3"): 4,
    },
    4: {("gpt", "dp x tensor, zero3"): 5, ("dropped", "ddp"): 2},
}

RANDOM = {2: range(2), 4: range(3)}


@dataclass(frozen=True)
class Case:
    """Every rank's program and the ask whose workload it trains."""

    ask: Ask
    programs: tuple[Program, ...]


def run_all(payload: tuple[int, dict[str, Case]], emit: Any) -> dict[str, Verification | None]:
    """By name: how far a program's first loss and gradients are from those of one process (None
    on all ranks but the first)."""
    num_ranks, cases = payload
    out: dict[str, Verification | None] = {}
    groups: dict[Any, Groups] = {}
    references: dict[str, Reference] = {}
    with join(num_ranks) as place:
        for name, case in cases.items():
            try:
                out[name] = run_one(case, place, groups, references)
            except Exception as error:
                raise RuntimeError(f"{name}: {error}") from error
    return out


def run_one(
    case: Case, place: Place, groups: dict[Any, Groups], references: dict[str, Reference]
) -> Verification | None:
    """One step of one program. Process groups and the steps of one process are made once for all
    programs that share them."""
    program = case.programs[place.rank]
    key = (program.mesh.sizes, tuple(axes_used(program)))
    if key not in groups:
        groups[key] = make_groups(program, place.rank)
    workload = build(lambda: build_workload(case.ask), 0)
    executor = Executor(
        program,
        workload,
        rank=place.rank,
        groups=groups[key],
        device=place.device,
        keep_gradients=True,
    )
    loss = executor.step(workload.batch)
    gradients, buffers = gather_parameters(executor, executor.gradients), gather_buffers(executor)
    if place.rank != 0:
        return None
    asked = repr(case.ask)
    if asked not in references:
        references[asked] = reference_run(
            lambda: build_workload(case.ask), program, seed=0, num_steps=1
        )
    return compare([loss], gradients, {}, references[asked], buffers)


def plans(num_ranks: int) -> dict[str, Planned]:
    """All plans for a number of ranks."""
    out = {}
    for model in (*MODELS, *CONTENTS):
        ask = ask_for(model, num_ranks)
        for kind in KINDS[num_ranks] if model in MODELS else SOME[num_ranks]:
            out[f"{model}: {kind}"] = planned(ask, *KINDS[num_ranks][kind])
        for seed in RANDOM[num_ranks] if model in MODELS else RANDOM[num_ranks][:1]:
            mesh = "a=2" if num_ranks == 2 else ("a=2,b=2", "a=4")[seed % 2]
            out[f"{model}: random {seed}"] = planned(ask, mesh, seed=seed)
    for name, (model, more) in STEPS.items():
        for kind in (
            ("ddp", "zero3", "tensor")
            if num_ranks == 2
            else ("ddp", "tensor", "dp x tensor, zero3")
        ):
            out[f"{name}: {kind}"] = planned(
                ask_for(model, num_ranks, **more), *KINDS[num_ranks][kind]
            )
        if name == "mixed":
            for kind in ("ddp", "zero3"):
                out[f"{name}: {kind}, cast again"] = planned(
                    ask_for(model, num_ranks, **more), *KINDS[num_ranks][kind], recast=True
                )
    for (model, kind), microbatches in MICROBATCHES[num_ranks].items():
        ask = ask_for(model, num_ranks, batch=20, microbatches=microbatches)
        plan = planned(ask, *KINDS[num_ranks][kind])
        out[f"{model} in {microbatches}: {kind}"] = plan
    for seed in range(2):  # sums over microbatches in other layouts, also in pieces
        ask = ask_for(("gpt", "lstm")[seed], num_ranks, batch=20, microbatches=4)
        out[f"in 4: random {seed}"] = planned(ask, f"a={num_ranks}", seed=seed)
    for name, (model, sizes, words) in WORDS.items():
        ask = ask_for(model, num_ranks, **sizes)
        out[f"{model}: {name}"] = planned(ask, f"t={num_ranks}", words=words)
        if num_ranks == 4:
            out[f"{model}: dp x {name}"] = planned(ask, "dp=2,t=2", words=words, axis=1)
    return out


def overlapped(num_ranks: int) -> dict[str, Case]:
    """Programs for a device that runs large messages of backward beside its products, all
    messages taken for large."""
    cluster = load_cluster("dgx-h100", num_devices=num_ranks)
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner.lowering.early, "SMALL", 0)
        for model in ("mlp", "gpt", "llama"):
            for kind in ("tensor",) if num_ranks == 2 else ("tensor", "dp x tensor, zero3"):
                plan = planned(ask_for(model, num_ranks), *KINDS[num_ranks][kind], cluster=cluster)
                messages = [
                    i
                    for i in plan.program.instructions
                    if isinstance(i, Communicate) and i.phase == "backward"
                ]
                assert any(i.asynchronous for i in messages), (model, kind)
                out[f"{model}: {kind}, beside products"] = Case(plan.ask, plan.programs)
    plan = planned(
        ask_for("llama", num_ranks), *KINDS[num_ranks]["zero3"], cluster=cluster, bucket=1000
    )
    assert sum(bool(i.after) for i in plan.program.instructions if isinstance(i, Communicate)) >= 3
    out["llama: zero3, few under way"] = Case(plan.ask, plan.programs)
    return out


def broken(program: Program) -> Program:
    """The program with its last all-reduce of a gradient taking the maximum instead of the sum."""
    at = max(
        i
        for i, x in enumerate(program.instructions)
        if isinstance(x, Communicate) and x.kind == "all_reduce" and x.phase == "update"
    )
    wrong = replace(program.instructions[at], reduce="max")
    return replace(
        program, bodies={STEP: (*program.instructions[:at], wrong, *program.instructions[at + 1 :])}
    )


@dataclass(frozen=True)
class Ran:
    num_ranks: int
    plans: dict[str, Planned]
    overlapped: tuple[str, ...]
    found: dict[str, Any]


@pytest.fixture(scope="module", params=[2, 4])
def ran(request: pytest.FixtureRequest) -> Ran:
    made = plans(request.param)
    cases = {name: Case(plan.ask, plan.programs) for name, plan in made.items()}
    ddp = made["mlp: ddp"]
    beside = overlapped(request.param)
    cases |= beside
    cases["broken"] = Case(ddp.ask, (broken(ddp.program),) * request.param)
    found = launch("test_numerics:run_all", request.param, (request.param, cases))[0]
    return Ran(request.param, made, tuple(beside), found)


def test_every_plan_trains_as_one_process_does(ran: Ran) -> None:
    worst = {name: _worst(ran.found[name]) for name in (*ran.plans, *ran.overlapped)}
    print(
        *(
            f"{error:.1e} {name}"
            for name, error in sorted(worst.items(), key=lambda item: -item[1])[:5]
        ),
        sep="\n",
    )
    assert {
        name: ran.found[name] for name, error in worst.items() if not error <= _tolerance(name)
    } == {}
    assert all(ran.found[name].loss_error < 0.01 for name in ran.plans)


def _tolerance(name: str) -> float:
    return SHORT_TOLERANCE if name.startswith(("mixed", "short")) else TOLERANCE


def test_clipping_is_seen(ran: Ran) -> None:
    program = ran.plans["clipped: tensor"].program
    assert [i.op for i in program.instructions if i.path == "clip" and isinstance(i, Compute)] == [
        "shardwright.square_sum",
        "shardwright.clipped",
    ]
    assert [
        i.nbytes for i in program.instructions if i.path == "clip" and isinstance(i, Communicate)
    ] == [8]


def test_the_error_of_sums_of_gradients_in_bfloat16(ran: Ran) -> None:
    """A rounding of 8 bits at every partial sum; one device makes one rounding."""
    name = "ddp" if ran.num_ranks == 2 else "dp x tensor, zero3"
    errors = ran.found[f"mixed, reduced short: {name}"]
    assert 0 < errors.gradient_error < ran.num_ranks * 2**-7


def test_mixed_precision_sums_gradients_in_float32(ran: Ran) -> None:
    program = ran.plans["mixed: ddp"].program
    sent = {
        d
        for i in program.instructions
        if isinstance(i, Communicate) and i.phase == "update"
        for d in i.dtypes
    }
    assert sent == {"float32"}
    assert any(
        "bfloat16" in i.dtypes
        for i in program.instructions
        if isinstance(i, Compute) and i.op == "aten.mm.default"
    )


def test_mixed_precision_gathers_what_it_computes_with(ran: Ran) -> None:
    """The pieces of weights in bfloat16, in forward and again in backward, and trains as
    autocast in one process does."""
    name = "mixed: zero3" if ran.num_ranks == 2 else "mixed: dp x tensor, zero3"
    sent = [
        i
        for i in ran.plans[name].program.instructions
        if isinstance(i, Communicate) and i.kind == "all_gather"
    ]
    assert {i.phase for i in sent if "bfloat16" in i.dtypes and "weight" in i.path} == {
        "forward",
        "backward",
    }
    assert ran.found[name].loss_error < 0.002


def test_casting_again_for_backward_changes_no_gradient(ran: Ran) -> None:
    once, again = (ran.found[f"mixed: ddp{how}"] for how in ("", ", cast again"))
    assert once.loss_error == pytest.approx(again.loss_error, rel=1e-6)
    assert once.gradient_error == pytest.approx(again.gradient_error, rel=1e-6)


def _worst(found: Verification) -> float:
    return max(found.loss_error, found.gradient_error, found.buffer_error)


def test_a_wrong_program_is_seen(ran: Ran) -> None:
    assert ran.found["broken"].gradient_error > 1e-3


def test_every_parameter_is_compared(ran: Ran) -> None:
    for name, plan in ran.plans.items():
        wanted = [parameter for parameter, _ in plan.workload.module.named_parameters()]
        assert [state.name for state in plan.program.parameters] == wanted, name


def test_named_plans_split_what_their_name_says(ran: Ran) -> None:
    for name, (model, _, words) in WORDS.items():
        for title, axis in ((f"{model}: {name}", 0), (f"{model}: dp x {name}", 1)):
            if title in ran.plans:
                split = words_split(ran.plans[title], words, axis)
                assert {
                    key: found for key, found in split.items() if found != {words[key]}
                } == {}, title


def words_split(plan: Planned, words: dict[str, str], axis: int) -> dict[str, set[str]]:
    """By key: the sub-dims that the ops which have the wanted one split on an axis."""
    names = atom_names(plan.model, plan.workload)
    out: dict[str, set[str]] = {key: set() for key in words}
    for index in plan.choices.strategies:
        node, dims = plan.model.graph.nodes[index], plan.model.dims.ops[index]
        key = next((k for k in words if k in node.op or k in node.path), None)
        able = {names.get(dims.atoms[o.number]) for o in options_of(dims) if o.kind == "split"}
        if key is not None and words[key] in able:
            out[key].add(op_words(plan.model, names, plan.choices, node, axis, plan.mesh))
    return out


def test_pinned_tensor_parallel_splits_all_heavy_ops(ran: Ran) -> None:
    """Every product, convolution, attention, LSTM and lookup is split on the tensor axis, and
    not at the batch."""
    for name, plan in ran.plans.items():
        if "tensor" not in name:
            continue
        batch, axis = plan.model.batch_atoms, plan.mesh.names.index("tp")
        for index, strategy in plan.choices.strategies.items():
            dims = plan.model.dims.ops[index]
            able = any(
                o.kind == "split"
                and dims.atoms[o.number] not in batch
                and dims.sizes[o.number] % plan.mesh.sizes[axis] == 0
                for o in options_of(dims)
            )
            if dims.signature.kind in HEAVY and able:
                option = strategy.options[axis]
                assert option.kind == "split" and dims.atoms[option.number] not in batch, (
                    name,
                    plan.model.graph.nodes[index],
                )
        assert any(is_split_parameter(plan, state.name) for state in plan.program.parameters), name


def is_split_parameter(plan: Planned, name: str) -> bool:
    state = next(state for state in plan.program.parameters if state.name == name)
    return any(placement >= 0 for placement in state.stored)


def test_tied_weights_are_one_parameter_with_one_gradient(ran: Ran) -> None:
    tied, free = ran.plans["gpt: ddp"], ran.plans["gpt: vocabulary-parallel, weights not tied"]
    assert "lm_head.weight" not in {state.name for state in tied.program.parameters}
    assert {"wte.weight", "lm_head.weight"} <= {state.name for state in free.program.parameters}
