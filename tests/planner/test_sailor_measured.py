"""Step time and memory of the measured plans of the Sailor artefact; the model of a pipeline that
predicts them."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.schedules.named import one_f_one_b
from planner.schedules.timing import Costs, StageSeconds, timed

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SHARDWRIGHT_DATA", ROOT.parent / "shared" / "data")) / "sailor"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    import sailor_measured

    return sailor_measured


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 3), (2, 1), (3, 2), (4, 4), (4, 11)])
def test_without_messages_the_order_of_messages_is_nothing(
    measured: Any, stages: int, microbatches: int
) -> None:
    draw = random.Random(stages + microbatches)
    seconds = [(draw.uniform(1, 2), draw.uniform(1, 4)) for _ in range(stages)]
    ends = measured.stage_ends([measured.Body(f, b) for f, b in seconds], microbatches)
    timing = timed(
        one_f_one_b(stages, microbatches),
        Costs(stages=tuple(StageSeconds(forward=f, backward=b) for f, b in seconds)),
    )
    assert ends == pytest.approx([own[-1] for own in timing.ends])


def test_an_output_leaves_after_the_gradient_has_come(measured: Any) -> None:
    """Two equal stages whose messages take 1 s: in the steady state the first waits for a gradient
    (1 s), and only then sends the output (1 s) that the second needs. So the second, which sends a
    gradient when it has run, waits 2 s, and so does the first in the end: F + B + 2."""
    bodies = [measured.Body(3.0, 4.0, sends=1.0), measured.Body(3.0, 4.0, returns=1.0)]
    many, more = (max(measured.stage_ends(bodies, m)) for m in (20, 21))
    assert more - many == pytest.approx(3 + 4 + 2)


@pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no measurements at {DATA}: set SHARDWRIGHT_DATA to its folder"
)
def test_measured_plans_are_predicted(measured: Any) -> None:
    """A batch of one sample on two stages takes 0.08 s longer than the profiles explain."""
    table = [row for row in measured.compared(DATA / "measured_plans.csv") if not row["suspect"]]
    times = sorted(abs(row["time_error"]) for row in table)
    memory = [abs(row["memory_error"]) for row in table]
    assert sum(times) / len(times) < 0.08
    assert times[-2] < 0.2
    assert sum(memory) / len(memory) < 0.05
    assert max(memory) < 0.2
