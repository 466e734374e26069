"""The examples, end to end: mails that real ranks learn from as one process does, and a model of
one's own."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from example_scripts import EXAMPLES, run_example

from cost_models.cluster import load_cluster
from cost_models.errors import UnknownName
from planner.plans.plan import Plan
from planner.search.search import search
from planner.strategy.pins import parse_mesh, parse_pin
from planner.workload.ask import Ask


@pytest.fixture(scope="module", autouse=True)
def examples_on_path() -> Iterator[None]:
    """As where `python examples/NAME.py` finds its neighbours; ranks inherit it."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def mail() -> ModuleType:
    return importlib.import_module("mail")


@pytest.fixture(scope="module")
def classifier() -> ModuleType:
    return importlib.import_module("text_classifier_lstm")


# ---------------------------------------------------------------------------------------- the mails


def test_the_mails_are_many_small_and_balanced(mail: ModuleType) -> None:
    documents = mail.load()
    assert len(documents) >= 2000
    assert sum(label for _, label in documents) * 2 == len(documents)
    assert len({text for text, _ in documents}) == len(documents)
    assert mail.DATA.stat().st_size <= 2_000_000
    assert (EXAMPLES / "data" / "LICENSE").read_text().count("CC0") > 0


def test_the_mails_hold_no_addresses(mail: ModuleType) -> None:
    assert [text for text, _ in mail.load() if re.search(r"\w@\w|https?://", text)] == []


def test_the_model_knows_the_words_of_the_training_part_alone(mail: ModuleType) -> None:
    mails = mail.prepare(
        [("out", 1), ("check", 0), ("seen", 1), ("seen", 1), ("seen", 0)] * 2, length=3, vocab=10
    )
    assert [len(part.labels) for part in (mails.training, mails.validation, mails.held_out)] == [
        6,
        2,
        2,
    ]
    assert mails.vocabulary.tokens[2:] == ("seen",)
    assert mails.held_out.ids.tolist() == mails.validation.ids.tolist() == [[0, 0, 1]] * 2
    assert mails.held_out.labels.tolist() == [1, 1]


def test_batches_are_the_same_again(mail: ModuleType) -> None:
    part = mail.Part(ids=torch.arange(22).reshape(11, 2), labels=torch.arange(11.0))
    first, again, other = (
        list(mail.batches(part, batch=4, epochs=2, seed=seed)) for seed in (0, 0, 1)
    )
    assert len(first) == 4
    for (ids, labels), (same_ids, same_labels) in zip(first, again, strict=True):
        assert torch.equal(ids, same_ids)
        assert torch.equal(labels, same_labels)
        assert torch.equal(ids[:, 0], 2 * labels.long())
    assert len({float(label) for _, labels in first[:2] for label in labels}) == 8
    assert not torch.equal(first[0][1], first[2][1])
    assert not torch.equal(first[0][1], other[0][1])


# ----------------------------------------------------------------------------------- the classifier


@pytest.mark.slow
def test_the_classifier_runs_from_anywhere_and_agrees(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, errors = run_example(tmp_path, capfd, "text_classifier_lstm.py", "--ranks", "2")
    assert errors == ""
    rows = [
        re.split(r" {2,}", line.strip()) for line in out.splitlines() if re.match(r"[124] ", line)
    ]
    assert [row[:2] for row in rows[1:]] == [
        ["2", "dp=2 free"],
        ["2", "dp=2 pinned"],
        ["2", "tp=2 pinned"],
    ]
    figures = [[float(field) for field in row[-6:-1]] for row in rows[1:]]
    for final_loss, difference, right, majority, _ in figures:
        assert final_loss < 0.2
        assert difference < 1e-4
        assert majority < 0.55
        assert right > majority + 0.3
    assert "lstm hidden" in rows[3][-1]
    assert "lstm batch" in rows[2][-1]
    assert len(list(tmp_path.glob("plans/text-classifier-2*/plan.json"))) == 3


@pytest.mark.slow
def test_four_ranks_learn_the_same(
    classifier: ModuleType, mail: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mails = mail.prepare(mail.load(), length=classifier.LENGTH, vocab=classifier.VOCAB)
    steps = list(
        mail.batches(
            mails.training, batch=classifier.BATCH, epochs=classifier.EPOCHS, seed=classifier.SEED
        )
    )
    reference = classifier.one_process(mails, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        row = classifier.by_plan(mails, steps, 4)
    assert len(row.losses) == len(steps)
    assert classifier.largest_difference(row.losses, reference.losses) < 1e-4
    assert row.accuracy > mail.majority(mails.held_out) + 0.3


def test_sizes_are_picked_among_those_that_repeat_themselves(mail: ModuleType) -> None:
    choose = importlib.import_module("text_classifier_choose")
    sizes = {"batch": 4, "embed": 8, "learning_rate": 1e-3, "epochs": 1}
    tried = [
        choose.Tried(**sizes, accuracy=right, moves=moves)
        for right, moves in ((0.8, 1e-7), (0.9, 1e-6), (0.95, 1e-3))
    ]
    assert choose.pick(tried) == tried[1]
    mails = mail.prepare(mail.load()[:100], length=5, vocab=50)
    one = choose.attempt(mails.training, mails.validation, **sizes)
    assert 0 <= one.moves < 1e-5
    assert 0 <= one.accuracy <= 1


# ----------------------------------------------------------------------------- a model of one's own


def plan_own(mesh: str | None = None, *pins: str, **settings: str) -> Plan:
    spec = f"{EXAMPLES / 'own_model.py'}:build"
    asked = Ask(model=spec, batch=None, seq=None, settings=settings, dtype="float32", num_devices=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        pinned = None if mesh is None else parse_mesh(mesh, 4)
        return search(
            asked,
            load_cluster("dgx-h100", num_devices=4),
            mesh=pinned,
            pins=tuple(map(parse_pin, pins)),
        ).plan


def split_of(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {group["group"]: tuple(group["ops"]) for group in plan.summary["groups"]}


def test_own_model_is_planned() -> None:
    plan = plan_own()
    assert 0 <= plan.solver.gap <= 0.3
    assert split_of(plan)["body.blocks.*.up"] == ("batch",)
    hand_typed = [row.step_time_s for row in plan.alternatives if row.step_time_s is not None]
    assert plan.summary["step_time_s"] <= min(hand_typed)


def test_own_models_pins_are_kept() -> None:
    plan = plan_own("dp=2,tp=2", "body.blocks.*=tensor", "head=replicate", "stem.*=zero3")
    split = split_of(plan)
    assert (plan.mesh.names, plan.mesh.sizes) == (("dp", "tp"), (2, 2))
    assert split["body.blocks.*.up"] == split["body.blocks.*.down"] == ("batch", "up outputs")
    assert split["head"] == ("whole", "whole")
    stem = next(group for group in plan.summary["groups"] if group["group"] == "stem")
    assert stem["parameters"][0].startswith("by stem")


def test_own_models_sizes_and_mistakes() -> None:
    assert plan_own(depth="2").summary["num_parameters"] < plan_own().summary["num_parameters"]
    with pytest.raises(UnknownName, match="option 'dept'"):
        plan_own(dept="2")
    with pytest.raises(UnknownName, match="'tail' matches nothing in the model: its parts are"):
        plan_own(None, "tail=tensor")
