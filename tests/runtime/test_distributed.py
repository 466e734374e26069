"""Collectives, split kernels and hand-written programs on real gloo ranks, against one process."""

from __future__ import annotations

import pytest

from runtime.launcher import launch

RANKS = pytest.mark.parametrize("num_ranks", [2, 4])


@RANKS
def test_collectives_equal_plain_slicing(num_ranks: int) -> None:
    for errors in launch("rank_checks:check_collectives", num_ranks, num_ranks):
        assert len(errors) == 300
        assert {case: error for case, error in errors.items() if error > 1e-14} == {}


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_collectives_of_unlike_pieces(num_ranks: int) -> None:
    for errors in launch("rank_checks:check_uneven_collectives", num_ranks, num_ranks):
        assert len(errors) == 4 * 3 * 2 * 2 * 2 * 2 * 2
        assert {case: error for case, error in errors.items() if error > 1e-14} == {}


@RANKS
def test_split_kernels_equal_whole_ones(num_ranks: int) -> None:
    for errors in launch("rank_checks:check_kernels", num_ranks, num_ranks):
        assert len(errors) == 96
        assert {case: error for case, error in errors.items() if error > 1e-12} == {}


@RANKS
def test_programs_train_as_one_process_does(num_ranks: int) -> None:
    results = launch("rank_checks:run_programs", num_ranks, num_ranks)[0]
    assert len(results) == (10 if num_ranks == 2 else 15)
    for name, result in results.items():
        errors = result.verification
        assert max(errors.loss_error, errors.gradient_error, errors.parameter_error) < 1e-9, (
            name,
            errors,
        )
        assert result.timeline.step_time > 0
        assert {event.device for event in result.timeline.events} == set(range(num_ranks))
        assert result.peak_memory_bytes > 0
