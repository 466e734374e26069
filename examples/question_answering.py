"""Question answering: a small transformer reads what a function says of its parameters, and answers
what one of them is.

2,165 functions of numpy, pandas and networkx (data/README.md), every eighth held out. The text is
the section on parameters as one run of words; the question is a parameter's name, the answer what
the documentation has for its type: a span of the text, which nothing marks off from the description
after it. The figure of merit is the share of questions whose answer is right to the word, beside
that of the untrained model and of a rule: the answer follows the name and a colon, and is as long
as most answers are.

    python examples/question_answering.py [--ranks 2] [--steps 500]
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from question_model import ASKED, QUESTION, TEXT, Reader, losses
from torch import Tensor

from planner import plan
from runtime.training import train_plan

DATA = Path(__file__).parent / "data" / "parameters.tsv"
BATCH, LENGTH, VOCAB, SEED = 64, 112, 1500, 0
SPECIAL = ("<pad>", "<unk>", "<question>")

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A parameter's name, the text, and the answer: from word `start` to word `end` of the text,
    both included."""

    name: list[str]
    text: list[str]
    start: int
    end: int


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def questions(line: str) -> Iterator[Question]:
    """One question a parameter, of a function that has at least two."""
    _, *fields = line.split("\t")
    text: list[str] = []
    found = []
    for name, kind, description in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        start = len(text) + len(words(name)) + 1
        found.append((words(name), start, start + len(words(kind)) - 1))
        text += [*words(name), ":", *words(kind), *words(description)]
    if len(found) > 1:
        yield from (
            Question(name=name, text=text, start=start, end=end) for name, start, end in found
        )


def load() -> tuple[list[Question], list[Question]]:
    """The questions to learn from and those held out: of other functions."""
    lines = DATA.read_text(encoding="ascii").splitlines()
    learn = [
        question for index, line in enumerate(lines) if index % 8 for question in questions(line)
    ]
    return learn, [question for line in lines[::8] for question in questions(line)]


def tensors(asked: Sequence[Question], vocabulary: dict[str, int]) -> Batch:
    """Ids, what each token is, which are real, and where the answers start and end."""
    ids, kinds, ends = [], [], []
    for question in asked:
        tokens = [*question.name, SPECIAL[2], *question.text]
        before = len(question.name) + 1
        marks = [QUESTION] * before + [
            ASKED if word in question.name else TEXT for word in question.text
        ]
        rest = LENGTH - len(tokens)
        ids.append([vocabulary.get(token, 1) for token in tokens] + [0] * rest)
        kinds.append(marks + [QUESTION] * rest)
        ends.append([before + question.start, before + question.end])
    return torch.tensor(ids), torch.tensor(kinds), torch.tensor(ids) != 0, torch.tensor(ends)


def batches(whole: Batch, steps: int) -> list[Batch]:
    """Global batches; the order starts anew when all questions have been asked."""
    generator = torch.Generator().manual_seed(SEED)
    rounds = -(-steps * BATCH // len(whole[0]))
    order = torch.cat([torch.randperm(len(whole[0]), generator=generator) for _ in range(rounds)])
    return [
        (whole[0][at], whole[1][at], whole[2][at], whole[3][at])
        for at in order[: steps * BATCH].split(BATCH)
    ]


@torch.no_grad()
def right(module: torch.nn.Module, whole: Batch) -> float:
    """The share of answers that start and end where they should."""
    ids, kinds, real, ends = whole
    return float((module(ids, kinds, real).argmax(1) == ends).all(1).float().mean())


def right_by_rule(learn: Sequence[Question], held_out: Sequence[Question]) -> float:
    """The same share of the rule: after the name's first place before a colon, as long as most
    answers to learn from."""
    usual = Counter(question.end - question.start for question in learn).most_common(1)[0][0]

    def after_colon(question: Question) -> int:
        wanted = [*question.name, ":"]
        return next(
            at
            for at in range(len(wanted), len(question.text))
            if question.text[at - len(wanted) : at] == wanted
        )

    answers = [(after_colon(question), question) for question in held_out]
    return sum(
        (at, at + usual) == (question.start, question.end) for at, question in answers
    ) / len(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a reader of documentation by a plan.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    learn, held_out = load()
    counts = Counter(word for question in learn for word in question.text)
    known = (*SPECIAL, *(word for word, _ in counts.most_common(VOCAB - len(SPECIAL))))
    vocabulary = {word: index for index, word in enumerate(known)}
    module = Reader(layers=2, width=64, heads=4, vocab=VOCAB, positions=LENGTH)
    test, steps = tensors(held_out, vocabulary), batches(tensors(learn, vocabulary), options.steps)
    untrained = right(module, test)
    planned = plan(
        module,
        steps[0],
        losses,
        cluster="cpu",
        num_devices=options.ranks,
        learning_rate=2e-3,
        clip_norm=1.0,
        folder=f"plans/question-answering-{options.ranks}",
    )
    print(
        f"mesh {planned.plan.mesh}, predicted {planned.simulate().step_time_s * 1e3:.2f} ms per "
        "step"
    )
    trained = train_plan(planned.path, steps, seed=SEED)
    module.load_state_dict(trained.state)
    first, last = (
        {name: round(loss, 3) for name, loss in trained.reported[at].items()} for at in (0, -1)
    )
    print(
        f"{len(learn)} questions, {len(steps)} steps on {options.ranks} ranks, losses {first} -> {last}"
    )
    by_rule = right_by_rule(learn, held_out)
    print(
        f"{len(held_out)} held out: {right(module, test):.3f} right (untrained {untrained:.3f}, "
        f"by the rule {by_rule:.3f})"
    )


if __name__ == "__main__":
    main()
