"""Splits on the profiles of the Sailor artefact, against the exact optima and the planners there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SHARDWRIGHT_DATA", ROOT.parent / "shared" / "data")) / "sailor"


@pytest.mark.skipif(
    not DATA.is_dir(),
    reason=f"no profiles at {DATA}: set SHARDWRIGHT_DATA to the folder of sailor/",
)
# The simulator of the artefact does not close the files that it reads.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", ["OPT-350 32xA100-40", "GPT-Neo-2.7 32xA100-40"])
def test_the_plan_is_the_exact_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    import sailor_plans

    experiment = sailor_plans.experiments()[name]
    exact = next(
        float(row["referee_time_s"])
        for row in experiment
        if row["planner"] == "own exact search, B divisible"
    )
    first = experiment[0]
    batch = int(first["global_batch"])
    plan = sailor_plans.plan_for(first["model"], first["cluster"], batch)
    verdict = sailor_plans.judged(
        first["model"],
        batch,
        {"microbatch": plan.microbatch, "layers": plan.layers, "stages": plan.stages},
    )
    assert plan.seconds == pytest.approx(exact, rel=1e-9)
    assert verdict["iteration_s"] == pytest.approx(exact, rel=1e-9)
    assert verdict["fits"]
    assert verdict["outside"] == []
