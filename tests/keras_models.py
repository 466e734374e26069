"""Keras models as people write them, with data for any number of steps; imported only where Keras
is.

Each is a function of the batch, for `keras:FILE:NAME`; `MODELS` has them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, losses, ops, optimizers, regularizers

Data = Callable[[np.random.Generator, int], Any]

MODELS: dict[str, Callable[..., Any]] = {}

#: Samples of a batch.
BATCH = 8


def batches_of(name: str, steps: int, batch: int = BATCH) -> list[Any]:
    """The batches of so many steps; the first is the example of the plan."""
    data: Data = MODELS[name].data  # type: ignore[attr-defined]
    return [data(np.random.default_rng(step), batch) for step in range(steps)]


def model(data: Data, **options: Any) -> Callable[[Callable[[], Any]], Callable[..., Any]]:
    """Makes what `keras:FILE:NAME` wants of a function that builds a compiled model; `options`
    are those of `fit`."""

    def keep(build: Callable[[], Any]) -> Callable[..., Any]:
        @functools.wraps(build)
        def make(batch: int = BATCH) -> Any:
            return build(), data(np.random.default_rng(0), batch), options

        del make.__wrapped__  # its signature is its own
        make.data, make.options = data, options  # type: ignore[attr-defined]
        MODELS[build.__name__] = make
        return make

    return keep


# --------------------------------------------------------------------------------------------- data


def padded(rng: np.random.Generator, batch: int, length: int = 7, words: int = 30) -> np.ndarray:
    """Sequences of word ids, padded with zeros behind and, one of them, before and within."""
    ids = rng.integers(1, words, (batch, length))
    for row, end in enumerate(rng.integers(1, length + 1, batch)):
        ids[row, end:] = 0
    ids[0, 0], ids[0, 2] = 0, 0
    return ids


def review(rng: np.random.Generator, batch: int) -> Any:
    return rng.integers(0, 30, (batch, 7)), rng.integers(0, 2, (batch,))


def padded_review(rng: np.random.Generator, batch: int) -> Any:
    return padded(rng, batch), rng.integers(0, 2, (batch, 1)).tolist()


def tagged(rng: np.random.Generator, batch: int) -> Any:
    return padded(rng, batch), rng.integers(0, 5, (batch, 7))


def signals(rng: np.random.Generator, batch: int) -> Any:
    return rng.normal(size=(batch, 6, 3)), rng.normal(size=(batch, 1))


def rows(rng: np.random.Generator, batch: int) -> Any:
    return rng.normal(size=(batch, 6)), rng.normal(size=(batch, 1))


def images(rng: np.random.Generator, batch: int) -> Any:
    return rng.random((batch, 8, 8, 1)), np.eye(4)[rng.integers(0, 4, batch)]


def ticket(rng: np.random.Generator, batch: int) -> Any:
    x = {
        "title": rng.integers(0, 30, (batch, 5)),
        "tags": rng.integers(0, 2, (batch, 4)).astype("float32"),
    }
    return x, {"priority": rng.random((batch, 1)), "department": rng.integers(0, 3, (batch,))}


def weighted(rng: np.random.Generator, batch: int) -> Any:
    return (*rows(rng, batch), rng.random(batch))


def pairs(rng: np.random.Generator, batch: int) -> Any:
    return [padded(rng, batch), padded(rng, batch, 6)], rng.integers(0, 30, (batch, 6))


# ------------------------------------------------------------------------------------------- models


@model(review)
def classifier() -> Any:
    """The text classifier of the tutorials: no Input, labels of one dim, everything by name."""
    net = keras.Sequential(
        [layers.Embedding(30, 8), layers.LSTM(8), layers.Dense(1, activation="sigmoid")]
    )
    net.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return net


@model(padded_review)
def bidirectional() -> Any:
    """Two layers in both directions over masked steps; dropout that drops nothing."""
    net = keras.Sequential(
        [
            layers.Embedding(30, 8, mask_zero=True),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.Dropout(0.0),
            layers.Bidirectional(layers.LSTM(4)),
            layers.Dense(8, activation="relu"),
            layers.Dense(1),
        ]
    )
    net.compile(
        optimizers.Adam(1e-2), losses.BinaryCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return net


@model(signals)
def gru() -> Any:
    net = keras.Sequential(
        [layers.Input((6, 3)), layers.GRU(8, return_sequences=True), layers.GRU(4), layers.Dense(1)]
    )
    net.compile("rmsprop", "mse", metrics=["mae"])
    return net


@model(padded_review)
def gru_reset_before() -> Any:
    net = keras.Sequential(
        [
            layers.Embedding(30, 8, mask_zero=True),
            layers.GRU(8, reset_after=False, return_sequences=True),
            layers.GRU(6, reset_after=False, use_bias=False),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    net.compile(optimizers.Nadam(5e-3), "binary_crossentropy")
    return net


@model(tagged)
def tagger() -> Any:
    """A class for every word: masked steps count neither in the loss nor in the metric."""
    net = keras.Sequential(
        [
            layers.Embedding(30, 8, mask_zero=True),
            layers.LSTM(8, return_sequences=True),
            layers.TimeDistributed(layers.Dense(5, activation="softmax")),
        ]
    )
    net.compile(
        optimizers.Adam(1e-2, amsgrad=True), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return net


@model(rows)
def normed() -> Any:
    """Batch norm, whose moving statistics change; the gradients clipped by their norm."""
    net = keras.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(8, use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.Dense(1),
        ]
    )
    net.compile(
        optimizers.SGD(0.05, momentum=0.9, nesterov=True, global_clipnorm=0.5), "mean_squared_error"
    )
    return net


@model(ticket)
def two_outputs() -> Any:
    """Several inputs and outputs by name, losses with weights."""
    title, tags = keras.Input((5,), name="title"), keras.Input((4,), name="tags")
    x = layers.concatenate([layers.GlobalAveragePooling1D()(layers.Embedding(30, 8)(title)), tags])
    x = layers.Dense(8, activation="gelu")(x)
    out = {
        "priority": layers.Dense(1, activation="sigmoid", name="priority")(x),
        "department": layers.Dense(3, name="department")(x),
    }
    net = keras.Model([title, tags], out)
    net.compile(
        optimizers.Adam(1e-2),
        loss={
            "priority": "mae",
            "department": losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        loss_weights={"priority": 1.0, "department": 0.2},
        metrics={"priority": ["mse"], "department": ["accuracy"]},
    )
    return net


class Residual(keras.Model):
    """A model written as a class, with a loss that it adds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [layers.Dense(6, activation="tanh") for _ in range(2)]
        self.norm = layers.LayerNormalization()
        self.head = layers.Dense(1)

    def call(self, x: Any, training: bool = False) -> Any:
        for block in self.blocks:
            x = x + block(x, training=training)
        self.add_loss(0.01 * ops.mean(ops.square(x)))
        return self.head(self.norm(x))


@model(weighted)
def subclassed() -> Any:
    """Weights of samples."""
    net = Residual()
    net.compile(optimizers.Adam(1e-2, clipvalue=0.1), "huber", weighted_metrics=["mae"])
    return net


@model(review, class_weight={0: 1.0, 1: 3.0})
def conv1d() -> Any:
    """Weights of classes."""
    net = keras.Sequential(
        [
            layers.Embedding(30, 8),
            layers.Conv1D(8, 3, activation="relu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(8, 2, padding="same"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    net.compile(optimizers.RMSprop(1e-3, momentum=0.9, centered=True), "binary_crossentropy")
    return net


@model(images)
def conv2d() -> Any:
    net = keras.Sequential(
        [
            layers.Rescaling(2.0),
            layers.Conv2D(4, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(),
            layers.Conv2D(8, 3),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    net.compile(
        optimizers.Adagrad(0.05),
        losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    return net


@model(signals)
def simple_rnn() -> Any:
    """Regularizers of weights and outputs, and a loss that is a sum."""
    net = keras.Sequential(
        [
            layers.SimpleRNN(
                8,
                kernel_regularizer="l2",
                return_sequences=True,
                activity_regularizer=regularizers.L2(1e-3),
            ),
            layers.SimpleRNN(4, go_backwards=True),
            layers.Dense(1, kernel_regularizer=regularizers.L1L2(1e-3, 1e-3)),
        ]
    )
    net.compile(optimizers.SGD(1e-3), losses.MeanSquaredError(reduction="sum"))
    return net


@model(padded_review)
def attention() -> Any:
    """A block of a transformer over masked words; weights decay but for biases and norms, at a
    rate that falls."""
    ids = keras.Input((7,))
    x = layers.Embedding(30, 8, mask_zero=True)(ids)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, activation="relu")(x)))
    net = keras.Model(
        ids, layers.Dense(1, activation="sigmoid")(layers.GlobalAveragePooling1D()(x))
    )
    optimizer = optimizers.AdamW(
        optimizers.schedules.ExponentialDecay(1e-2, 3, 0.5), weight_decay=0.01
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    net.compile(optimizer, "binary_crossentropy")
    return net


@model(pairs)
def translator() -> Any:
    """An encoder whose last state, of masked sequences, a decoder begins from."""
    words, before = keras.Input((7,)), keras.Input((6,))
    _, state = layers.GRU(8, return_state=True)(layers.Embedding(30, 8, mask_zero=True)(words))
    y = layers.GRU(8, return_sequences=True)(
        layers.Embedding(30, 8, mask_zero=True)(before), initial_state=state
    )
    net = keras.Model([words, before], layers.Dense(30)(y))
    net.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
    return net
