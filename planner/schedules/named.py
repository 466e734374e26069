"""The schedules that have names, each a pure function of places, microbatches and chunks.

The orders are those of `torch.distributed.pipelining` for the same numbers (a test compares them).
A place holds `chunks` stages: stage `s` lies at place `s % places`, or in a V, where stages `r` and
`2 * places - 1 - r` lie at place `r`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.schedules.schedule import BACKWARD, FORWARD, INPUT, WEIGHT, Schedule, numbered

__all__ = [
    "dualpipev",
    "gpipe",
    "interleaved",
    "interleaved_zero_bubble",
    "one_f_one_b",
    "rounds",
    "zb_h1",
    "zbv",
]

#: A body and a stage: an action whose microbatch follows from the order.
_Slot = tuple[str, int]


def gpipe(places: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards. Huang et al., arXiv 1811.06965."""
    return Schedule(
        name="gpipe",
        microbatches=microbatches,
        places=tuple(range(places)),
        orders=tuple(
            numbered([(FORWARD, r)] * microbatches + [(BACKWARD, r)] * microbatches)
            for r in range(places)
        ),
    )


def one_f_one_b(places: int, microbatches: int) -> Schedule:
    """One forward, one backward, as soon as the pipeline is full: as long as GPipe, and place `r`
    holds at most `places - r` microbatches. Narayanan et al., arXiv 2006.09503."""
    orders = []
    for r in range(places):
        ahead = min(places - 1 - r, microbatches)
        forwards, backwards = [(FORWARD, r)] * microbatches, [(BACKWARD, r)] * microbatches
        orders.append(numbered(_alternating(forwards, backwards, ahead)))
    return Schedule(
        name="1f1b", microbatches=microbatches, places=tuple(range(places)), orders=tuple(orders)
    )


def interleaved(places: int, microbatches: int, chunks: int) -> Schedule:
    """1F1B in which a place holds `chunks` stages and runs a round of microbatches through each in
    turn: the bubble is that of 1F1B over `chunks`. Narayanan et al., arXiv 2104.04473. `rounds`
    must divide the microbatches."""
    orders = []
    for r in range(places):
        forwards, backwards = _in_rounds(r, places, microbatches, chunks, BACKWARD)
        ahead = _ahead(r, places, microbatches, chunks, hops=2)
        orders.append(numbered(_alternating(forwards, backwards, ahead)))
    return Schedule(
        name="interleaved",
        microbatches=microbatches,
        places=_looped(places, chunks),
        orders=tuple(orders),
    )


def zb_h1(places: int, microbatches: int) -> Schedule:
    """1F1B with backward in two: weight gradients fill the bubble of the last places; memory is that
    of 1F1B. Qi et al., arXiv 2401.10241."""
    return _zero_bubble("zbh1", places, microbatches, 1)


def interleaved_zero_bubble(places: int, microbatches: int, chunks: int) -> Schedule:
    """`zb_h1` with `chunks` stages at a place, in rounds as `interleaved`."""
    return _zero_bubble("interleaved-zb", places, microbatches, chunks)


def _zero_bubble(name: str, places: int, microbatches: int, chunks: int) -> Schedule:
    """Place `r` runs the weight gradient of a microbatch `r` backwards after its input gradient, so
    all places end together."""
    orders = []
    for r in range(places):
        forwards, inputs = _in_rounds(r, places, microbatches, chunks, INPUT)
        ahead = _ahead(r, places, microbatches, chunks, hops=1)
        orders.append(numbered(_late_weights(_alternating(forwards, inputs, ahead), r)))
    return Schedule(
        name=name, microbatches=microbatches, places=_looped(places, chunks), orders=tuple(orders)
    )


def zbv(places: int, microbatches: int) -> Schedule:
    """Zero bubble in a V of two stages at a place: without a bubble if F, I and W take equally
    long, with the activation memory of 1F1B. Qi et al., arXiv 2401.10241, section 6."""
    orders = []
    for r in range(places):
        slots = _zbv_slots(r, places, max(2 * places - 1, microbatches))
        orders.append(tuple(a for a in numbered(slots) if a.microbatch < microbatches))
    return Schedule(
        name="zbv", microbatches=microbatches, places=_v_shaped(places), orders=tuple(orders)
    )


def _zbv_slots(r: int, places: int, microbatches: int) -> Iterator[_Slot]:
    """The order of place `r` for at least `2 * places - 1` microbatches, which fill the pipeline."""
    there, back = r, 2 * places - 1 - r
    yield from [(FORWARD, there)] * (2 * (places - r) - 1)
    yield from [(FORWARD, back), (FORWARD, there)] * r
    yield from [(FORWARD, back), (INPUT, back), (WEIGHT, back)] * (places - r)
    begun = 2 * places - 1 - r
    for done in range(places, microbatches):
        if begun + done - places < microbatches:
            yield FORWARD, there
        yield from [(INPUT, there), (WEIGHT, there)]
        yield from [(FORWARD, back), (INPUT, back), (WEIGHT, back)]
    yield from [(INPUT, there), (INPUT, back)] * r
    yield from [(INPUT, there), (WEIGHT, there)] * (places - r)
    yield from [(WEIGHT, back)] * r
    yield from [(WEIGHT, there)] * r


def dualpipev(places: int, microbatches: int) -> Schedule:
    """DeepSeek's DualPipe folded into a V. A forward that torch overlaps with a backward runs
    before it here. github.com/deepseek-ai/DualPipe; at least `2 * places` microbatches."""
    return Schedule(
        name="dualpipev",
        microbatches=microbatches,
        places=_v_shaped(places),
        orders=tuple(
            numbered(_weights_from_queue(_dualpipev_slots(r, places, microbatches)))
            for r in range(places)
        ),
    )


def _dualpipev_slots(r: int, places: int, microbatches: int) -> Iterator[_Slot]:
    """The order of place `r`, in the eight steps of its authors; (WEIGHT, -1) is the oldest weight
    gradient that waits, if any."""
    there, back, after = r, 2 * places - 1 - r, places - r - 1
    yield from [(FORWARD, there)] * (2 * after)
    yield from [(FORWARD, there), (FORWARD, back)] * (r + 1)
    yield from [(INPUT, back), (WEIGHT, -1), (FORWARD, back)] * after
    both = [(FORWARD, there), (BACKWARD, back), (FORWARD, back), (BACKWARD, there)]
    yield from both * (microbatches - 2 * places + r + 1)
    yield from [(BACKWARD, back), (FORWARD, back), (BACKWARD, there)] * after
    halves = 2 * ((r + 1) // 2) + (r + 1) % 2
    for i in range(2 * (r + 1)):
        yield INPUT if i >= halves else BACKWARD, there if i % 2 else back
    yield from [(WEIGHT, -1), (INPUT, there)] * after
    yield from [(WEIGHT, -1)] * (r + 1)


def _weights_from_queue(slots: Iterator[_Slot]) -> Iterator[_Slot]:
    """The slots, with (WEIGHT, -1) replaced by the oldest input gradient's stage."""
    waiting: list[int] = []
    for body, stage in slots:
        if body == INPUT:
            waiting.append(stage)
        if body != WEIGHT:
            yield body, stage
        elif waiting:
            yield WEIGHT, waiting.pop(0)


def rounds(places: int, microbatches: int) -> int:
    """The number of rounds of an interleaved schedule, each of about `places` microbatches; as
    torch, which allows microbatches that `places` does not divide, if this number does."""
    return max(1, microbatches // places)


def _in_rounds(
    r: int, places: int, microbatches: int, chunks: int, backward: str
) -> tuple[list[_Slot], list[_Slot]]:
    """The forwards and the backwards of place `r`, each in order: a round of microbatches through
    each of its stages."""
    number = rounds(places, microbatches) if chunks > 1 else 1  # one stage runs them in order
    each = microbatches // number
    stages = [chunk * places + r for chunk in range(chunks)]
    forwards = [(FORWARD, stage) for stage in stages for _ in range(each)] * number
    return forwards, [(backward, stage) for stage in reversed(stages) for _ in range(each)] * number


def _ahead(r: int, places: int, microbatches: int, chunks: int, hops: int) -> int:
    """How many forwards of place `r` run before forwards and backwards alternate: those of all
    chunks but the last, and `hops` for each place that follows."""
    each = microbatches // rounds(places, microbatches)
    return min((chunks - 1) * each + hops * (places - 1 - r), microbatches * chunks)


def _alternating(
    forwards: Sequence[_Slot], backwards: Sequence[_Slot], ahead: int
) -> Iterator[_Slot]:
    """`ahead` forwards, then forwards and backwards in turn, then the other backwards."""
    yield from forwards[:ahead]
    for pair in zip(forwards[ahead:], backwards, strict=False):
        yield from pair
    yield from backwards[len(forwards) - ahead :]


def _late_weights(slots: Iterator[_Slot], late: int) -> Iterator[_Slot]:
    """Adds weight gradients, in the order of the input gradients: each comes after the input
    gradient that is `late` places behind its own."""
    waiting: list[int] = []
    for body, stage in slots:
        yield body, stage
        if body == INPUT:
            waiting.append(stage)
            if len(waiting) > late:
                yield WEIGHT, waiting.pop(0)
    yield from [(WEIGHT, stage) for stage in waiting]


def _looped(places: int, chunks: int) -> tuple[int, ...]:
    """Stage `s` at place `s % places`."""
    return tuple(range(places)) * chunks


def _v_shaped(places: int) -> tuple[int, ...]:
    """Down the places, and up again."""
    return (*range(places), *reversed(range(places)))
