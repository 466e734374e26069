"""The picture of a schedule shows what its timing says: colours, waits, close-ups."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from planner.report.schedule_picture import draw_schedule
from planner.schedules.registry import scheduled
from planner.schedules.timing import Costs, Timing, timed, uniform

FORWARD, BACKWARD, WEIGHT, FIXED, WAITS = "#0072b2", "#e69f00", "#009e73", "#7f7f7f", "#f0f0f0"


def timing_of(name: str, places: int, microbatches: int, after: tuple[float, ...] = ()) -> Timing:
    schedule = scheduled(name, places, microbatches)
    stages = uniform(schedule.num_stages, 0.01, 0.01, 0.01)
    return timed(schedule, Costs(stages=stages, after=after))


def shares(png: bytes) -> dict[str, float]:
    """The share of the picture's pixels that have each colour."""
    assert png.startswith(b"\x89PNG")
    pixels = np.round(matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255)
    return {
        colour: float(
            (np.abs(pixels - np.round(255 * np.array(to_rgb(colour)))) < 1.5).all(-1).mean()
        )
        for colour in (FORWARD, BACKWARD, WEIGHT, FIXED, WAITS)
    }


def test_areas_are_times() -> None:
    timing = timing_of("1f1b", 4, 8, after=(0.0, 0.03, 0.0, 0.0))
    area = shares(draw_schedule(timing, "1f1b"))
    forward = 4 * 8 * 0.01  # seconds of all places
    assert area[BACKWARD] / area[FORWARD] == pytest.approx(2.0, rel=0.08)
    assert area[FIXED] / area[FORWARD] == pytest.approx(0.03 / forward, rel=0.25)
    assert area[WEIGHT] < 0.001  # no body runs weight gradients alone
    gaps = 0.1  # of a row's height
    waits = sum(timing.bubbles) / forward
    assert area[WAITS] / area[FORWARD] == pytest.approx(waits + gaps * 4, rel=0.25)


def test_halves_of_a_backward_have_colours_of_their_own() -> None:
    area = shares(draw_schedule(timing_of("zbh1", 4, 8), "zbh1"))
    assert area[WEIGHT] / area[FORWARD] == pytest.approx(1.0, rel=0.08)
    assert area[BACKWARD] / area[FORWARD] == pytest.approx(1.0, rel=0.08)


def test_a_long_schedule_has_close_ups_and_a_tall_one_has_few_rows() -> None:
    def height(timing: Timing) -> int:
        return int(matplotlib.image.imread(io.BytesIO(draw_schedule(timing, "x"))).shape[0])

    short, long = height(timing_of("1f1b", 3, 4)), height(timing_of("1f1b", 3, 60))
    assert long > 1.5 * short
    assert height(timing_of("gpipe", 200, 2)) == height(timing_of("gpipe", 32, 2))
