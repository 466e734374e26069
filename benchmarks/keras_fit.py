"""Keras's own `fit`, batch by batch, against plans of the same models: loss of every step, values
at the end.

    python benchmarks/keras_fit.py [--steps 5] [--ranks 1,2,4] [--mesh tp=2] [--pin '*=tensor'] [NAME ...]

Prints a table: the largest relative difference of a step's loss, and of a final value over its
tensor's largest. Both start from the same seed and see the same batches. Attention runs by torch's
math kernel in `fit`: the flash kernel of CPUs has a wrong gradient for queries whose keys are all
masked by a finite bias, as Keras's are.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from cost_models.cluster import load_cluster  # noqa: E402
from cost_models.errors import UserError  # noqa: E402
from planner.models.keras_batch import batch_of  # noqa: E402
from planner.models.keras_names import variable_names  # noqa: E402
from planner.plans.replay import program_of  # noqa: E402
from planner.program.program import Program  # noqa: E402
from planner.search.search import search  # noqa: E402
from planner.strategy.pins import parse_mesh, parse_pin  # noqa: E402
from planner.workload.ask import Ask  # noqa: E402
from planner.workload.ask import build as build_workload  # noqa: E402
from planner.workload.batches import flatten  # noqa: E402
from runtime.executor import Executor, gather_buffers, gather_parameters  # noqa: E402
from runtime.groups import make_groups  # noqa: E402
from runtime.launcher import launch  # noqa: E402
from runtime.parameters import build  # noqa: E402
from runtime.worker import join  # noqa: E402

SEED = 5
MODELS = ROOT / "tests" / "keras_models.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model under a plan: the program of every rank, and for how many steps it is run."""

    name: str
    ask: Ask
    programs: tuple[Program, ...]
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The losses of the steps and the values at the end, by our names."""

    losses: tuple[float, ...]
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The largest relative difference of a step's loss, and of a final value, which is named."""

    loss: float
    value: float
    name: str


def fitted(name: str, steps: int) -> Ran:
    """What Keras's `fit` gives, called for a batch at a time."""
    import keras
    import keras_models
    import numpy as np

    keras.utils.set_random_seed(SEED)
    model, _, options = keras_models.MODELS[name]()
    losses = []
    for x, y, *weights in keras_models.batches_of(name, steps):
        more = {"sample_weight": weights[0]} if weights else {}
        y = np.asarray(y) if isinstance(y, list) else y  # `fit` takes no list of numbers as labels
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore", DeprecationWarning)  # Keras's, of numpy's newest
            history = model.fit(
                x, y, batch_size=keras_models.BATCH, shuffle=False, verbose=0, **options, **more
            )
        losses.append(float(history.history["loss"][0]))
    values = {
        name: variable.value.detach().cpu().clone() for name, variable in variable_names(model)
    }
    return Ran(losses=tuple(losses), values=values)


def planned(
    name: str, ranks: int, steps: int, pins: Sequence[str] = (), mesh: str | None = None
) -> Case:
    """A model's plan on so many ranks."""
    ask = Ask(
        model=f"keras:{MODELS}:{name}",
        batch=None,
        seq=None,
        settings={},
        dtype="float32",
        num_devices=ranks,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        pinned = parse_mesh(mesh, ranks) if mesh else None
        found = search(
            ask,
            load_cluster("cpu", num_devices=ranks),
            mesh=pinned,
            pins=tuple(map(parse_pin, pins)),
        )
        alike = found.program.rank is None
        programs = [
            found.program if alike else program_of(found.plan, rank=rank) for rank in range(ranks)
        ]
    return Case(name=name, ask=ask, programs=tuple(programs), steps=steps)


def _pinned(name: str, ranks: int, steps: int, pins: Sequence[str], mesh: str | None) -> Case:
    """The plan under the pins, or, where the model does not admit them, without."""
    try:
        return planned(name, ranks, steps, pins, mesh)
    except UserError as error:
        print(f"{name}: planned without {', '.join(pins)}: {error}", flush=True)
        return planned(name, ranks, steps, (), mesh)


def run_all(payload: tuple[int, dict[str, Case]], emit: Any) -> dict[str, Ran | str]:
    """What each rank does: every case after the other."""
    num_ranks, cases = payload
    with join(num_ranks) as place:
        return {title: _run(case, place.rank) for title, case in cases.items()}


def _run(case: Case, rank: int) -> Ran | str:
    import keras_models

    try:
        workload = build(lambda: build_workload(case.ask), SEED)
        program = case.programs[rank]
        executor = Executor(
            program, workload, rank=rank, groups=make_groups(program, rank), seed=SEED
        )
        batches = [
            flatten(batch_of(batch))[0] for batch in keras_models.batches_of(case.name, case.steps)
        ]
        losses = tuple(executor.step(batch) for batch in batches)
        return Ran(
            losses=losses, values={**gather_parameters(executor), **gather_buffers(executor)}
        )
    except UserError as error:
        return str(error)


def ran(cases: dict[str, Case], ranks: int) -> dict[str, Ran | str]:
    """What the ranks, started once, give for every case."""
    found: dict[str, Ran | str] = launch("keras_fit:run_all", ranks, (ranks, cases))[0]
    return found


def difference(found: Ran | str, expected: Ran) -> Difference:
    """How far a run is from `fitted`."""
    assert isinstance(found, Ran), found
    loss = max(abs(a - b) / abs(b) for a, b in zip(found.losses, expected.losses, strict=True))
    assert set(found.values) == set(expected.values), set(found.values) ^ set(expected.values)
    off = {name: _apart(found.values[name], value) for name, value in expected.values.items()}
    worst = max(off, key=lambda name: off[name])
    return Difference(loss=loss, value=off[worst], name=worst)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3))


def main() -> None:
    """Prints the table."""
    import keras
    import keras_models

    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--mesh", help="NAME=SIZE,..., of all models")
    parser.add_argument(
        "--pin", action="append", default=[], help="PATTERN=CHOICE, of the models that admit it"
    )
    given = parser.parse_args()
    print(f"{given.steps} steps; Keras {keras.__version__}, torch {torch.__version__}", flush=True)
    names = given.names or list(keras_models.MODELS)
    expected = {name: fitted(name, given.steps) for name in names}
    for ranks in map(int, given.ranks.split(",")):
        cases = {name: _pinned(name, ranks, given.steps, given.pin, given.mesh) for name in names}
        for name, found in ran(cases, ranks).items():
            mesh = "x".join(map(str, cases[name].programs[0].mesh.sizes))
            if isinstance(found, str):
                print(f"{name:17s} {ranks} ranks {mesh}: {found}", flush=True)
                continue
            far = difference(found, expected[name])
            print(
                f"{name:17s} {ranks} ranks {mesh}  loss {far.loss:.1e}  values {far.value:.1e} ({far.name})",
                flush=True,
            )


if __name__ == "__main__":
    import keras_fit  # what ranks give back is of that module

    keras_fit.main()
