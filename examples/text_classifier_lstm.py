"""A person has labelled mails, wants a spam filter, and has several processors: plan the split, train, check.

The mails of `examples/data/mail.tsv` are read, split into a training part and a held-out part, and indexed with
`planner.text`; the `lstm` model learns which are spam. Every batch is a *global* batch of the same documents in the same
order however many ranks share it, so that the losses of a run on several ranks can be laid beside those of one process.

    python examples/text_classifier_lstm.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from planner.text import Vocabulary
from planner.workload import Workload, load_workload

DATA = Path(__file__).with_name("data") / "mail.tsv"
SETTINGS = {"vocab": "4000", "embed": "64", "hidden": "64"}
LENGTH = 60  # tokens of each mail
BATCH = 64  # documents of all ranks together: divisible by 4
EPOCHS = 6
LEARNING_RATE = 3e-3
HELD_OUT = 5  # every fifth document
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Documents as the model reads them: ids (documents, LENGTH) and labels (documents,), 1 for spam."""

    ids: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The loss of every step, and the module after the last one."""

    losses: tuple[float, ...]
    module: torch.nn.Module


def load(path: Path = DATA) -> list[tuple[str, int]]:
    """Every document's text with 1 for spam and 0 for the others."""
    rows = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return [(text, int(kind == "spam")) for kind, text in rows]


def prepare(documents: list[tuple[str, int]]) -> tuple[Part, Part, Vocabulary]:
    """The training part, the held-out part (every `HELD_OUT`th document), and the vocabulary of the training part."""
    training = [document for index, document in enumerate(documents) if index % HELD_OUT]
    held_out = documents[::HELD_OUT]
    vocabulary = Vocabulary.of((text for text, _ in training), size=int(SETTINGS["vocab"]))
    return _part(training, vocabulary), _part(held_out, vocabulary), vocabulary


def _part(documents: list[tuple[str, int]], vocabulary: Vocabulary) -> Part:
    ids = vocabulary.encode_all([text for text, _ in documents], length=LENGTH)
    return Part(ids=ids, labels=torch.tensor([label for _, label in documents], dtype=torch.float32))


def batches(
    part: Part, *, epochs: int = EPOCHS, batch: int = BATCH, seed: int = SEED
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The global batches (ids, labels) of all epochs, the same for the same seed; a last, smaller batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(part.labels), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            yield part.ids[chosen], part.labels[chosen]


def workload() -> Workload:
    """The `lstm` model at this example's sizes, initialised from `SEED`."""
    torch.manual_seed(SEED)
    return load_workload("lstm", batch=BATCH, seq=LENGTH, settings=SETTINGS, num_devices=1)


def train_one_process(work: Workload, part: Part, *, epochs: int = EPOCHS) -> Trained:
    """Plain PyTorch on one process: what a run on several ranks must agree with."""
    optimizer = torch.optim.Adam(work.module.parameters(), lr=LEARNING_RATE)
    losses = []
    for ids, labels in batches(part, epochs=epochs):
        optimizer.zero_grad()
        loss = work.loss(work.module(ids), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Trained(losses=tuple(losses), module=work.module)


@torch.no_grad()
def accuracy(module: torch.nn.Module, part: Part) -> float:
    """Share of the documents whose probability is on the right side of one half."""
    return float(((module(part.ids) > 0.5) == (part.labels > 0.5)).float().mean())


def majority(part: Part) -> float:
    """The accuracy of always giving the more frequent answer."""
    share = float(part.labels.mean())
    return max(share, 1 - share)


def main() -> None:
    torch.set_num_threads(1)
    training, held_out, vocabulary = prepare(load())
    print(f"{len(training.labels)} documents to learn from, {len(held_out.labels)} held out, {len(vocabulary)} tokens")
    start = time.perf_counter()
    trained = train_one_process(workload(), training)
    print(f"one process: {len(trained.losses)} steps in {time.perf_counter() - start:.1f} s")
    print(f"loss {trained.losses[0]:.4f} -> {trained.losses[-1]:.4f}")
    print(f"held-out accuracy {accuracy(trained.module, held_out):.3f}, always the same answer {majority(held_out):.3f}")


if __name__ == "__main__":
    main()
