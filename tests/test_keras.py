"""Keras models as they are: planned, trained on two ranks as in one process, the weights handed back."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from cost_models.cluster import load_cluster
from cost_models.errors import BadValue
from planner.ask import Ask, build
from planner.models.keras_model import KerasModule, put_back
from planner.pins import parse_mesh
from planner.plan import write_plan
from planner.search import search
from runtime.training import train_plan

os.environ.setdefault("KERAS_BACKEND", "torch")
HERE = Path(__file__).parent / "keras_models.py"
needs_keras = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed (the extra `keras`)")


def ask(name: str) -> Ask:
    return Ask(model=f"keras:{HERE}:{name}", batch=16, seq=None, settings={}, dtype="float32", num_devices=2)


@needs_keras
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


@needs_keras
@pytest.mark.parametrize(("body", "words"), [
    ("return 3", "return \\(model, \\(x, y\\)\\)"),
    ("return keras.Sequential([keras.layers.Dense(1)]), (1, 2)", "is not compiled"),
])  # fmt: skip
def test_what_is_wrong_is_said(body: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(f"import keras\ndef make():\n    {body}\n")
    wrong = Ask(model=f"keras:{tmp_path}/wrong.py:make", batch=None, seq=None, settings={}, dtype="float32", num_devices=2)
    with pytest.raises(BadValue, match=words):
        build(wrong)


@pytest.mark.skipif(find_spec("keras") is not None, reason="Keras is installed")
def test_without_keras_the_extra_is_named() -> None:
    with pytest.raises(BadValue, match=r"pip install 'shardwright\[keras\]'"):
        build(ask("sentiment"))
