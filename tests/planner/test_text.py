"""Data preparation: tokens, the vocabulary, and the way to ids and back."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cost_models.errors import BadValue
from planner.workload.text import PAD, UNKNOWN, Vocabulary, tokenise

TEXTS = ("the cat sat.", "the cat ran!", "the dog")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't STOP, now!!", ("don't", "stop", ",", "now", "!", "!")),
        ("snake_case 3.5%", ("snake", "_", "case", "3", ".", "5", "%")),
        ("Grüße, 世界", ("grüße", ",", "世界")),
        ("'quoted'", ("'", "quoted", "'")),
        (" \t\n", ()),
    ],
)
def test_tokenise(text: str, tokens: tuple[str, ...]) -> None:
    assert tokenise(text) == tokens


@given(st.text())
def test_tokenise_loses_nothing_but_space_and_case(text: str) -> None:
    assert "".join(tokenise(text)) == "".join(text.lower().split())
    assert tokenise(" ".join(tokenise(text))) == tokenise(text)


def test_vocabulary_by_frequency_then_alphabet() -> None:
    assert Vocabulary.of(TEXTS, size=6).tokens == (PAD, UNKNOWN, "the", "cat", "!", ".")
    assert len(Vocabulary.of(TEXTS, size=100)) == 2 + 7


def test_encode_pads_in_front_and_truncates_behind() -> None:
    vocabulary = Vocabulary.of(TEXTS, size=4)
    assert vocabulary.encode("The cat flew", length=5) == (0, 0, 2, 3, 1)
    assert vocabulary.encode("the cat the dog", length=2) == (2, 3)
    assert vocabulary.encode("", length=2) == (0, 0)
    assert vocabulary.decode((0, 2, 1)) == ("the", UNKNOWN)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.integers(1, 12))
def test_known_text_comes_back(texts: list[str], length: int) -> None:
    vocabulary = Vocabulary.of(texts, size=1000)
    for text in texts:
        ids = vocabulary.encode(text, length=length)
        assert len(ids) == length
        assert vocabulary.decode(ids) == tokenise(text)[:length]


@given(
    st.lists(st.text(alphabet="ab'c \t\n.,;_-!", max_size=24), min_size=1, max_size=6),
    st.integers(3, 9),
    st.integers(1, 9),
)
def test_as_keras_gives_keras_ids(texts: list[str], size: int, length: int) -> None:
    keras = pytest.importorskip(
        "keras", reason="Keras is the reference: pip install 'shardwright[keras]'"
    )
    from keras.src.legacy.preprocessing.text import Tokenizer

    theirs = Tokenizer(num_words=size, oov_token=UNKNOWN)
    theirs.fit_on_texts(texts)
    more = [*texts, " ".join(reversed(texts)), "never seen, A b"]
    wanted = keras.utils.pad_sequences(theirs.texts_to_sequences(more), maxlen=length)
    ours = Vocabulary.of(texts, size=size, as_keras=True)
    assert ours.encode_all(more, length=length).tolist() == wanted.tolist()


def test_ours_is_not_keras_where_the_module_says_so() -> None:
    text = "b a 'c' b, a b\ra"
    ours, theirs = Vocabulary.of([text], size=9), Vocabulary.of([text], size=9, as_keras=True)
    assert ours.tokens[2:] == ("a", "b", "'", ",", "c")
    assert theirs.tokens[2:] == ("b", "a", "'c'", "b\ra")
    assert ours.encode("b a b", length=2) == (3, 2)
    assert theirs.encode("b a b", length=2) == (3, 2)
    assert (
        ours.decode(ours.encode("a b ,", length=2)),
        theirs.decode(theirs.encode("b b a", length=2)),
    ) == (
        ("a", "b"),
        ("b", "a"),
    )


def test_encode_all_is_a_tensor() -> None:
    vocabulary = Vocabulary.of(TEXTS, size=10)
    ids = vocabulary.encode_all(TEXTS, length=4)
    assert (ids.shape, ids.dtype) == ((3, 4), torch.int64)
    assert tuple(ids[1].tolist()) == vocabulary.encode(TEXTS[1], length=4)
    assert vocabulary.encode_all((), length=4).shape == (0, 4)


def test_vocabulary_is_a_value() -> None:
    assert Vocabulary.of(TEXTS, size=5) == Vocabulary.of(TEXTS, size=5)
    with pytest.raises(AttributeError):
        Vocabulary.of(TEXTS, size=5).tokens = ()  # type: ignore[misc]


def test_wrong_values() -> None:
    with pytest.raises(BadValue, match=r"vocabulary of 2 .* at least 3"):
        Vocabulary.of(TEXTS, size=2)
    with pytest.raises(BadValue, match="length 0"):
        Vocabulary.of(TEXTS, size=5).encode("the", length=0)
    with pytest.raises(BadValue, match="must start with <pad>, <unk>; this one starts with a, b"):
        Vocabulary(("a", "b"))
    with pytest.raises(BadValue, match="token 'x' is in the vocabulary twice"):
        Vocabulary((PAD, UNKNOWN, "x", "x"))
