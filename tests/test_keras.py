"""Keras models as they are: planned, trained on two ranks as in one process, the weights handed back."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from cost_models.cluster import load_cluster
from cost_models.errors import BadValue
from planner.ask import Ask, build
from planner.models.keras_model import KerasModule, put_back
from planner.pins import parse_mesh
from planner.plan_file import write_plan
from planner.search import search
from runtime.training import train_plan

os.environ.setdefault("KERAS_BACKEND", "torch")
HERE = Path(__file__).parent / "keras_models.py"


def ask(name: str) -> Ask:
    return Ask(model=f"keras:{HERE}:{name}", batch=16, seq=None, settings={}, dtype="float32", num_devices=2)


@pytest.mark.parametrize("name", ["sentiment", "normed"])
def test_a_keras_model_trains_on_two_ranks_and_gets_its_weights_back(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        found = search(ask(name), load_cluster("cpu", num_devices=2), mesh=parse_mesh("dp=2", 2))
    write_plan(found.plan, tmp_path / "plan.json")
    torch.manual_seed(5)
    plain: Any = build(ask(name))
    trained = train_plan(tmp_path / "plan.json", [plain.batch] * 3, seed=5)
    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[plain.optimizer](
        plain.module.parameters(), lr=plain.learning_rate
    )
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss, _ = plain.loss_of(plain.batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert trained.losses == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0]
    for key, tensor in trained.state.items():
        torch.testing.assert_close(tensor, plain.module.state_dict()[key], rtol=1e-4, atol=1e-6)
    module = plain.module
    assert isinstance(module, KerasModule)
    before = module.keras_model(plain.batch[0], training=False).detach().cpu()
    put_back(module.keras_model, trained.state)
    after = module.keras_model(plain.batch[0], training=False).detach().cpu()
    assert not torch.allclose(before, after)
    values = [v.value.detach().cpu() for v in module.keras_model.trainable_variables]
    for key, value in zip(module.trained, values, strict=True):
        torch.testing.assert_close(value, trained.parameters[key])


MADE = """
import keras
import numpy as np
from keras import optimizers

def made(optimizer, **settings):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, **settings)])
    model.compile(optimizer=optimizer, loss="mse")
    return model, (np.zeros((4, 3), "float32"), np.zeros((4, 1), "float32"))
"""


def test_a_keras_optimizers_settings_are_taken_or_refused(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(f"{MADE}\ndef make():\n    return made(optimizers.Adam(0.03, global_clipnorm=2.0))\n")
    made = build(
        Ask(model=f"keras:{tmp_path}/right.py:make", batch=None, seq=None, settings={}, dtype="float32", num_devices=2)
    )
    assert (made.optimizer, made.learning_rate, made.clip_norm) == ("adam", pytest.approx(0.03), 2.0)


@pytest.mark.parametrize(("body", "words"), [
    ("return 3", "return \\(model, \\(x, y\\)\\)"),
    ("return keras.Sequential([keras.layers.Dense(1)]), (1, 2)", "is not compiled"),
    ("return made('rmsprop')", "the optimizer RMSprop is not planned"),
    ("return made(optimizers.SGD(0.1, momentum=0.9))", "SGD with momentum=0.9 is not planned, momentum=0.0 is"),
    ("return made(optimizers.Adam(beta_1=0.5))", "Adam with beta_1=0.5 is not planned, beta_1=0.9 is"),
    ("return made(optimizers.AdamW())", "AdamW with weight_decay=0.004 is not planned, weight_decay=0.01 is"),
    ("return made(optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)))", "a schedule of the learning rate"),
    ("return made('adam', kernel_regularizer='l2')", "losses that layers add"),
])  # fmt: skip
def test_what_is_wrong_is_said(body: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(f"{MADE}\ndef make():\n    {body}\n")
    wrong = Ask(model=f"keras:{tmp_path}/wrong.py:make", batch=None, seq=None, settings={}, dtype="float32", num_devices=2)
    with pytest.raises(BadValue, match=words):
        build(wrong)


def test_without_keras_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(BadValue, match=r"pip install 'shardwright\[keras\]'"):
        build(ask("sentiment"))
