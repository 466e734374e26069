"""Models that keep things in attributes: no matter where no result depends on them; what carries
over to the next step is refused."""

from __future__ import annotations

import itertools
import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[nn.Module, tuple[Tensor, ...], object]


class Model(nn.Module):
    """Two layers; `between` is what the models below do otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.between(torch.tanh(self.first(x))))
        return out


def _parts(module: nn.Module, batch: int) -> Parts:
    return module, (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


# -------------------------------------------------------------------------------- what carries over


class Annealed(Model):
    sharpness = 1.0

    def between(self, x: Tensor) -> Tensor:
        self.sharpness = min(4.0, self.sharpness * 1.5)
        return torch.sigmoid(x * self.sharpness)


class OfAllModels(Model):
    """A count that the class keeps."""

    count = 0

    def between(self, x: Tensor) -> Tensor:
        type(self).count += 1
        return x / type(self).count


class Later(Model):
    """Nothing differs until the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls < 3 else x * 0.5


class Schedule:
    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step = 0


class InAnObject(Model):
    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()

    def between(self, x: Tensor) -> Tensor:
        self.schedule.step += 1
        return x * (1 - 0.5**self.schedule.step)


class Hidden(Model):
    """A state that the next step begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.hidden = nn.Linear(12, 6), None

    def between(self, x: Tensor) -> Tensor:
        before = torch.zeros_like(x) if self.hidden is None else self.hidden
        out = torch.tanh(self.cell(torch.cat([x, before], 1)))
        self.hidden = out.detach()
        return out


class Average(Model):
    """A moving average of what it sees, from a tensor that is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.average = torch.zeros(6)

    def between(self, x: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return x - self.average


class Delayed(Model):
    """Uses what it saw some steps ago."""

    def __init__(self) -> None:
        super().__init__()
        self.bank: deque[Tensor] = deque(maxlen=3)

    def between(self, x: Tensor) -> Tensor:
        self.bank.append(x.detach())
        return x + self.bank[0] if len(self.bank) == 3 else x


class Alternating(Model):
    def __init__(self) -> None:
        super().__init__()
        self.number = itertools.count()

    def between(self, x: Tensor) -> Tensor:
        return x * 0.5 if next(self.number) % 2 else x


class Cycling(Model):
    def __init__(self) -> None:
        super().__init__()
        self.turn = itertools.cycle((0.5, 2.0))

    def between(self, x: Tensor) -> Tensor:
        return x * next(self.turn)


class Flips(Model):
    def __init__(self) -> None:
        super().__init__()
        self.even = False

    def between(self, x: Tensor) -> Tensor:
        self.even = not self.even
        return x if self.even else -x


COUNTS = {"steps": 0}


class Global(Model):
    def between(self, x: Tensor) -> Tensor:
        COUNTS["steps"] += 1
        return x * 0.5 ** COUNTS["steps"]


class History(Model):
    """An average over all that was seen, kept in an array."""

    def __init__(self) -> None:
        super().__init__()
        self.past = np.ones(4)

    def between(self, x: Tensor) -> Tensor:
        self.past[1:] = self.past[:-1] * 0.5
        return x * float(self.past.sum())


class Lucky(Model):
    def between(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.5 else -x


class LuckyArray(Model):
    def between(self, x: Tensor) -> Tensor:
        return x * float(np.random.uniform(0.5, 1.5))


class OwnChance(Model):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def between(self, x: Tensor) -> Tensor:
        return x * self.generator.uniform(0.5, 1.5)


# -------------------------------------------------------------------------------- what is no matter


class Looked(Model):
    """Keeps what it saw for somebody to look at, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen, self.shapes = 0, None, {}
        self.log = Schedule()
        self.mode = "new"

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.step = self.calls
        self.mode = f"step {self.calls}"
        self.seen = x
        self.shapes["x"] = tuple(x.shape)
        return x


class Collected(Model):
    """Losses of its parts, collected anew in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.extra.clear()
        return super().forward(x)

    def between(self, x: Tensor) -> Tensor:
        self.extra.append(x.square().mean())
        self.extra.append(x.abs().mean())
        return x * (1 + sum(self.extra))


class Cached(Model):
    """A table made when it is first needed: from numbers, and from a buffer that never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rates", torch.arange(1, 4) / 3)
        self.table, self.length = None, 0
        self.masks: dict[int, Tensor] = {}

    def between(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.length:
            self.length = x.shape[1]
            angles = torch.outer(
                torch.arange(self.length // 2, device=x.device), self.rates
            ).flatten()[: self.length]
            self.table = F.pad(angles, (0, self.length - len(angles))).cos().to(x.dtype)
        if x.shape[1] not in self.masks:
            self.masks[x.shape[1]] = torch.arange(x.shape[1]) % 2 == 0
        return torch.where(self.masks[x.shape[1]], x * self.table, x)


class InPlace(Model):
    """A count in a tensor that is not registered, written in place: it is kept as a buffer is."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.zeros(1)

    def between(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x / self.steps


class Registered(Model):
    """A queue and a place in it, as momentum contrast has them; a state and an average in
    buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(4, 6))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.register_buffer("hidden", torch.zeros(6))
        self.register_buffer("warmth", torch.tensor(1.0))

    def between(self, x: Tensor) -> Tensor:
        out = x + self.queue.mean(0) + self.hidden
        self.queue[:] = torch.cat([self.queue[1:], x.detach()[:1]])
        self.place.copy_((self.place + 1) % 4)
        self.hidden = 0.5 * self.hidden + 0.5 * x.detach().mean(0)
        self.warmth.mul_(0.9)
        return out * self.warmth


def annealed(batch: int = 8) -> Parts:
    return _parts(Annealed(), batch)


def of_all_models(batch: int = 8) -> Parts:
    return _parts(OfAllModels(), batch)


def later(batch: int = 8) -> Parts:
    return _parts(Later(), batch)


def in_an_object(batch: int = 8) -> Parts:
    return _parts(InAnObject(), batch)


def hidden(batch: int = 8) -> Parts:
    return _parts(Hidden(), batch)


def average(batch: int = 8) -> Parts:
    return _parts(Average(), batch)


def delayed(batch: int = 8) -> Parts:
    return _parts(Delayed(), batch)


def alternating(batch: int = 8) -> Parts:
    return _parts(Alternating(), batch)


def cycling(batch: int = 8) -> Parts:
    return _parts(Cycling(), batch)


def flips(batch: int = 8) -> Parts:
    return _parts(Flips(), batch)


def in_a_global(batch: int = 8) -> Parts:
    return _parts(Global(), batch)


def history(batch: int = 8) -> Parts:
    return _parts(History(), batch)


def lucky(batch: int = 8) -> Parts:
    return _parts(Lucky(), batch)


def lucky_array(batch: int = 8) -> Parts:
    return _parts(LuckyArray(), batch)


def own_chance(batch: int = 8) -> Parts:
    return _parts(OwnChance(), batch)


def looked(batch: int = 8) -> Parts:
    return _parts(Looked(), batch)


def collected(batch: int = 8) -> Parts:
    return _parts(Collected(), batch)


def cached(batch: int = 8) -> Parts:
    return _parts(Cached(), batch)


def in_place(batch: int = 8) -> Parts:
    return _parts(InPlace(), batch)


def in_buffers(batch: int = 8) -> Parts:
    return _parts(Registered(), batch)


RIGHT = {
    "looked": looked,
    "collected": collected,
    "cached": cached,
    "in_place": in_place,
    "in_buffers": in_buffers,
}
REFUSED = {
    "annealed": (
        annealed,
        r"keeps 'sharpness' from one step to the next.*\(nothing, then 1\.5\).*register_buffer",
    ),
    "of_all_models": (
        of_all_models,
        r"keeps 'OfAllModels\.count' from one step to the next.*\(0, then 1\)",
    ),
    "later": (later, r"keeps 'calls' from one step to the next"),
    "in_an_object": (in_an_object, r"keeps 'schedule\.step' from one step to the next"),
    "hidden": (
        hidden,
        r"keeps 'hidden' from one step to the next.*register_buffer\('hidden', torch\.zeros\(8, 6\)\).*detached",
    ),
    "average": (
        average,
        r"keeps 'average' from one step to the next.*register_buffer\('average', torch\.zeros\(6\)\)",
    ),
    "delayed": (delayed, r"'bank' grows or shrinks with every step"),
    "alternating": (alternating, r"takes the next of 'number' in Python"),
    "cycling": (cycling, r"keeps 'turn' from one step to the next"),
    "flips": (flips, r"keeps 'even' from one step to the next.*\(False, then True\)"),
    "in_a_global": (
        in_a_global,
        r"keeps .*attributes\.COUNTS\['steps'\].* from one step to the next.*\(0, then 1\)",
    ),
    "history": (history, r"keeps 'past' from one step to the next"),
    "lucky": (lucky, r"random numbers in its step at .*attributes\.py:\d+"),
    "lucky_array": (lucky_array, r"random numbers in its step at .*attributes\.py:\d+"),
    "own_chance": (own_chance, r"draws random numbers from 'generator' in Python"),
}
