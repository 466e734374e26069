"""Data preparation: labelled text -> whole-number ids of one length, as the `lstm` model reads
them.

    text -> tokenise -> Vocabulary.of(training part) -> index -> truncate or pad -> (documents, length) int64

The vocabulary comes from the training part alone, so that nothing of the held-out part is known to
the model.

This is a pipeline of our own. With `as_keras` it is that of Keras's `Tokenizer(num_words=size,
oov_token="<unk>")` and `pad_sequences` as they are by default, id by id:

| | ours | `as_keras` |
|---|---|---|
| punctuation | each mark a token, `'` inside a word its part | dropped, but for `'`, a part of words everywhere |
| words end at | any white space | blanks, tabs and new lines |
| ties in frequency | by alphabet | by first appearance |
| what is too long | loses its end | loses its beginning |
| what is too short | padded in front | padded in front |
| 0, 1 | padding, unknown | padding, unknown |

Keras's `TextVectorization` is a third: it drops `'` too, pads and cuts at the end.
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


#: What Keras's tokenizer treats as blanks (`keras.preprocessing.text.Tokenizer`, `filters`).
_BLANKS = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))


def _keras_words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.lower().translate(_BLANKS).split(" ") if word)


def tokenise(text: str) -> tuple[str, ...]:
    """The words of `text` in lower case and each mark of punctuation on its own: "Don't!" gives
    ("don't", "!")."""
    return tuple(_TOKEN.findall(text.lower()))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The known tokens, each at the place of its id: `<pad>` is 0, `<unk>` is 1, the others follow
    by falling frequency. With `as_keras`, texts are split and cut as Keras does it."""

    tokens: tuple[str, ...]
    as_keras: bool = False
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tokens[:2] != (PAD, UNKNOWN):
            raise BadValue(
                f"a vocabulary must start with {PAD}, {UNKNOWN}; this one starts with "
                f"{', '.join(self.tokens[:2]) or 'nothing'}"
            )
        ids = {token: index for index, token in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise BadValue(f"token {twice!r} is in the vocabulary twice: each has one id")
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, texts: Iterable[str], *, size: int, as_keras: bool = False) -> Vocabulary:
        """The `size` - 2 most frequent tokens of `texts`, ties in alphabetical order; fewer if
        there are no more. `as_keras`: Keras's words, ties in order of appearance."""
        if size < 3:
            raise BadValue(
                f"a vocabulary of {size} has no room for a word beside {PAD} and {UNKNOWN}: give at least 3"
            )
        counts = Counter(
            token for text in texts for token in (_keras_words if as_keras else tokenise)(text)
        )
        # Sorting keeps the order of equals.
        ranked = sorted(counts, key=lambda token: (-counts[token], "" if as_keras else token))
        return cls((PAD, UNKNOWN, *ranked[: size - 2]), as_keras)

    def encode(self, text: str, *, length: int) -> tuple[int, ...]:
        """Exactly `length` ids: the first tokens of `text` (`as_keras`: the last), after as many
        `<pad>` as are missing.

        Padding stands in front because the classifier reads the last time step.
        """
        if length < 1:
            raise BadValue(f"length {length}: give at least 1 token")
        words = _keras_words(text)[-length:] if self.as_keras else tokenise(text)[:length]
        ids = [self._ids.get(word, 1) for word in words]
        return (0,) * (length - len(ids)) + tuple(ids)

    def decode(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The tokens of `ids` without padding: what `encode` was given, as far as it fitted and
        was known."""
        return tuple(self.tokens[index] for index in ids if index != 0)

    def encode_all(self, texts: Sequence[str], *, length: int) -> torch.Tensor:
        """`encode` of every text: int64 of shape (texts, length)."""
        return torch.tensor(
            [self.encode(text, length=length) for text in texts], dtype=torch.int64
        ).reshape(len(texts), length)
