"""The mails and the single-process half of `examples/text_classifier_lstm.py`."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    found = importlib.util.spec_from_file_location("text_classifier_lstm", EXAMPLES / "text_classifier_lstm.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # its dataclasses look it up
    found.loader.exec_module(module)
    return module


def test_the_mails_are_many_small_and_balanced(example: ModuleType) -> None:
    documents = example.load()
    assert len(documents) >= 2000
    assert sum(label for _, label in documents) * 2 == len(documents)
    assert len({text for text, _ in documents}) == len(documents)
    assert example.DATA.stat().st_size <= 2_000_000
    assert (EXAMPLES / "data" / "LICENSE").read_text().count("CC0") > 0


def test_the_mails_hold_no_addresses(example: ModuleType) -> None:
    assert [text for text, _ in example.load() if re.search(r"\w@\w|https?://", text)] == []


def test_nothing_of_the_held_out_part_is_known_to_the_model(example: ModuleType) -> None:
    documents = [("seen", 1)] * 5 + [("unseen", 0)] + [("seen", 0)] * 4
    training, held_out, vocabulary = example.prepare(documents)
    assert (len(training.labels), len(held_out.labels)) == (8, 2)
    assert "unseen" not in vocabulary.tokens
    assert held_out.ids[1, -1] == 1


def test_batches_are_the_same_again_and_divide_by_four(example: ModuleType) -> None:
    part = example.Part(ids=torch.arange(22).reshape(11, 2), labels=torch.arange(11.0))
    first, again = (list(example.batches(part, epochs=2, batch=4)) for _ in range(2))
    assert len(first) == 4
    for (ids, labels), (same_ids, same_labels) in zip(first, again, strict=True):
        assert torch.equal(ids, same_ids)
        assert torch.equal(labels, same_labels)
        assert torch.equal(ids[:, 0], 2 * labels.long())
    assert len({float(label) for _, labels in first[:2] for label in labels}) == 8
    assert not torch.equal(first[0][1], first[2][1])
    assert example.BATCH % 4 == 0


def test_one_process_learns(example: ModuleType) -> None:
    training, held_out, _ = example.prepare(example.load())
    trained = example.train_one_process(example.workload(), training)
    assert example.majority(held_out) < 0.55
    assert example.accuracy(trained.module, held_out) > 0.9
    assert len(trained.losses) == example.EPOCHS * (len(training.labels) // example.BATCH)
