"""Plans whose splits do not divide evenly, on real gloo ranks against one process: batch,
vocabulary, heads, hidden units, biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from small_plans import Planned, ask_for, planned, traced
from test_numerics import TOLERANCE, Case, Ran

from planner.plans.words import atom_names
from planner.predict.predict import memory_by_category
from planner.workload.ask import Ask
from planner.workload.ask import build as build_workload
from runtime.executor import Executor
from runtime.groups import make_groups
from runtime.launcher import launch
from runtime.parameters import build
from runtime.worker import join

#: Sizes that neither 2, 3 nor 4 ranks divide, where the model allows.
SIZES: dict[str, dict[str, int]] = {
    "lstm": {"vocab": 17, "embed": 5, "hidden": 7, "layers": 2, "seq": 5},
    "gru": {"vocab": 17, "embed": 5, "hidden": 7, "layers": 2, "seq": 5},
    "mlp": {"inputs": 13, "hidden": 25, "layers": 3, "outputs": 7},
    "cnn": {"channels": 5, "width": 7, "blocks": 2, "classes": 11, "image": 8},
    "gpt": {"layers": 2, "width": 35, "heads": 7, "vocab": 37, "positions": 8, "seq": 7},
}
BATCH = 11

KINDS: dict[int, dict[str, tuple[str, tuple[str, ...]]]] = {
    2: {
        "free": ("a=2", ()),
        "ddp": ("dp=2", ("*=ddp",)),
        "zero1": ("dp=2", ("*=zero1",)),
        "zero3": ("dp=2", ("*=zero3",)),
        "tensor": ("tp=2", ("*=tensor",)),
    },
    3: {
        "free": ("a=3", ()),
        "zero1": ("dp=3", ("*=zero1",)),
        "zero3": ("dp=3", ("*=zero3",)),
        "tensor": ("tp=3", ("*=tensor",)),
    },
    4: {
        "free": ("a=4", ()),
        "zero3": ("dp=4", ("*=zero3",)),
        "tensor": ("tp=4", ("*=tensor",)),
        "nested zero1": ("dp1=2,dp2=2", ("*=zero1",)),
        "nested zero3": ("dp1=2,dp2=2", ("*=zero3",)),
        "dp x tensor, zero1": ("dp=2,tp=2", ("*=zero1", "*=tensor")),
        "tensor x dp, zero3": ("tp=2,dp=2", ("*=zero3", "*=tensor")),
    },
}

#: name -> (model, {op or module: the sub-dim that it splits}).
WORDS: dict[str, tuple[str, dict[str, str]]] = {
    "vocabulary-parallel embedding and loss": (
        "gpt",
        {"wte": "vocab", "lm_head": "vocab", "cross_entropy": "vocab"},
    ),
    "vocabulary-parallel LSTM embedding": ("lstm", {"embedding": "vocab"}),
    "hidden units of each LSTM gate": ("lstm", {"shardwright.lstm": "hidden"}),
    "hidden units of each GRU gate": ("gru", {"shardwright.recurrent": "hidden"}),
    "heads inside fused QKV": ("gpt", {"attn": "heads"}),
    "sequence-sharded LayerNorm": ("gpt", {"native_layer_norm": "sequence"}),
    "channels in and out": (
        "cnn",
        {"blocks.0.conv": "width", "blocks.1.conv": "width", "linear": "classes"},
    ),
}


def asked(model: str, num_ranks: int) -> Ask:
    return ask_for(model, num_ranks, batch=BATCH, **SIZES[model])


def plans(num_ranks: int) -> dict[str, Planned]:
    out = {}
    for model in SIZES:
        for kind, (mesh, pins) in KINDS[num_ranks].items():
            out[f"{model}: {kind}"] = planned(asked(model, num_ranks), mesh, pins)
        for seed in range(2):
            mesh = "a=2,b=2" if num_ranks == 4 and seed else f"a={num_ranks}"
            out[f"{model}: random {seed}"] = planned(asked(model, num_ranks), mesh, seed=seed)
    for name, (model, words) in WORDS.items():
        out[f"{model}: {name}"] = planned(asked(model, num_ranks), f"t={num_ranks}", words=words)
        if num_ranks == 4:
            out[f"{model}: nested {name}"] = planned(
                asked(model, num_ranks), "dp=2,t=2", words=words, axis=1
            )
    return out


@pytest.fixture(scope="module", params=[2, 3, pytest.param(4, marks=pytest.mark.slow_matrix)])
def ran(request: pytest.FixtureRequest) -> Ran:
    made = plans(request.param)
    cases = {name: Case(plan.ask, plan.programs) for name, plan in made.items()}
    return Ran(
        request.param,
        made,
        (),
        launch("test_numerics:run_all", request.param, (request.param, cases))[0],
    )


def test_every_uneven_plan_trains_as_one_process_does(ran: Ran) -> None:
    worst = {
        name: max(ran.found[name].loss_error, ran.found[name].gradient_error) for name in ran.plans
    }
    print(
        *(
            f"{error:.1e} {name}"
            for name, error in sorted(worst.items(), key=lambda item: -item[1])[:5]
        ),
        sep="\n",
    )
    assert {name: ran.found[name] for name, error in worst.items() if not error <= TOLERANCE} == {}


def test_they_are_uneven(ran: Ran) -> None:
    """All but those where costs decide, at these sizes for running the whole model everywhere."""
    assert [
        name for name, plan in ran.plans.items() if plan.program.rank is None and "free" not in name
    ] == []


def test_batch_vocabulary_heads_and_hidden_units_are_split(ran: Ran) -> None:
    found: set[tuple[str, str]] = set()
    for title, plan in ran.plans.items():
        names = atom_names(*traced(plan.ask))
        for index, strategy in plan.choices.strategies.items():
            dims = plan.model.dims.ops[index]
            splits = [dims.atoms[o.number] for o in strategy.options if o.kind == "split"]
            found |= {(title.split(":")[0], names[atom]) for atom in splits if atom in names}
    wanted = {
        ("gpt", "batch"),
        ("gpt", "vocab"),
        ("gpt", "heads"),
        ("lstm", "vocab"),
        ("lstm", "hidden"),
        ("lstm", "batch"),
    }
    assert wanted | {("cnn", "batch"), ("cnn", "width"), ("mlp", "batch")} <= found


def peaks(payload: tuple[int, dict[str, Case]], emit: Any) -> dict[str, list[int]]:
    """By name: the measured peak of every rank."""
    num_ranks, cases = payload
    out: dict[str, list[int]] = {}
    with join(num_ranks) as place:
        for name, case in cases.items():
            program, workload = (
                case.programs[place.rank],
                build(lambda case=case: build_workload(case.ask), 0),
            )  # type: ignore[misc]
            executor = Executor(
                program, workload, rank=place.rank, groups=make_groups(program, place.rank)
            )
            executor.step(workload.batch)  # makes the optimizer's state
            executor.recorded_step(workload.batch)
            found: list[Any] = [None] * num_ranks
            dist.all_gather_object(found, executor.peak_memory_bytes)
            out[name] = found
    return out


def test_the_fullest_device_is_the_one_that_is_predicted() -> None:
    """Rank 0 has the largest pieces of everything; each rank's own program says what that rank
    holds."""
    kinds = [
        ("gpt", "zero1"),
        ("gpt", "tensor"),
        ("mlp", "zero1"),
        ("lstm", "zero1"),
        ("lstm", "tensor"),
    ]
    made = {f"{m}: {kind}": planned(asked(m, 3), *KINDS[3][kind]) for m, kind in kinds}
    cases = {name: Case(plan.ask, plan.programs) for name, plan in made.items()}
    measured = launch("test_uneven_numerics:peaks", 3, (3, cases))[0]
    for name, plan in made.items():
        predicted = [sum(memory_by_category(program).values()) for program in plan.programs]
        assert max(predicted) == predicted[0] > predicted[2]
        assert max(measured[name]) == measured[name][0] > measured[name][2]
        assert measured[name] == pytest.approx(predicted, rel=0.02, abs=4096)
