"""The kinds of plan under which a model is verified: those that are chosen, and each pure
strategy that the model admits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from small_plans import Planned, planned, words_of

from planner.workload.ask import Ask

__all__ = ["RANDOM", "Kind", "kinds_for", "plan_of", "splits", "what_is_wrong"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A mesh, pins, and the word of the sub-dim that ops split if their name or module contains
    a key (`split_by`)."""

    mesh: str
    pins: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None


#: By number of ranks: plans that are good under random costs, which split what no cost would
#: choose.
RANDOM = {
    2: {f"random {seed}": Kind(mesh="a=2", seed=seed) for seed in range(4)},
    4: {
        f"random {seed}": Kind(mesh="a=4" if seed % 2 else "a=2,b=2", seed=seed)
        for seed in range(4)
    },
}


def kinds_for(ranks: int, sequence: str = "sequence") -> dict[str, Kind]:
    """By name: the chosen plans and the pure strategies. *Sequence* splits it in norms,
    *context* wherever it can be split."""
    chosen = {"chosen": Kind(mesh=f"a={ranks}")} | (
        {"chosen, two axes": Kind(mesh="a=2,b=2")} if ranks == 4 else {}
    )
    return chosen | {
        "data": Kind(mesh=f"dp={ranks}", pins=("*=ddp",)),
        "zero3": Kind(mesh=f"dp={ranks}", pins=("*=zero3",)),
        "tensor": Kind(mesh=f"tp={ranks}", pins=("*=tensor",)),
        "expert": Kind(mesh=f"ep={ranks}", pins=("*=expert",)),
        "sequence": Kind(mesh=f"t={ranks}", words={"norm": sequence}),
        "context": Kind(mesh=f"t={ranks}", words={"": sequence}),
    }


def plan_of(ask: Ask, kind: Kind) -> Planned:
    """The plan of a kind. Raises the planner's UserError where the model does not admit it."""
    return planned(ask, kind.mesh, kind.pins, words=kind.words, seed=kind.seed)


def splits(plan: Planned) -> dict[int, set[int]]:
    """By op: the atoms that its strategy splits."""
    model = plan.model
    return {
        index: {
            model.dims.ops[index].atoms[o.number] for o in strategy.options if o.kind == "split"
        }
        for index, strategy in plan.choices.strategies.items()
    }


def what_is_wrong(name: str, plan: Planned, word: str = "sequence") -> str:
    """Why a plan is not of the kind that it is named for: it splits nothing of it; empty where
    it is."""
    split, batch = set().union(*splits(plan).values()), plan.model.batch_atoms
    words = words_of(plan.model, plan.workload)
    stored = any(placement >= 0 for state in plan.program.parameters for placement in state.stored)
    wrong = {
        "data": not split & batch,
        "zero3": not stored,
        "tensor": bool(split & batch) or not split,
        "expert": not split & plan.model.expert_atoms,
        "sequence": not any(words.get(atom) == word for atom in split),
        "context": not any(words.get(atom) == word for atom in split),
    }
    return f"nothing is split as the name {name} says" if wrong.get(name) else ""
