"""Data preparation: labelled text -> whole-number ids of one length, as the `lstm` model reads them.

    text -> tokenise -> Vocabulary.of(training part) -> index -> truncate or pad -> (documents, length) int64

The vocabulary comes from the training part alone, so that nothing of the held-out part is known to the model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from cost_models.errors import BadValue

__all__ = ["PAD", "UNKNOWN", "Vocabulary", "tokenise"]

PAD = "<pad>"
UNKNOWN = "<unk>"
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_")


def tokenise(text: str) -> tuple[str, ...]:
    """The words of `text` in lower case and each mark of punctuation on its own: "Don't!" gives ("don't", "!")."""
    return tuple(_TOKEN.findall(text.lower()))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The known tokens, each one's id its place: `<pad>` is 0, `<unk>` is 1, the others by falling frequency."""

    tokens: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tokens[:2] != (PAD, UNKNOWN):
            raise BadValue(
                f"a vocabulary starts with {PAD}, {UNKNOWN}; this one with {', '.join(self.tokens[:2]) or 'nothing'}"
            )
        ids = {token: index for index, token in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise BadValue(f"token {twice!r} is in the vocabulary twice: each has one id")
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, texts: Iterable[str], *, size: int) -> Vocabulary:
        """The `size` - 2 most frequent tokens of `texts`, ties in alphabetical order; fewer if there are no more."""
        if size < 3:
            raise BadValue(f"a vocabulary of {size} has no room for a word beside {PAD} and {UNKNOWN}: give at least 3")
        counts = Counter(token for text in texts for token in tokenise(text))
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        return cls((PAD, UNKNOWN, *ranked[: size - 2]))

    def encode(self, text: str, *, length: int) -> tuple[int, ...]:
        """Exactly `length` ids: the first tokens of `text`, after as many `<pad>` as are missing.

        Padding stands in front because the classifier reads the last time step.
        """
        if length < 1:
            raise BadValue(f"length {length}: give at least 1 token")
        ids = [self._ids.get(token, 1) for token in tokenise(text)[:length]]
        return (0,) * (length - len(ids)) + tuple(ids)

    def decode(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The tokens of `ids` without padding: what `encode` was given, as far as it fitted and was known."""
        return tuple(self.tokens[index] for index in ids if index != 0)

    def encode_all(self, texts: Sequence[str], *, length: int) -> torch.Tensor:
        """`encode` of every text: int64 of shape (texts, length)."""
        return torch.tensor([self.encode(text, length=length) for text in texts], dtype=torch.int64).reshape(len(texts), length)
