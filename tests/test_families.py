"""Every built-in family at a tiny size: under the plan that is chosen and under each pure strategy, trained for three steps on two
gloo ranks as one process is, in float64."""

from __future__ import annotations

import pytest
from matrix import TOLERANCE, Case, errors_of
from small_plans import SIZES, ask_for, planned

from planner.models import MODELS
from planner.program import Communicate
from planner.strategies import options_of

#: name -> (mesh, pins).
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chosen": ("a=2", ()),
    "data": ("dp=2", ("*=ddp",)),
    "zero3": ("dp=2", ("*=zero3",)),
    "tensor": ("tp=2", ("*=tensor",)),
}
FAMILIES = [name for name in SIZES if name in MODELS]
SAMPLE = ("llama", "bert", "t5", "moe", "gru", "unet")


def cases_of(names: tuple[str, ...] | list[str]) -> dict[str, Case]:
    """The plans of some families."""
    out = {}
    for name in names:
        ask = ask_for(name, 2)
        for kind, (mesh, pins) in KINDS.items():
            out[f"{name}: {kind}"] = Case(ask, planned(ask, mesh, pins).programs)
        if name == "moe":
            out[f"{name}: expert"] = Case(ask, planned(ask, "ep=2", ("*=expert",)).programs)
        if name in ("llama", "bert", "t5"):
            out[f"{name}: sequence"] = Case(ask, planned(ask, "t=2", words={"norm": "sequence"}).programs)
    return out


def wrong(found: dict[str, float | str]) -> dict[str, float | str]:
    return {name: error for name, error in found.items() if not isinstance(error, float) or not error <= TOLERANCE}


def test_every_family_has_a_small_size() -> None:
    assert set(FAMILIES) == set(MODELS)


def test_a_sample_of_families_trains_as_one_process_does() -> None:
    assert wrong(errors_of(cases_of(SAMPLE))) == {}


@pytest.mark.slow_matrix
def test_all_families_train_as_one_process_does() -> None:
    assert wrong(errors_of(cases_of([name for name in FAMILIES if name not in SAMPLE]))) == {}


def test_pinned_experts_are_split_and_tokens_are_sent_to_them() -> None:
    plan = planned(ask_for("moe", 2), "ep=2", ("*=expert",))
    experts = plan.model.expert_atoms
    split = 0
    for index, strategy in plan.choices.strategies.items():
        dims = plan.model.dims.ops[index]
        if any(o.kind == "split" and dims.atoms[o.number] in experts for o in options_of(dims)):
            (option,) = strategy.options
            assert option.kind == "split"
            assert dims.atoms[option.number] in experts
            split += 1
    assert split >= 2 * 3 * 3  # layers x products x (forward and two gradients)
    kinds = {i.kind for i in plan.program.instructions if isinstance(i, Communicate)}
    assert "all_to_all" in kinds
