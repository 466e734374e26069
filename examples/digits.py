"""A module that one has, from Python: plan it, look at the plan, train by it on real processes, put
what was learned back.

1,797 handwritten digits of 8 x 8 pixels (data/README.md), a small convolutional network with batch
norm and dropout. The batch norms' statistics are those of the whole batch, on however many ranks,
and dropout's masks do not depend on the split: so the losses are those of one process.

    python examples/digits.py [--ranks 2] [--epochs 12]
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import torch
from digits_model import DigitNet, loss
from torch import Tensor

from planner import plan
from runtime.training import train_plan

DATA = Path(__file__).parent / "data" / "digits.csv.gz"
BATCH, SEED = 128, 0


def load() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) with pixels from 0 to 1, and labels (1797,)."""
    with gzip.open(DATA, "rt") as file:
        rows = torch.tensor([[float(number) for number in line.split(",")] for line in file])
    return rows[:, :64].reshape(-1, 1, 8, 8) / 16, rows[:, 64].long()


def split(images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Three quarters to learn from, and every fourth digit held out."""
    held_out = torch.arange(len(labels)) % 4 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def batches(images: Tensor, labels: Tensor, epochs: int) -> list[tuple[Tensor, Tensor]]:
    """Global batches of all epochs; the last, smaller batch of each is left out."""
    generator = torch.Generator().manual_seed(SEED)
    orders = [
        torch.randperm(len(labels), generator=generator)[: len(labels) // BATCH * BATCH]
        for _ in range(epochs)
    ]
    return [(images[chosen], labels[chosen]) for order in orders for chosen in order.split(BATCH)]


@torch.no_grad()
def accuracy(module: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of the images that are recognised, in eval mode: by the running statistics,
    without dropout."""
    module.eval()
    return float((module(images).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a digit classifier by a plan.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    module = DigitNet()
    learn, held_out = split(*load())
    steps = batches(*learn, options.epochs)
    planned = plan(
        module,
        steps[0],
        loss,
        cluster="cpu",
        num_devices=options.ranks,
        learning_rate=3e-3,
        clip_norm=1.0,
        folder=f"plans/digits-{options.ranks}",
    )
    predicted = planned.simulate()
    print(
        f"mesh {planned.plan.mesh}, predicted {predicted.step_time_s * 1e3:.2f} ms per step; "
        f"report: {planned.save().parent}"
    )
    trained = train_plan(planned.path, steps, seed=SEED)
    module.load_state_dict(trained.state)
    print(
        f"{len(steps)} steps on {options.ranks} ranks, loss {trained.losses[0]:.4f} -> {trained.losses[-1]:.4f}"
    )
    print(f"held-out accuracy {accuracy(module, *held_out):.3f} (0.1 by guessing)")


if __name__ == "__main__":
    main()
