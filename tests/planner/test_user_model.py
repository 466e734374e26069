"""Models of the user's own: how they are found and called, and what is said when something is
wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cost_models.errors import BadValue, UnknownName
from planner.workload.load import load_workload, resolve_options
from planner.workload.workload import Workload

SOURCE = """
import torch
from planner.workload.workload import Workload

def parts(batch=4, width=8, scale=1.0, name="x"):
    assert isinstance(width, int) and isinstance(scale, float) and isinstance(name, str)
    return torch.nn.Linear(width, 2), [torch.randn(batch, width), torch.randn(batch, 2)], torch.nn.functional.mse_loss

def tokens(batch, seq=5):
    ids = torch.randint(0, 9, (batch, seq))
    module = torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.BatchNorm1d(seq))
    return module, (ids, ids), lambda out, _: out.sum()

def anything(**options):
    module, batch, loss = parts(4, options.get("width", 8))
    return Workload(name="mine", module=module, batch=tuple(batch), loss=loss, optimizer="sgd", options={"depth": 1})

def fails():
    raise RuntimeError("it is broken\\nin two lines")

def only_two(): return torch.nn.Linear(1, 1), (torch.zeros(1), torch.zeros(1))
def with_a_switch(on: bool = False): return torch.nn.Linear(1, 1), (torch.zeros(1), torch.zeros(1)), torch.sum
def no_module(): return "model", (torch.zeros(1), torch.zeros(1)), torch.sum
def no_loss(): return torch.nn.Linear(1, 1), (torch.zeros(1), torch.zeros(1)), 3
def one_tensor(): return torch.nn.Linear(1, 1), torch.zeros(2, 1), torch.sum
def no_target(): return torch.nn.Linear(1, 1), (torch.zeros(2, 1),), torch.sum
def no_tensor(): return torch.nn.Linear(1, 1), (torch.zeros(2, 1), [1, 2]), torch.sum
def unequal(): return torch.nn.Linear(1, 1), (torch.zeros(2, 1), torch.zeros(3, 1)), torch.sum
def nothing(): pass
constant = 3
"""
MODULE = "a_module_of_the_users"
LINE_THAT_FAILS = SOURCE[: SOURCE.index("raise RuntimeError")].count("\n") + 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the user's module in it."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(
    spec: str,
    dtype: str = "float32",
    batch: int | None = None,
    seq: int | None = None,
    **settings: str,
) -> Workload:
    return load_workload(spec, batch=batch, seq=seq, settings=settings, num_devices=2, dtype=dtype)


@pytest.mark.parametrize("where", [MODULE, f"{MODULE}.py", f"./{MODULE}.py"])
def test_found_by_module_and_by_file(here: Path, where: str) -> None:
    work = load(f"{where}:parts")
    assert work.name == f"{where}:parts"
    assert [tuple(tensor.shape) for tensor in work.batch] == [(4, 8), (4, 2)]
    assert work.options == {"batch": 4}
    work.loss(work.module(work.batch[0]), work.batch[1]).backward()


def test_options_are_parsed_and_passed(here: Path) -> None:
    work = load(f"{MODULE}:parts", batch=6, width="16", scale="2.5", name="two")
    assert work.options == {"batch": 6, "width": 16, "scale": 2.5, "name": "two"}
    assert work.module.weight.shape == (2, 16)
    assert dict(
        resolve_options(
            f"{MODULE}:parts", batch=6, seq=None, settings={"on": "true"}, num_devices=1
        )
    ) == {
        "batch": 6,
        "on": True,
    }


def test_token_ids_count_as_tokens_and_keep_their_type(here: Path) -> None:
    work = load(f"{MODULE}:tokens", dtype="float64", batch=3, seq=7)
    assert work.tokens_per_sample == 7
    assert work.batch[0].dtype == torch.int64
    assert {p.dtype for p in work.module.parameters()} == {torch.float64}
    buffers = dict(work.module.named_buffers())
    assert buffers["1.running_mean"].dtype == torch.float64
    assert buffers["1.num_batches_tracked"].dtype == torch.int64


def test_a_workload_is_taken_as_it_is(here: Path) -> None:
    work = load(f"{MODULE}:anything", width="4")
    assert (work.name, work.optimizer) == ("mine", "sgd")
    assert work.options == {"batch": 4, "depth": 1, "width": 4}


def test_a_file_does_not_hide_a_module_of_its_name(here: Path) -> None:
    import json

    (here / "json.py").write_text(SOURCE)
    load("json.py:parts")
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("no_such_module:build", UnknownName, ["no module 'no_such_module'"]),
        ("no_such_package.model:build", UnknownName, ["no module 'no_such_package'"]),
        ("no/such/file.py:build", UnknownName, ["no file no/such/file.py"]),
        (":build", UnknownName, ["module:function"]),
        (f"{MODULE}:", UnknownName, ["module:function"]),
        (f"{MODULE}:part", UnknownName, ["unknown function in", "'part'", "did you mean 'parts'?"]),
        (f"{MODULE}:constant", BadValue, ["constant is a int, not a function"]),
        (f"{MODULE}:tokens", BadValue, ["needs a value for 'batch'", "--batch N"]),
        (
            f"{MODULE}:fails",
            BadValue,
            ["RuntimeError: it is broken", f"{MODULE}.py, line {LINE_THAT_FAILS}"],
        ),
        (f"{MODULE}:only_two", BadValue, ["a tuple of 2", "(model, batch, loss)"]),
        (f"{MODULE}:nothing", BadValue, ["a NoneType", "(model, batch, loss)"]),
        (f"{MODULE}:no_module", BadValue, ["a str as the model"]),
        (f"{MODULE}:no_loss", BadValue, ["a int as the loss"]),
        (f"{MODULE}:one_tensor", BadValue, ["a Tensor as the batch"]),
        (f"{MODULE}:no_target", BadValue, ["a batch of 1", "the target"]),
        (f"{MODULE}:no_tensor", BadValue, ["a list as number 1 of the batch"]),
        (f"{MODULE}:unequal", BadValue, ["dim 0 of [2, 3]"]),
    ],
)
def test_what_is_wrong_is_said(
    here: Path, spec: str, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as raised:
        load(spec)
    assert [word for word in words if word not in str(raised.value)] == []
    assert "\n" not in str(raised.value)


def test_an_option_that_the_function_lacks(here: Path) -> None:
    with pytest.raises(UnknownName, match="option 'widht': did you mean 'width'"):
        load(f"{MODULE}:parts", widht="3")
    with pytest.raises(UnknownName, match="option 'batch'"):
        load(f"{MODULE}:nothing", batch=3)
    with pytest.raises(BadValue, match="batch is 0"):
        load(f"{MODULE}:parts", batch=0)


def test_a_batch_given_twice(here: Path) -> None:
    with pytest.raises(BadValue, match="--batch 4 and --set batch=8 both set the batch"):
        resolve_options(
            f"{MODULE}:parts", batch=4, seq=None, settings={"batch": "8"}, num_devices=1
        )


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "true", "many"])
def test_a_batch_by_setting_is_checked_too(here: Path, text: str) -> None:
    with pytest.raises(BadValue, match=r"batch is .*: give a whole number"):
        resolve_options(
            f"{MODULE}:parts", batch=None, seq=None, settings={"batch": text}, num_devices=1
        )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import torch\n1 / 0\n", ["ZeroDivisionError: division by zero", "line 2"]),
        ("def build(:\n", ["SyntaxError", "line 1"]),
        ("import sys\nsys.exit(3)\n", ["SystemExit: 3", "line 2"]),
        ("import no_such_thing\n", ["ModuleNotFoundError: No module named 'no_such_thing'"]),
    ],
)
@pytest.mark.parametrize("ending", ["", ".py"])
def test_an_import_that_fails(here: Path, source: str, words: list[str], ending: str) -> None:
    (here / "broken.py").write_text(source)
    with pytest.raises(BadValue) as raised:
        load(f"broken{ending}:build")
    assert [
        word for word in [*words, "importing broken", "broken.py"] if word not in str(raised.value)
    ] == []
    assert "\n" not in str(raised.value)
    assert "broken" not in sys.modules


def test_a_switch_is_true_or_false(here: Path) -> None:
    with pytest.raises(BadValue, match=r"^--set on=maybe: on must be true or false$"):
        load(f"{MODULE}:with_a_switch", on="maybe")
