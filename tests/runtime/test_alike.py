"""Ranks begin alike: generators set from one seed, values compared, one hash seed."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hand_programs import make_workload

from planner.cli.main import _makes_a_persons_model
from planner.state.chance import drawn_from, seed_all, seeded, state
from planner.state.digests import digest, digests
from planner.state.hash_seed import chosen, environment, same_for_children
from runtime.alike import first_difference
from runtime.parameters import build


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_every_generator_is_set() -> None:
    seed_all(3)
    first = draws()
    seed_all(3)
    assert draws() == first
    seed_all(2**40)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_the_caller_goes_on_as_if_nothing_had_been_drawn() -> None:
    seed_all(3)
    expected = draws()
    seed_all(3)
    with seeded(9):
        inside = draws()
    assert draws() == expected
    seed_all(9)
    assert draws() == inside


def test_what_is_built_is_the_same_whatever_was_drawn_before() -> None:
    def make() -> object:
        workload = make_workload()
        with torch.no_grad():
            next(workload.module.parameters()).add_(float(np.random.rand()) + random.random())
        return workload

    first, _ = (digests(build(make, 4).module.named_parameters()) for _ in range(2))  # type: ignore[arg-type]
    draws()
    again = digests(build(make, 4).module.named_parameters())  # type: ignore[arg-type]
    assert first == again != digests(build(make, 5).module.named_parameters())  # type: ignore[arg-type]


def test_the_line_that_draws_is_found() -> None:
    def quiet() -> int:
        return 1

    def loud() -> float:
        number = quiet()
        drawn = np.random.uniform()
        return number + drawn

    own = __file__.__eq__
    begun = loud.__code__.co_firstlineno
    assert drawn_from(quiet, own) == ""
    assert drawn_from(loud, own) == f"{__file__}:{begun + 2}"
    before = state()
    random.random()
    assert state() != before


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)
def test_a_digest_is_of_the_values_and_their_places(dtype: torch.dtype) -> None:
    tensor = (torch.arange(12) % 5).to(dtype).view(3, 4)
    assert digest(tensor) == digest(tensor.t().contiguous().t()) == digest(tensor.clone())
    other = tensor.clone()
    other[2, 3] = 0 if bool(tensor[2, 3]) else 1
    different = [other, tensor.flip(0), tensor.view(4, 3), tensor.to(torch.complex128)]
    assert digest(tensor) not in {digest(t) for t in different}
    assert digest(tensor[0, 0]) == digest(tensor[0, 0].clone())
    assert digest(tensor[:0]) != digest(tensor[:, :0])


def test_the_first_difference_is_named() -> None:
    ranks = [{"parameter 'a'": 1, "parameter 'b'": 2}, {"parameter 'a'": 1, "parameter 'b'": 2}]
    assert first_difference(ranks) == ""
    ranks[1] = {**ranks[1], "parameter 'b'": 3}
    assert first_difference(ranks).startswith(
        "parameter 'b' has other initial values on rank 1 than on rank 0"
    )
    ranks[1] = {**ranks[0], "buffer 'c'": 3}
    assert first_difference(ranks).startswith("buffer 'c' has other initial values on rank 1")


def test_a_program_is_started_again_with_the_hash_seed_of_all() -> None:
    code = "from planner.state.hash_seed import chosen, start_again; start_again(); print(chosen(), hash('text'))"
    drawn = {**environment("random")}
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env=drawn, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    ]
    assert told[0] == told[1]
    assert told[0].split()[0] == "0"
    own = subprocess.run(
        [sys.executable, "-c", code], env=environment("11"), capture_output=True, text=True
    ).stdout
    assert own.split()[0] == "11" and own.split()[1] != told[0].split()[1]


def test_children_get_it_and_this_process_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with same_for_children():
        assert chosen() == "0"
    assert chosen() == ""
    monkeypatch.setenv("PYTHONHASHSEED", "12")
    with same_for_children():
        assert chosen() == "12"
    assert chosen() == "12"


def test_which_commands_make_a_persons_model() -> None:
    assert _makes_a_persons_model(["--model", "mine.py:make", "--gpus", "2"])
    assert _makes_a_persons_model(["explain", "plans/mine"])
    assert not _makes_a_persons_model(["--model", "lstm", "--gpus", "8"])
    assert not _makes_a_persons_model([])
