"""English to French: the `t5` model learns the messages of web programs by a plan, and translates
some that it has not read.

3,840 short messages (data/README.md), every tenth held out. The figure of merit is chrF, the
F-score of strings of letters that translation and reference share (Popovic 2015), beside that of
the untrained model, of the English left as it is, and of a translation memory: the French of the
most similar message that was learned from.

    python examples/translation.py [--ranks 2] [--steps 800]
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from planner import plan
from planner.models.gpt import next_token_loss
from planner.models.t5 import T5
from runtime.training import train_plan

DATA = Path(__file__).parent / "data" / "messages.tsv"
BATCH, LENGTH, SEED = 64, 17, 0
#: The share of the words that the model is not shown while it learns, so that it does not learn
#: messages by heart.
HIDDEN = 0.1
PAD, UNKNOWN, START, END = range(4)
NO_TARGET = -100  # which the loss leaves out

Pair = tuple[list[str], list[str]]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def words(text: str) -> list[str]:
    """Words in lower case, each mark on its own; a French article that has lost its vowel ends
    in its apostrophe."""
    return re.findall(r"\w+'?|[^\w\s]", text.lower())


def load() -> tuple[list[Pair], list[Pair]]:
    """The pairs (English, French) to learn from and those held out."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    pairs = [
        (words(english), words(french)) for english, french in (line.split("\t") for line in lines)
    ]
    return [pair for index, pair in enumerate(pairs) if index % 10], pairs[::10]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of both languages that come at least twice in what is learned from."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Vocabulary:
        counts = Counter(word for pair in pairs for text in pair for word in text)
        return cls(
            (
                "<pad>",
                "<unk>",
                "<start>",
                "<end>",
                *(word for word, count in counts.most_common() if count > 1),
            )
        )

    def tensors(self, pairs: Sequence[Pair]) -> Batch:
        """English ids, which of them are real, French ids up to each word, and the word that
        comes next."""
        number = {word: index for index, word in enumerate(self.words)}

        def padded(ids: list[int], fill: int) -> list[int]:
            return ids + [fill] * (LENGTH - len(ids))

        english, french = (
            [[number.get(word, UNKNOWN) for word in text] for text in texts]
            for texts in zip(*pairs, strict=True)
        )
        source = torch.tensor([padded(ids, PAD) for ids in english])
        before = torch.tensor([padded([START, *ids], PAD) for ids in french])
        following = torch.tensor([padded([*ids, END], NO_TARGET) for ids in french])
        return source, source != PAD, before, following


def batches(whole: Batch, steps: int) -> list[Batch]:
    """Global batches, some words hidden; the order starts anew when all pairs have been seen."""
    generator = torch.Generator().manual_seed(SEED)
    rounds = -(-steps * BATCH // len(whole[0]))
    order = torch.cat([torch.randperm(len(whole[0]), generator=generator) for _ in range(rounds)])

    def hide(ids: Tensor) -> Tensor:
        return torch.where(
            (torch.rand(ids.shape, generator=generator) < HIDDEN) & (ids > END), UNKNOWN, ids
        )

    parts = (
        tuple(tensor[chosen] for tensor in whole) for chosen in order[: steps * BATCH].split(BATCH)
    )
    return [
        (hide(source), real, hide(before), following) for source, real, before, following in parts
    ]


@torch.no_grad()
def translate(
    module: torch.nn.Module, vocabulary: Vocabulary, source: Tensor, real: Tensor
) -> list[list[str]]:
    """French, the likeliest word at a time."""
    written = torch.full((len(source), 1), START)
    for _ in range(LENGTH - 1):
        scores = module(source, real, written)[:, -1]
        scores[:, [PAD, UNKNOWN, START]] = float("-inf")
        written = torch.cat([written, scores.argmax(1, keepdim=True)], 1)
    texts = [[*row, END] for row in written[:, 1:].tolist()]
    return [[vocabulary.words[index] for index in row[: row.index(END)]] for row in texts]


def chrf(
    found: Sequence[list[str]], wanted: Sequence[list[str]], *, longest: int = 6, beta: float = 2.0
) -> float:
    """chrF in percent, the mean over the texts: precision and recall of strings of 1 to 6
    letters, recall counting twice as much."""

    def score(a: str, b: str) -> float:
        shares = []
        for size in range(1, min(longest, max(len(a), len(b))) + 1):
            ours, theirs = (
                Counter(text[at : at + size] for at in range(len(text) - size + 1))
                for text in (a, b)
            )
            both = (ours & theirs).total()
            shares.append((both / max(ours.total(), 1), both / max(theirs.total(), 1)))
        precision, recall = (sum(share) / len(shares) for share in zip(*shares, strict=True))
        return (1 + beta**2) * precision * recall / max(beta**2 * precision + recall, 1e-9)

    return (
        100
        * sum(score("".join(a), "".join(b)) for a, b in zip(found, wanted, strict=True))
        / len(wanted)
    )


def memory(learned: Sequence[Pair], english: list[str]) -> list[str]:
    """The French of the message that shares the largest part of its words with this one."""
    asked = set(english)
    return max(learned, key=lambda pair: len(asked & set(pair[0])) / len(asked | set(pair[0])))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a translator by a plan.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    learn, held_out = load()
    vocabulary = Vocabulary.of(learn)
    module = T5(layers=2, width=128, heads=4, head_dim=32, mlp=512, vocab=len(vocabulary.words))
    source, real, *_ = vocabulary.tensors(held_out)
    wanted = [french for _, french in held_out]
    untrained = chrf(translate(module, vocabulary, source, real), wanted)
    steps = batches(vocabulary.tensors(learn), options.steps)
    planned = plan(
        module,
        steps[0],
        next_token_loss,
        cluster="cpu",
        num_devices=options.ranks,
        learning_rate=2e-3,
        clip_norm=1.0,
        folder=f"plans/translation-{options.ranks}",
    )
    print(
        f"mesh {planned.plan.mesh}, predicted {planned.simulate().step_time_s * 1e3:.2f} ms per "
        "step"
    )
    trained = train_plan(planned.path, steps, seed=SEED)
    module.load_state_dict(trained.state, strict=False)
    print(
        f"{len(steps)} steps on {options.ranks} ranks, loss {trained.losses[0]:.3f} -> {trained.losses[-1]:.3f}"
    )
    french = translate(module, vocabulary, source, real)
    copied = chrf([english for english, _ in held_out], wanted)
    remembered = chrf([memory(learn, english) for english, _ in held_out], wanted)
    print(
        f"held out: chrF {chrf(french, wanted):.1f} (untrained {untrained:.1f}, English "
        f"{copied:.1f}, memory {remembered:.1f})"
    )
    for (english, reference), ours in list(zip(held_out, french, strict=True))[:5]:
        print(f"  {' '.join(english)} -> {' '.join(ours)} [{' '.join(reference)}]")


if __name__ == "__main__":
    main()
