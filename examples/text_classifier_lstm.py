"""A person has labelled mails, wants a spam filter, and has several processors: plan the split,
train, check.

The `lstm` model learns which mails are spam: once in one process with plain PyTorch, then by plans
for 2 and for 4 ranks, on real processes. Every batch is a *global* batch of the same documents in
the same order however many ranks share it, so the losses can be laid beside each other, step by
step. `text_classifier_choose.py` picked the sizes below; README.md has the output.

    python examples/text_classifier_lstm.py [--ranks 2]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mail import Batch, Mails, accuracy, batches, load, majority, prepare

from cost_models.cluster import load_cluster
from planner.plans.plan import Plan
from planner.plans.plan_file import write_plan
from planner.search.search import search
from planner.strategy.pins import parse_mesh, parse_pin
from planner.workload.ask import Ask, build
from planner.workload.workload import Workload
from runtime.training import train_plan

VOCAB, LENGTH = 4000, 40  # known tokens; tokens of each mail
BATCH, EPOCHS = 128, 6  # documents of all ranks together; times through the training part
EMBED, HIDDEN, LEARNING_RATE, SEED = 128, 64, 3e-3, 0

#: What each number of ranks is planned with: nothing, then what a person might type as `--mesh` and
#: `--pin`.
TYPED = {2: ((), ("dp=2", "*=ddp"), ("tp=2", "lstm=tensor")), 4: ((), ("dp=4", "*=ddp"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A training: the plan's mesh, what it splits, each step's loss, and how good the module is
    on the held-out part."""

    name: str
    split: str
    losses: Sequence[float]
    accuracy: float
    seconds: float


def ask(ranks: int) -> Ask:
    """The `lstm` model at this example's sizes."""
    settings = {"vocab": str(VOCAB), "embed": str(EMBED), "hidden": str(HIDDEN)}
    return Ask(
        model="lstm", batch=BATCH, seq=LENGTH, settings=settings, dtype="float32", num_devices=ranks
    )


def initial() -> Workload:
    """The module before the first step: every rank starts from the same."""
    torch.manual_seed(SEED)
    return build(ask(1))


def train_one_process(
    work: Workload, steps: Sequence[Batch], learning_rate: float = LEARNING_RATE
) -> list[float]:
    """The loss of every step of plain PyTorch in this process, which trains `work.module`."""
    optimizer = torch.optim.Adam(work.module.parameters(), lr=learning_rate)
    losses = []
    for ids, labels in steps:
        optimizer.zero_grad()
        loss = work.loss(work.module(ids), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def one_process(mails: Mails, steps: Sequence[Batch]) -> Row:
    """What every run on several ranks must agree with."""
    work, start = initial(), time.perf_counter()
    losses = train_one_process(work, steps)
    seconds = time.perf_counter() - start
    return Row(
        name="1",
        split="",
        losses=losses,
        accuracy=accuracy(work.module, mails.held_out),
        seconds=seconds,
    )


def by_plan(mails: Mails, steps: Sequence[Batch], ranks: int, mesh: str = "", *pins: str) -> Row:
    """Plan, write the plan, train by it on `ranks` processes, and put what they learned into the
    plain module."""
    pinned = parse_mesh(mesh, ranks) if mesh else None
    cluster = load_cluster("cpu", num_devices=ranks)
    plan = search(ask(ranks), cluster, mesh=pinned, pins=tuple(map(parse_pin, pins))).plan
    path = (
        Path("plans")
        / "-".join(("text-classifier", str(ranks), *filter(None, [mesh])))
        / "plan.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_plan(plan, path)
    start = time.perf_counter()
    trained = train_plan(path, steps, seed=SEED, learning_rate=LEARNING_RATE, device="cpu")
    seconds = time.perf_counter() - start
    module = initial().module
    module.load_state_dict(trained.parameters)
    name = f"{ranks}  {plan.mesh} {'pinned' if mesh else 'free'}"
    return Row(
        name=name,
        split=split(plan),
        losses=trained.losses,
        accuracy=accuracy(module, mails.held_out),
        seconds=seconds,
    )


def split(plan: Plan) -> str:
    """What the plan splits in each module, of its work and of its parameters."""
    rows = [
        (g["group"], dict.fromkeys((*g["ops"], *g["parameters"])))
        for g in plan.summary["groups"][:-1]
    ]  # without the loss
    words = (
        (group, [w.removeprefix("whole, ") for w in words if w not in ("-", "whole")])
        for group, words in rows
    )
    return "; ".join(f"{group} {', '.join(what) or 'whole'}" for group, what in words)


def largest_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(losses, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a spam filter by plans, and compare with one process."
    )
    parser.add_argument("--ranks", type=int, nargs="*", choices=list(TYPED), default=list(TYPED))
    ranks = parser.parse_args().ranks
    torch.set_num_threads(1)  # as each rank has
    mails = prepare(load(), length=LENGTH, vocab=VOCAB)
    steps = list(batches(mails.training, batch=BATCH, epochs=EPOCHS, seed=SEED))
    print(
        f"{len(mails.training.labels)} mails to learn from in {len(steps)} steps, {len(mails.held_out.labels)} held out"
    )
    print(
        f"{'ranks and mesh':<15}  final loss  difference  held-out  majority  seconds  what is split"
    )
    reference = one_process(mails, steps)
    rows = [(number, typed) for number in ranks for typed in TYPED[number]]
    for row in (reference, *(by_plan(mails, steps, number, *typed) for number, typed in rows)):
        difference = largest_difference(row.losses, reference.losses)
        figures = f"{row.losses[-1]:10.4f}  {difference:10.1e}  {row.accuracy:8.3f}  {majority(mails.held_out):8.3f}"
        print(f"{row.name:<15}  {figures}  {row.seconds:7.1f}  {row.split}", flush=True)
    print(
        "free: the planner's own choice; pinned: as a person might type it. Where both are dp, "
        "what is split tells them apart."
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
