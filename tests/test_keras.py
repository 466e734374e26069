"""Keras models as they are: trained on ranks as Keras's `fit` trains them, the weights handed
back; what is not planned is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cost_models.errors import BadValue, UserError
from planner.models.keras_model import KerasModule, put_back
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

os.environ.setdefault("KERAS_BACKEND", "torch")
# Keras's own, about numpy's newest version; and PuLP's, about its own version 4.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HERE = Path(__file__).parent / "keras_models.py"


def ask(name: str, **more: Any) -> Ask:
    given = {"batch": 8, "seq": None, "settings": {}, "dtype": "float32", "num_devices": 2, **more}
    return Ask(model=f"keras:{HERE}:{name}", **given)


def fit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, which `make test` takes a sample of."""
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "benchmarks"))
    import keras_fit

    return keras_fit


#: Models that are planned and run in `make test`, each with its mesh and pins; all of them are in
#: `benchmarks/keras_fit.py`.
SAMPLE: dict[str, tuple[str, tuple[str, ...]]] = {
    "classifier": ("dp=2", ()),
    "bidirectional": ("tp=2", ("bidirectional*=tensor",)),
    "normed": ("dp=2", ()),
}


def test_ranks_train_as_fit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    keras_fit = fit(monkeypatch)
    cases = {
        name: keras_fit.planned(name, 2, 3, pins, mesh) for name, (mesh, pins) in SAMPLE.items()
    }
    for name, found in keras_fit.ran(cases, 2).items():
        far = keras_fit.difference(found, keras_fit.fitted(name, 3))
        assert far.loss < 1e-6, (name, far)
        assert far.value < 1e-4, (name, far)


@pytest.mark.slow_matrix
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_fifty_steps_are_those_of_fit(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras_models

    keras_fit = fit(monkeypatch)
    found = keras_fit.ran(
        {name: keras_fit.planned(name, ranks, 50) for name in keras_models.MODELS}, ranks
    )
    far = {
        name: keras_fit.difference(one, keras_fit.fitted(name, 50)) for name, one in found.items()
    }
    assert not {name: one for name, one in far.items() if not one.loss < 1e-6}


@pytest.mark.parametrize(
    "name",
    ["tagger", "two_outputs", "subclassed", "simple_rnn", "attention", "translator", "conv1d"],
)
def test_the_loss_is_what_fit_reports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, weights of losses, samples and classes, regularizers and the reduction count."""
    losses = fit(monkeypatch).fitted(name, 1).losses
    torch.manual_seed(5)
    workload = build(ask(name))
    assert float(workload.loss_of(workload.batch)[0].detach()) == pytest.approx(losses[0], rel=1e-6)


def test_layers_have_their_paths_and_recurrent_ones_are_one_op() -> None:
    graph = trace(lambda: build(ask("bidirectional"))).graph
    assert {
        "embedding",
        "bidirectional.forward_lstm",
        "bidirectional_1.backward_lstm",
        "dense_1",
    } <= {n.path for n in graph.nodes}
    recurrent = [n for n in graph.nodes if n.op == "shardwright.masked_lstm"]
    assert [n.path.split(".")[1] for n in recurrent] == ["forward_lstm", "backward_lstm"] * 2
    assert {n.path for n in graph.nodes if n.op == "shardwright.masked_lstm_backward"} == {
        n.path for n in recurrent
    }
    assert "bidirectional.forward_lstm.lstm_cell.kernel" in {p.name for p in graph.parameters}


def test_what_was_learned_goes_back_to_keras() -> None:
    workload = build(ask("normed"))
    module: Any = workload.module
    assert isinstance(module, KerasModule)
    state = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    put_back(module.keras_model, state)
    assert set(state) == {*module.trained, *module.state}
    for name, variable in zip(module.trained, module.keras_model.trainable_variables, strict=True):
        torch.testing.assert_close(variable.value.detach().cpu(), state[name])
    moving = module.keras_model.get_layer(index=1).moving_mean.value
    torch.testing.assert_close(moving.detach().cpu(), state["batch_normalization.moving_mean"])


@pytest.mark.parametrize(
    ("layer", "x", "reported"),
    [
        (
            "layers.Dense(3, 'softmax')",
            "np.eye(3)[[0, 1, 2, 0]]",
            {"f1_score_0", "f1_score_1", "f1_score_2"},
        ),
    ],
)
def test_a_metric_of_many_values_is_reported_by_numbers(
    layer: str, x: str, reported: set[str], tmp_path: Path
) -> None:
    found = made(
        tmp_path,
        f"m = keras.Sequential([{layer}]); "
        f"m.compile('adam', 'categorical_crossentropy', metrics=[keras.metrics.F1Score()]); return m, (X, {x})",
    )
    assert set(found.loss_of(found.batch)[1]) == reported


def test_tensors_that_a_layer_holds_are_buffers(tmp_path: Path) -> None:
    adapted = "n = layers.Normalization(); n.adapt(np.arange(12.0).reshape(4, 3))"
    body = f"{adapted}; m = keras.Sequential([n, layers.Dense(1)]); m.compile('sgd', 'mse'); return m, (X, Y)"
    graph = trace(lambda: made(tmp_path, body)).graph
    assert "normalization.mean_held" in {graph.values[i].name for i in graph.buffers}


def test_names_do_not_depend_on_what_the_process_made_before() -> None:
    assert [build(ask("gru")).module.trained for _ in range(2)][1][0] == "gru.gru_cell.kernel"


MADE = """
import keras
import numpy as np
from keras import layers, optimizers

X, Y = np.zeros((4, 3), "float32"), np.zeros((4, 1), "float32")

def made(optimizer, loss="mse", **settings):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, **settings)])
    model.compile(optimizer=optimizer, loss=loss)
    return model, (X, Y)

class Own(keras.Model):
    def train_step(self, data):
        return {}
"""


def made(tmp_path: Path, body: str, **more: Any) -> Any:
    (tmp_path / "some.py").write_text(f"{MADE}\ndef make():\n    {body}\n")
    given = {
        "batch": None,
        "seq": None,
        "settings": {},
        "dtype": "float32",
        "num_devices": 2,
        **more,
    }
    return build(Ask(model=f"keras:{tmp_path}/some.py:make", **given))


@pytest.mark.parametrize(
    ("optimizer", "name", "settings"),
    [
        ("'adam'", "keras-adam", {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
        ("optimizers.AdamW()", "keras-adam", {"weight_decay": 0.004, "excluded": ()}),
        (
            "optimizers.SGD(0.1, momentum=0.9)",
            "keras-sgd-momentum",
            {"momentum": 0.9, "nesterov": False},
        ),
        ("optimizers.RMSprop(centered=True)", "keras-rmsprop-centered", {"rho": 0.9}),
        ("optimizers.Adagrad()", "keras-adagrad", {"initial_accumulator_value": 0.1}),
    ],
)
def test_an_optimizers_settings_are_taken(
    optimizer: str, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = made(tmp_path, f"return made({optimizer})")
    assert found.optimizer == name
    assert settings.items() <= found.optimizer_settings.items()
    assert found.clip_epsilon == 0.0


def test_a_schedule_is_asked_at_every_iteration(tmp_path: Path) -> None:
    found = made(
        tmp_path, "return made(optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)))"
    )
    assert [found.optimizer_settings["schedule"](i) for i in range(3)] == pytest.approx(
        [0.1, 0.05, 0.025]
    )


def test_the_dtype_is_that_of_the_precision(tmp_path: Path) -> None:
    found = made(tmp_path, "return made('adam')", dtype="float64")
    assert {p.dtype for p in found.module.parameters()} == {torch.float64}
    assert found.loss_of(found.batch)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", "return \\(model, \\(x, y\\)\\)"),
        ("return keras.Sequential([keras.layers.Dense(1)]), (X, Y)", "is not compiled"),
        ("return made('ftrl')", "the optimizer Ftrl is not supported"),
        ("return made(optimizers.Adam(clipnorm=1.0))", "Adam with clipnorm=1.0 is not supported"),
        ("return made(optimizers.Adam(use_ema=True))", "Adam with use_ema=True is not supported"),
        (
            "return made('adam', kernel_constraint='non_neg')",
            "the constraint NonNeg of dense.kernel is not supported",
        ),
        (
            "return made('adam')[0], (X, np.array(['a', 'b', 'c', 'd']))",
            "targets of the batch of .* not numbers; pass text through",
        ),
        ("return made('adam')[0], X", "is a ndarray: give \\(x, y\\)"),
        ("return *made('adam'), {'epochs': 3}", "give a dict with class_weight or sample_weight"),
        (
            "return (made('adam')[0], (X, Y, Y[:, 0]), {'class_weight': {0: 2.0}})",
            "class_weight and sample_weight at the same time",
        ),
        (
            "m = keras.Sequential([layers.Input(batch_shape=(4, 2, 3)), layers.LSTM(1, "
            "stateful=True)]); m.compile('adam', 'mse'); return m, (np.zeros((4, 2, 3)), Y)",
            "layer lstm keeps its state from batch to batch",
        ),
        (
            "model = Own(); model.compile('adam', 'mse'); return model, (X, Y)",
            "Own has its own train_step",
        ),
        (
            "return made('adam')[0], (np.zeros((4, 5), 'float32'), Y)",
            "Input 0 of layer|axis -1|incompatible",
        ),
    ],
)
def test_what_is_wrong_is_said(body: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        found = made(tmp_path, body)
        trace(lambda: found)


def test_a_model_that_keras_cannot_build_does_not_spoil_the_next(tmp_path: Path) -> None:
    """Keras has no orthogonal initializer in bfloat16, and keeps the variables that it began to
    make."""
    recurrent = (
        "m = keras.Sequential([layers.LSTM(2)]); m.compile('adam', 'mse'); return m, "
        "(np.zeros((4, 2, 3)), np.zeros((4, 2)))"
    )
    with pytest.raises(BadValue, match="Keras cannot build the model"):
        made(tmp_path, recurrent, dtype="bfloat16")
    assert made(tmp_path, recurrent).module.trained[0] == "lstm.lstm_cell.kernel"


def test_without_keras_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(BadValue, match=r"pip install 'shardwright\[keras\]'"):
        build(ask("classifier"))
