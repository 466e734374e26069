"""Every built-in family at a tiny size: under the plan that is chosen and under each pure strategy
that the model admits, trained for three steps on gloo ranks as one process is: the losses, every
gradient, the parameters at the end.

`make test` runs a sample; the long matrix is every family on 2 and on 4 ranks, in float64 and in
float32.
"""

from __future__ import annotations

from functools import cache

import pytest
from kinds import kinds_for, plan_of, splits, what_is_wrong
from matrix import TOLERANCES, Case, errors_of
from small_plans import SIZES, Planned, ask_for, planned

from planner.models import MODELS
from planner.program.program import Communicate
from planner.strategy.strategies import options_of
from planner.strategy.traced_model import Model

#: The word for the sub-dim that sequence parallelism splits in norms, of the families that have
#: one.
SEQUENCE = {
    "gpt": "sequence",
    "llama": "sequence",
    "moe": "sequence",
    "bert": "sequence",
    "t5": "sequence",
    "vit": "positions",
}
FAMILIES = [name for name in SIZES if name in MODELS]
SAMPLE = {2: ("llama", "bert", "t5", "moe", "gru", "unet"), 4: ("vit", "seq2seq-lstm", "dlrm")}


@cache
def plans_of(name: str, ranks: int, dtype: str) -> dict[str, Planned]:
    """By kind: a family's plans."""
    ask = ask_for(name, ranks, dtype=dtype)
    left_out = (set() if name in SEQUENCE else {"sequence", "context"}) | (
        set() if name == "moe" else {"expert"}
    )
    kinds = kinds_for(ranks, SEQUENCE.get(name, ""))
    return {title: plan_of(ask, kind) for title, kind in kinds.items() if title not in left_out}


def check_splits(name: str, ranks: int, dtype: str) -> None:
    """That the pure strategies split what their name says."""
    for kind, plan in plans_of(name, ranks, dtype).items():
        assert not what_is_wrong(kind, plan, SEQUENCE.get(name, "")), f"{name}: {kind}"


def errors_above(
    names: tuple[str, ...] | list[str], ranks: int, dtype: str = "float64"
) -> dict[str, float | str]:
    """The errors above the dtype's tolerance, by family and kind; all are printed, the largest
    first."""
    made = {
        f"{name}: {kind}": plan
        for name in names
        for kind, plan in plans_of(name, ranks, dtype).items()
    }
    found = errors_of({title: Case(plan.ask, plan.programs) for title, plan in made.items()}, ranks)
    assert set(found) == set(made)
    for title, error in sorted(
        found.items(), key=lambda item: -item[1] if isinstance(item[1], float) else -1.0
    ):
        print(
            f"{ranks} ranks, {dtype}, {title}: {error if isinstance(error, str) else f'{error:.1e}'}"
        )
    for name in names:
        check_splits(name, ranks, dtype)
    limit = TOLERANCES[dtype]
    return {
        title: error
        for title, error in found.items()
        if not isinstance(error, float) or not error <= limit
    }


def test_every_family_has_a_small_size() -> None:
    assert set(FAMILIES) == set(MODELS)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sample_of_families_trains_as_one_process_does(ranks: int) -> None:
    assert errors_above(SAMPLE[ranks], ranks) == {}


@pytest.mark.slow_matrix
@pytest.mark.parametrize(
    ("ranks", "dtype"), [(2, "float64"), (2, "float32"), (4, "float64"), (4, "float32")]
)
def test_all_families_train_as_one_process_does(ranks: int, dtype: str) -> None:
    assert errors_above(FAMILIES, ranks, dtype) == {}


def admits(model: Model, index: int, atoms: frozenset[int]) -> bool:
    dims = model.dims.ops[index]
    return any(o.kind == "split" and dims.atoms[o.number] in atoms for o in options_of(dims))


@pytest.mark.parametrize("ranks", [2, 4])
def test_pinned_experts_are_split_and_tokens_are_sent_to_them(ranks: int) -> None:
    plan = planned(ask_for("moe", ranks), f"ep={ranks}", ("*=expert",))
    experts = plan.model.expert_atoms
    split = 0
    for index, atoms in splits(plan).items():
        if admits(plan.model, index, experts):
            assert atoms <= experts
            assert len(atoms) == 1
            split += 1
    assert split >= 2 * 3 * 3  # layers x products x (forward and two gradients)
    kinds = {i.kind for i in plan.program.instructions if isinstance(i, Communicate)}
    assert "all_to_all" in kinds
