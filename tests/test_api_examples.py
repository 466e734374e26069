"""The examples of the Python API, shortened: digits, letters, translating and answering learned
on two ranks."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from example_scripts import EXAMPLES, run_example


def test_digits_are_recognised_after_a_few_epochs(tmp_path: Path) -> None:
    assert (EXAMPLES / "data" / "digits.csv.gz").stat().st_size <= 2_000_000
    assert "BSD 3-Clause" in (EXAMPLES / "data" / "LICENSE.digits").read_text()
    # This one runs as a process of its own.
    command = [sys.executable, str(EXAMPLES / "digits.py"), "--epochs", "3"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert out.splitlines()[-1].startswith("held-out accuracy 0.9"), out
    assert "30 steps on 2 ranks" in out


def test_letters_are_guessed_better_than_by_their_frequency(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (EXAMPLES / "data" / "lincoln.txt").stat().st_size <= 2_000_000
    assert "CC0" in (EXAMPLES / "data" / "LICENSE.lincoln").read_text()
    out, _ = run_example(tmp_path, capfd, "language_model.py", "--steps", "60")
    found = re.search(r"held out: ([0-9.]+) bits a letter \(([0-9.]+) by frequency\)", out)
    assert found, out
    assert float(found[1]) < float(found[2]) - 0.3


def test_messages_are_translated_better_than_by_the_untrained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (EXAMPLES / "data" / "messages.tsv").stat().st_size <= 500_000
    assert (EXAMPLES / "data" / "LICENSE.messages").read_text().count(
        "Redistribution and use in source and binary forms"
    ) == 3
    out, _ = run_example(tmp_path, capfd, "translation.py", "--steps", "80")
    found = re.search(
        r"held out: chrF ([0-9.]+) \(untrained ([0-9.]+), English ([0-9.]+), memory ([0-9.]+)\)",
        out,
    )
    assert found, out
    trained, untrained, english, memory = map(float, found.groups())
    assert trained > untrained + 2
    assert untrained < english < memory
    assert out.count(" -> ") == 6


def test_chrf_of_hand_made_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    chrf = importlib.import_module("translation").chrf
    assert chrf([["une", "page"]], [["unep", "age"]]) == pytest.approx(100)
    assert chrf([["xyz"]], [["page"]]) == 0
    # "ab" in "abc": precisions 1, 1, 0 of sizes 1 to 3 and recalls 2/3, 1/2, 0
    precision, recall = 2 / 3, (2 / 3 + 1 / 2) / 3
    assert chrf([["ab"]], [["abc"]]) == pytest.approx(
        100 * 5 * precision * recall / (4 * precision + recall)
    )


def test_questions_are_answered_better_than_by_the_untrained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (EXAMPLES / "data" / "parameters.tsv").stat().st_size <= 500_000
    assert (EXAMPLES / "data" / "LICENSE.parameters").read_text().count(
        "Redistribution and use in source and binary forms"
    ) == 3
    out, _ = run_example(tmp_path, capfd, "question_answering.py", "--steps", "40")
    found = re.search(
        r"held out: ([0-9.]+) right \(untrained ([0-9.]+), by the rule ([0-9.]+)\)", out
    )
    assert found, out
    trained, untrained, by_rule = map(float, found.groups())
    assert trained > untrained + 0.02
    assert 0.2 < by_rule < 0.5
    assert "losses {'start': " in out
