"""A language model of letters: the `gpt` model learns Lincoln's messages to Congress by a plan, and
is asked about one it has not read.

The last of four messages (data/README.md) is held out. The figure of merit is bits a letter there,
beside those of a model that knows how often each letter comes and nothing else.

    python examples/language_model.py [--ranks 2] [--steps 400]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from planner import plan
from planner.models.gpt import GPT, next_token_loss
from runtime.training import train_plan

DATA = Path(__file__).parent / "data" / "lincoln.txt"
HELD_OUT = 35_000  # the last letters: the message of 1864
BATCH, LENGTH, SEED = 32, 64, 0


def load() -> tuple[Tensor, Tensor, str]:
    """The letters to learn from and those held out, as numbers, and the alphabet."""
    text = DATA.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(text)))
    ids = torch.tensor([alphabet.index(letter) for letter in text])
    return ids[:-HELD_OUT], ids[-HELD_OUT:], alphabet


def batches(ids: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Global batches of passages, and the letters that follow each of theirs."""
    generator = torch.Generator().manual_seed(SEED)
    starts = torch.randint(0, len(ids) - LENGTH - 1, (steps, BATCH, 1), generator=generator)
    places = starts + torch.arange(LENGTH)
    return [(ids[at], ids[at + 1]) for at in places]


@torch.no_grad()
def bits(module: torch.nn.Module, ids: Tensor) -> float:
    """Bits a letter, of passages that follow each other."""
    whole = ids[: (len(ids) - 1) // LENGTH * LENGTH]
    following = ids[1 : len(whole) + 1]
    return float(
        next_token_loss(module(whole.view(-1, LENGTH)), following.view(-1, LENGTH))
    ) / math.log(2)


def bits_by_frequency(learn: Tensor, held_out: Tensor, letters: int) -> float:
    """Bits a letter where all that is known is how often each comes in what was learned from."""
    counts = torch.bincount(learn, minlength=letters) + 1.0
    return float(-(counts / counts.sum()).log2()[held_out].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a language model of letters by a plan.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    learn, held_out, alphabet = load()
    module = GPT(layers=2, width=128, heads=4, vocab=len(alphabet), positions=LENGTH, tied=False)
    steps = batches(learn, options.steps)
    planned = plan(
        module,
        steps[0],
        next_token_loss,
        cluster="cpu",
        num_devices=options.ranks,
        learning_rate=2e-3,
        clip_norm=1.0,
        folder=f"plans/language-model-{options.ranks}",
    )
    print(
        f"mesh {planned.plan.mesh}, predicted {planned.simulate().step_time_s * 1e3:.2f} ms per "
        "step"
    )
    trained = train_plan(planned.path, steps, seed=SEED)
    module.load_state_dict(trained.state)
    print(
        f"{len(steps)} steps on {options.ranks} ranks, loss {trained.losses[0]:.3f} -> {trained.losses[-1]:.3f}"
    )
    print(
        f"held out: {bits(module, held_out):.2f} bits a letter "
        f"({bits_by_frequency(learn, held_out, len(alphabet)):.2f} by frequency)"
    )


if __name__ == "__main__":
    main()
