"""The mails of `data/mail.tsv` as the `lstm` model reads them: three parts, one vocabulary, the
same batches every time.

    mail.tsv -> documents -> training, validation and held-out part -> ids of one length -> global batches

The vocabulary is that of the training part. Sizes and learning rates are picked on the validation
part; nothing of the held-out part takes part in any choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from planner.workload.text import Vocabulary

__all__ = ["Batch", "Mails", "Part", "accuracy", "batches", "load", "majority", "prepare"]

#: Ids (batch, length) and labels (batch,).
Batch = tuple[Tensor, Tensor]

DATA = Path(__file__).parent / "data" / "mail.tsv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Documents as the model reads them: ids (documents, length) and labels (documents,), 1 for
    spam."""

    ids: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Mails:
    """Three parts that have no document in common, and the vocabulary of the first."""

    training: Part
    validation: Part
    held_out: Part
    vocabulary: Vocabulary


def load(path: Path = DATA) -> list[tuple[str, int]]:
    """Every document's text with 1 for spam and 0 for the others."""
    rows = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return [(text, int(kind == "spam")) for kind, text in rows]


def prepare(documents: list[tuple[str, int]], *, length: int, vocab: int) -> Mails:
    """Of every five documents one is held out, one is for validation and three are for training
    (the file is in no order)."""
    held_out, validation = documents[::5], documents[1::5]
    training = [document for index, document in enumerate(documents) if index % 5 > 1]
    vocabulary = Vocabulary.of((text for text, _ in training), size=vocab)

    def part(chosen: list[tuple[str, int]]) -> Part:
        ids = vocabulary.encode_all([text for text, _ in chosen], length=length)
        return Part(
            ids=ids, labels=torch.tensor([label for _, label in chosen], dtype=torch.float32)
        )

    return Mails(
        training=part(training),
        validation=part(validation),
        held_out=part(held_out),
        vocabulary=vocabulary,
    )


def batches(part: Part, *, batch: int, epochs: int, seed: int) -> Iterator[Batch]:
    """The global batches (ids, labels) of all epochs, the same for the same seed; a last,
    smaller batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(part.labels), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            yield part.ids[chosen], part.labels[chosen]


@torch.no_grad()
def accuracy(module: torch.nn.Module, part: Part) -> float:
    """Share of the documents whose probability is on the right side of one half."""
    return float(((module(part.ids) > 0.5) == (part.labels > 0.5)).float().mean())


def majority(part: Part) -> float:
    """The accuracy of always giving the more frequent answer."""
    share = float(part.labels.mean())
    return max(share, 1 - share)
