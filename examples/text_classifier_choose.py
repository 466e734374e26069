"""How the sizes of `text_classifier_lstm.py` were picked: on the validation part, in one process,
the held-out part unread.

Training magnifies rounding: the same plain run with the documents of every batch in another order,
which changes nothing but the order of sums, drifts away from itself. A loss curve can be compared
between runs only as far as it repeats itself, so of the settings whose curve moves by less than
`REPEATS` under such a change, the one that is right most often is picked.

    python examples/text_classifier_choose.py
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from mail import Batch, Part, accuracy, batches, load, prepare
from text_classifier_lstm import LENGTH, SEED, VOCAB, ask, largest_difference, train_one_process

from planner.workload.ask import build

BATCHES, EMBEDS, LEARNING_RATES, EPOCHS = (64, 128), (64, 128), (1e-3, 2e-3, 3e-3), (3, 6)
REPEATS = 1e-5  # a tenth of what runs on several ranks may differ by


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Settings, the share of the validation part that they are right for, and how far their loss
    curve moves."""

    batch: int
    embed: int
    learning_rate: float
    epochs: int
    accuracy: float
    moves: float


def attempt(
    training: Part, validation: Part, *, batch: int, embed: int, learning_rate: float, epochs: int
) -> Tried:
    """Trains twice, the second time with the documents of each batch in reverse."""
    steps = list(batches(training, batch=batch, epochs=epochs, seed=SEED))
    asked = ask(1)
    asked = replace(asked, batch=batch, settings={**asked.settings, "embed": str(embed)})

    def train(given: Sequence[Batch]) -> tuple[list[float], float]:
        torch.manual_seed(SEED)
        work = build(asked)
        return train_one_process(work, given, learning_rate), accuracy(work.module, validation)

    losses, right = train(steps)
    reversed_losses, _ = train([(ids.flip(0), labels.flip(0)) for ids, labels in steps])
    return Tried(
        batch=batch,
        embed=embed,
        learning_rate=learning_rate,
        epochs=epochs,
        accuracy=right,
        moves=largest_difference(losses, reversed_losses),
    )


def pick(tried: Sequence[Tried]) -> Tried:
    """The most often right of those that repeat themselves."""
    return max((one for one in tried if one.moves < REPEATS), key=lambda one: one.accuracy)


def main() -> None:
    torch.set_num_threads(1)
    mails = prepare(load(), length=LENGTH, vocab=VOCAB)
    print("batch  embed  learning rate  epochs  validation    moves")
    tried = []
    for batch, embed, rate, epochs in itertools.product(BATCHES, EMBEDS, LEARNING_RATES, EPOCHS):
        one = attempt(
            mails.training,
            mails.validation,
            batch=batch,
            embed=embed,
            learning_rate=rate,
            epochs=epochs,
        )
        tried.append(one)
        print(
            f"{batch:5}  {embed:5}  {rate:13}  {epochs:6}  {one.accuracy:10.3f}  {one.moves:7.0e}",
            flush=True,
        )
    best = pick(tried)
    print(
        f"picked: batch {best.batch}, embed {best.embed}, learning rate {best.learning_rate}, {best.epochs} epochs"
    )


if __name__ == "__main__":
    main()
