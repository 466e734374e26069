"""The plans of the four models on 8 devices are the golden ones: see update.py."""

from __future__ import annotations

import json

import pytest
from update import HERE, MODELS, golden


@pytest.mark.parametrize("model", MODELS)
def test_plan_is_the_golden_one(model: str) -> None:
    kept = json.loads((HERE / f"{model}.json").read_text())
    found = golden(model)
    assert found.pop("step_time_s") == pytest.approx(kept.pop("step_time_s"), rel=1e-9)
    assert found == kept, f"the plan of {model} has changed: if that is meant, python tests/golden/update.py"
