"""Keras models for the tests; imported only where Keras is."""

from __future__ import annotations

from typing import Any


def sentiment(batch: int = 16) -> tuple[Any, tuple[Any, Any]]:
    """Embedding, LSTM, Dense with sigmoid; adam and binary cross-entropy."""
    import keras
    import numpy as np

    layers = keras.layers
    model = keras.Sequential([
        layers.Input((6,), dtype="int32"), layers.Embedding(32, 8), layers.LSTM(8), layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip
    model.compile(optimizer="adam", loss="binary_crossentropy")
    rng = np.random.default_rng(0)
    return model, (rng.integers(0, 32, (batch, 6)), rng.integers(0, 2, (batch, 1)).astype("float32"))


def normed(batch: int = 16) -> tuple[Any, tuple[Any, Any]]:
    """A model with batch norm, whose moving statistics change; plain SGD."""
    import keras
    import numpy as np

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((6,)), layers.Dense(8, use_bias=False), layers.BatchNormalization(), layers.Dense(1)]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mean_squared_error")
    rng = np.random.default_rng(0)
    return model, (rng.normal(size=(batch, 6)).astype("float32"), rng.normal(size=(batch, 1)).astype("float32"))
