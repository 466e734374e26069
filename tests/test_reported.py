"""Models as people write them (`tests/reported/`): right against a plain torch loop, or refused in
one line that says why.

`make test` runs each on two ranks, one under the tensor plan (or another where nothing can be
split), the next under one that is best under random costs; the long matrix has all kinds, on two
and on four ranks.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import RANDOM, Kind, plan_of
from plain_loop import Plain, plain_training
from torch import Tensor

from cost_models.errors import UserError
from planner.program.program import Program
from planner.workload.ask import Ask
from planner.workload.ask import build as build_workload
from runtime.executor import Executor, gather_buffers, gather_parameters
from runtime.groups import Groups, axes_used, make_groups
from runtime.launcher import launch
from runtime.parameters import build
from runtime.worker import join

STEPS = 3
#: Relative to the largest element of a tensor.
TOLERANCE = 1e-9
#: Adam moves an element whose gradient is rounding by its learning rate, whichever way the rounding
#: goes.
NOISE = 1e-7
FOLDER = Path(__file__).parent / "reported"


def collected(name: str) -> dict[str, Any]:
    """By `file:function`: what the files' dicts of that name hold."""
    out: dict[str, Any] = {}
    for path in sorted(FOLDER.glob("*.py")):
        found = importlib.util.spec_from_file_location(f"reported_{path.stem}", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        out |= {f"{path.stem}:{key}": value for key, value in getattr(module, name, {}).items()}
    return out


RIGHT: dict[str, Callable[[], Any]] = collected("RIGHT")
REFUSED: dict[str, tuple[Callable[[], Any], str]] = collected("REFUSED")


def ask_of(name: str, make: Callable[[], Any], ranks: int = 2) -> Ask:
    spec = f"{FOLDER / name.partition(':')[0]}.py:{make.__name__}"
    return Ask(model=spec, batch=None, seq=None, settings={}, dtype="float64", num_devices=ranks)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model under a plan: every rank's program."""

    name: str
    ask: Ask
    programs: tuple[Program, ...]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What ranks gave: as `Plain`, but parameters and those buffers alone that the step changes."""

    losses: tuple[float, ...]
    gradients: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


def run_all(payload: tuple[int, dict[str, Case]], emit: Any) -> dict[str, Trained | str]:
    """What each rank does: every case after the other."""
    num_ranks, cases = payload
    groups: dict[Any, Groups] = {}
    out: dict[str, Trained | str] = {}
    with join(num_ranks) as place:
        for title, case in cases.items():
            program = case.programs[place.rank]
            key = (program.mesh.sizes, tuple(axes_used(program)))
            if key not in groups:
                groups[key] = make_groups(program, place.rank)
            try:
                out[title] = _train(case, program, place.rank, groups[key])
            except (
                RuntimeError,
                ValueError,
                TypeError,
                LookupError,
                AttributeError,
                NameError,
            ) as error:
                out[title] = f"{type(error).__name__}: {error}"
    return out


def _train(case: Case, program: Program, rank: int, groups: Groups) -> Trained:
    workload = build(lambda: build_workload(case.ask), 0)
    executor = Executor(program, workload, rank=rank, groups=groups, keep_gradients=True)
    losses = [executor.step(workload.batch)]
    gradients = gather_parameters(executor, executor.gradients)
    losses += [executor.step(workload.batch) for _ in range(STEPS - 1)]
    state = {**gather_parameters(executor), **gather_buffers(executor)}
    return Trained(losses=tuple(losses), gradients=gradients, state=state)


def differences(found: Trained | str, plain: Plain) -> list[str]:
    """What a run has otherwise than plain torch."""
    if isinstance(found, str):
        return [found]
    wrong = [
        f"loss of step {n}: {a} for {b}"
        for n, (a, b) in enumerate(zip(found.losses, plain.losses, strict=True), 1)
        if not math.isclose(a, b, rel_tol=TOLERANCE)
    ]
    missing = (set(plain.gradients) ^ set(found.gradients)) - {
        n for n, g in found.gradients.items() if not g.any()
    }
    wrong += [f"gradient of {name}: only one has it" for name in sorted(missing)]
    largest = max(
        float(gradient.abs().max()) for gradient in plain.gradients.values() if gradient.numel()
    )
    for name in set(plain.gradients) & set(found.gradients):
        wrong += _apart(
            f"gradient of {name}",
            found.gradients[name],
            plain.gradients[name],
            least=1e-3 * largest,
        )
    for name, ours in found.state.items():
        gradient = plain.gradients.get(name)
        sure = torch.ones(ours.shape, dtype=torch.bool)
        if gradient is not None:
            sure = (gradient == 0) | (gradient.abs() > NOISE)
        wrong += _apart(
            name, ours[sure], plain.state[name][sure], least=1.0 if gradient is not None else 0.0
        )
    return wrong


def _apart(what: str, ours: Tensor, theirs: Tensor, least: float = 0.0) -> list[str]:
    if ours.shape != theirs.shape:
        return [f"{what}: {tuple(ours.shape)} for {tuple(theirs.shape)}"]
    if not ours.numel():
        return []
    far = float((ours.double() - theirs.double()).abs().max())
    scale = max(float(theirs.double().abs().max()), least, NOISE)
    return [] if far <= TOLERANCE * scale else [f"{what}: off by {far:.1e} of {scale:.1e}"]


def cases_of(
    ranks: int, kinds: Mapping[str, Kind], *, enough: int
) -> tuple[dict[str, Case], dict[str, str]]:
    """Every model under the first `enough` of the kinds that it admits, and what planning said
    of those that admit none."""
    cases: dict[str, Case] = {}
    refused: dict[str, str] = {}
    for place, (name, make) in enumerate(RIGHT.items()):
        made, said = 0, ""
        first = place % 2  # every second model begins with the second kind
        for title, kind in [*list(kinds.items())[first:], *list(kinds.items())[:first]]:
            if made == enough:
                break
            ask = ask_of(name, make, ranks)
            try:
                plan = plan_of(ask, kind)
            except UserError as error:
                said = said or str(error)
                continue
            made += 1
            cases[f"{name}, {title}"] = Case(name=name, ask=ask, programs=plan.programs)
        if not made:
            refused[name] = said
    return cases, refused


def wrong_of(ranks: int, kinds: Mapping[str, Kind], *, enough: int) -> dict[str, list[str]]:
    """By case: what is wrong with it; nothing else is in it."""
    cases, refused = cases_of(ranks, kinds, enough=enough)
    found = launch(f"{__name__}:run_all", ranks, (ranks, cases))[0]
    out = {name: [f"refused: {said}"] for name, said in refused.items()}
    out |= {title: differences(found[title], plain_of(case.name)) for title, case in cases.items()}
    return {title: wrong for title, wrong in out.items() if wrong}


@cache
def plain_of(name: str) -> Plain:
    return plain_training(RIGHT[name], STEPS)


def kinds_on(ranks: int) -> dict[str, Kind]:
    """The kinds of plan, those that find more first."""
    return {
        "tensor": Kind(mesh=f"tp={ranks}", pins=("*=tensor",)),
        **RANDOM[ranks],
        "zero3": Kind(mesh=f"dp={ranks}", pins=("*=zero3",)),
        "chosen": Kind(mesh=f"a={ranks}"),
        "data": Kind(mesh=f"dp={ranks}", pins=("*=ddp",)),
    }


def test_models_train_as_plain_torch_does() -> None:
    assert wrong_of(2, kinds_on(2), enough=1) == {}


@pytest.mark.slow_matrix
@pytest.mark.parametrize("ranks", [2, 4])
def test_models_train_as_plain_torch_does_under_every_kind(ranks: int) -> None:
    assert wrong_of(ranks, kinds_on(ranks), enough=99) == {}


@pytest.mark.parametrize("kind", ["dropped", "dropped, reentrant"])
def test_a_checkpoint_adds_nothing_to_the_step(kind: str) -> None:
    """The graph has forward once: what runs again is a choice of the plan, and MFU does not count
    it."""
    plans = [
        plan_of(ask_of(name, RIGHT[name]), Kind(mesh="a=2"))
        for name in (f"checkpointed:{kind}", "checkpointed:kept")
    ]
    one, other = (
        [(n.op, n.phase, n.result_shapes) for n in plan.model.graph.nodes] for plan in plans
    )
    assert one == other


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        plan_of(ask_of(name, make), Kind(mesh="a=2"))
    said = str(caught.value)
    assert re.search(words, said), said
    assert "\n" not in said
