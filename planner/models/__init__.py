"""The built-in models, one file each. To add one, write its `SPEC` and name it here."""

from __future__ import annotations

from planner.models import cnn, gpt, llama, lstm, mlp
from planner.models.spec import ModelSpec, Preset

__all__ = ["MODELS", "ModelSpec", "Preset"]

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (lstm.SPEC, mlp.SPEC, cnn.SPEC, gpt.SPEC, llama.SPEC)}
