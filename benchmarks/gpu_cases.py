"""The models that `gpu_check.py` measures, at sizes of a whole card and at sizes for trying the
script on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "Case", "case_of", "text_classifier"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model as `plan --model` takes it; `tiny` are the settings for a try on a CPU, where
    batch and precision stay as they are."""

    model: str
    batch: int
    seq: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    tiny_batch: int = 4
    tiny: Mapping[str, str] = field(default_factory=dict)
    tiny_seq: int | None = None


_LLAMA_1B = {
    "layers": "16",
    "width": "2048",
    "heads": "32",
    "kv_heads": "8",
    "mlp": "8192",
    "vocab": "128256",
    "rope_theta": "500000",
}
_TINY_LLAMA = {
    "layers": "2",
    "width": "32",
    "heads": "4",
    "kv_heads": "2",
    "mlp": "64",
    "vocab": "64",
}
_TINY_LSTM = {"vocab": "100", "embed": "16", "hidden": "16"}
_TINY_GPT = {"layers": "2", "width": "32", "heads": "4", "vocab": "64", "positions": "32"}
_TINY_BERT = {
    "layers": "2",
    "width": "32",
    "heads": "4",
    "mlp": "64",
    "vocab": "64",
    "positions": "32",
}
_TINY_HF = {"n_layer": "2", "n_embd": "32", "n_head": "4", "vocab_size": "64", "n_positions": "32"}

CASES = {
    "lstm": Case(model="lstm", batch=256, seq=100, tiny=_TINY_LSTM, tiny_seq=8),
    "gru": Case(model="gru", batch=256, seq=100, tiny=_TINY_LSTM, tiny_seq=8),
    "gpt2": Case(model="gpt2", batch=8, seq=1024, tiny=_TINY_GPT, tiny_seq=16),
    "llama-1b": Case(
        model="llama",
        batch=2,
        seq=2048,
        settings=_LLAMA_1B,
        precision="bf16-mixed",
        tiny=_TINY_LLAMA,
        tiny_seq=16,
    ),
    "resnet50": Case(
        model="resnet-50",
        batch=64,
        tiny={"depth": "10", "width": "8", "image": "32", "classes": "8"},
    ),
    "bert-base": Case(model="bert-base", batch=16, seq=512, tiny=_TINY_BERT, tiny_seq=16),
    "hf": Case(model="hf:gpt2", batch=8, seq=512, tiny=_TINY_HF, tiny_seq=16),
    "keras": Case(model="keras:gpu_cases:text_classifier", batch=256, tiny_batch=8),
}


def case_of(name: str, *, tiny: bool) -> dict[str, Any]:
    """What an `Ask` for one device takes, and the precision."""
    case = CASES[name]
    if tiny:
        return {
            "model": case.model,
            "batch": case.tiny_batch,
            "seq": case.tiny_seq,
            "settings": {**case.settings, **case.tiny},
            "precision": case.precision,
        }
    return {
        "model": case.model,
        "batch": case.batch,
        "seq": case.seq,
        "settings": dict(case.settings),
        "precision": case.precision,
    }


def text_classifier(batch: int = 256) -> tuple[Any, tuple[Any, Any]]:
    """A compiled Keras model as its tutorials write it, and a batch."""
    import keras
    import numpy as np

    words = 10_000 if batch > 8 else 100
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((100 if batch > 8 else 8,), dtype="int32"),
            keras.layers.Embedding(words, 64),
            keras.layers.LSTM(64),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy")
    ids = rng.integers(0, words, (batch, model.input_shape[1]), dtype="int32")
    return model, (ids, rng.integers(0, 2, (batch, 1)).astype("float32"))
