"""Finds the rule of an op that has none, by running a small instance of the call whole and in
shards.

Call, dtypes -> Finding. A *letter* is a dim of some operands that are cut together; cutting it must
give every result as pieces of a dim, as terms of a sum, or the same on every shard. Two draws of
numbers must agree, and so must two and four shards. Dims without a letter cannot be split.
Discovery cannot see a dim that is a product (heads x depth) of which only one factor may be cut:
a letter that gives wrong results when cut in an interleaved way counts as contiguous.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.rules.instance import Instance, int_paths, replaced, run, small_instances
from planner.rules.signature import Call

__all__ = ["Finding", "FoundLetter", "discover"]

_DRAWS, _SHARDS = 2, (2, 4)
#: No more than this many ways to cut one size are tried.
_MOST_CUTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLetter:
    """Operand dims that are cut together, and what each result is then: pieces of a dim (>= 0), the
    same on every shard (-1), a term of a sum (-2). `arguments` are the places of integers that
    shrink with it."""

    operands: tuple[tuple[int, int], ...]
    results: tuple[int, ...]
    contiguous: bool
    arguments: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """All letters of a call, and the groups of operands in which it is linear."""

    letters: tuple[FoundLetter, ...]
    linear: tuple[tuple[int, ...], ...]


SAME, SUM = -1, -2


def discover(call: Call, dtypes: tuple[str, ...]) -> Finding | None:
    """What can be split in a call, from the first small instance that runs; None if none runs, or
    nothing can be split."""
    for instance in small_instances(call, dtypes):
        trials = _trials(instance, call)
        if trials is not None:
            letters = tuple(_letters(instance, trials))
            linear = tuple(_linear(instance, trials))
            return Finding(letters=letters, linear=linear) if letters or linear else None
    return None


@dataclass(frozen=True, slots=True)
class _Trial:
    operands: list[Tensor]
    results: list[Tensor]


def _trials(instance: Instance, call: Call) -> list[_Trial] | None:
    """The instance run whole on different numbers; None if it does not run, or gives other shapes
    or numbers that are not finite."""
    for positive in (False, True):
        trials = []
        for seed in range(_DRAWS):
            operands = instance.draw(seed, positive)
            results = run(instance, instance.args, [t.clone() for t in operands])
            if results is None or not _shapes_fit(results, call, dict(instance.sizes)):
                return None
            trials.append(_Trial(operands, results))
        if all(
            bool(torch.isfinite(r).all())
            for t in trials
            for r in t.results
            if r.is_floating_point() or r.is_complex()
        ):
            return trials
    return None


def _shapes_fit(results: list[Tensor], call: Call, sizes: dict[int, int]) -> bool:
    if len(results) != len(call.results):
        return False
    wanted = [tuple(sizes.get(size, size) for size in shape) for shape in call.results]
    return all(tuple(r.shape) == shape for r, shape in zip(results, wanted, strict=True))


# ------------------------------------------------------------------------------------------ letters


def _letters(instance: Instance, trials: list[_Trial]) -> Iterator[FoundLetter]:
    taken: set[tuple[int, int]] = set()
    for cut in _cuts(instance):
        if taken.isdisjoint(cut):
            letter = _letter(instance, trials, cut)
            if letter is not None:
                taken |= set(cut)
                yield letter


def _cuts(instance: Instance) -> list[tuple[tuple[int, int], ...]]:
    """Sets of (operand, dim) of one size that might be one letter, the largest sets first."""
    found: list[tuple[tuple[int, int], ...]] = []
    for size in dict.fromkeys(s for shape in instance.operands for s in shape if s > 1):
        places = [
            [None, *((o, d) for d, s in enumerate(shape) if s == size)]
            for o, shape in enumerate(instance.operands)
        ]
        choices = itertools.islice(itertools.product(*places), _MOST_CUTS)
        found += [tuple(p for p in choice if p is not None) for choice in choices if any(choice)]
    return sorted(found, key=len, reverse=True)


def _letter(
    instance: Instance, trials: list[_Trial], cut: tuple[tuple[int, int], ...]
) -> FoundLetter | None:
    size = instance.operands[cut[0][0]][cut[0][1]]
    least = instance.highest if instance.has_indices else 1
    shards = [n for n in _SHARDS if size % n == 0] or [n for n in (3, 5, 7) if size % n == 0][:1]
    shards = [n for n in shards if size // n >= least]
    paths = list(int_paths(instance.args, size))[:3]
    if not shards:
        return None
    for count in range(len(paths) + 1):
        for chosen in itertools.combinations(paths, count):
            outcome = _outcome(instance, trials, cut, chosen, shards)
            if outcome is not None and any(place != SAME for place in outcome):
                woven = all(
                    _fits(instance, trial, cut, chosen, shards[0], outcome, woven=True)
                    for trial in trials
                )
                return FoundLetter(
                    operands=cut, results=outcome, contiguous=not woven, arguments=chosen
                )
    return None


def _outcome(
    instance: Instance,
    trials: list[_Trial],
    cut: tuple[tuple[int, int], ...],
    paths: tuple[tuple[int, ...], ...],
    shards: list[int],
) -> tuple[int, ...] | None:
    """What each result is if `cut` is cut (as in `FoundLetter`); None if shards do not make up some
    result, or not always in the same way."""
    pieces = _run_shards(instance, trials[0], cut, paths, shards[0], woven=False)
    # A shard may also return a list of fewer tensors.
    if pieces is None or any(len(piece) != len(trials[0].results) for piece in pieces):
        return None
    options = [_places(whole, [p[r] for p in pieces]) for r, whole in enumerate(trials[0].results)]
    for outcome in itertools.islice(itertools.product(*options), 16):
        if all(
            _fits(instance, trial, cut, paths, n, outcome, woven=False)
            for trial in trials
            for n in shards
        ):
            return outcome
    return None


def _places(whole: Tensor, pieces: list[Tensor]) -> list[int]:
    """All outcomes (as in `FoundLetter`) by which these pieces make up the whole."""
    dims = [d for d in range(whole.dim()) if _same(whole, _joined(pieces, d))]
    return [place for place in (*dims, SAME, SUM) if _same(whole, _joined(pieces, place))]


def _joined(pieces: list[Tensor], place: int) -> Tensor | None:
    if place == SAME:
        return pieces[0] if all(_same(pieces[0], piece) for piece in pieces[1:]) else None
    if place == SUM:
        summable = all(p.shape == pieces[0].shape for p in pieces) and pieces[0].dtype != torch.bool
        return torch.stack(pieces).sum(0).to(pieces[0].dtype) if summable else None
    rest = [p.shape[:place] + p.shape[place + 1 :] for p in pieces if p.dim() > place]
    return torch.cat(pieces, place) if len(rest) == len(pieces) and len(set(rest)) == 1 else None


def _fits(
    instance: Instance,
    trial: _Trial,
    cut: tuple[tuple[int, int], ...],
    paths: Any,
    count: int,
    outcome: tuple[int, ...],
    woven: bool,
) -> bool:
    pieces = _run_shards(instance, trial, cut, paths, count, woven)
    if pieces is None or any(len(piece) != len(trial.results) for piece in pieces):
        return False
    for r, (whole, place) in enumerate(zip(trial.results, outcome, strict=True)):
        made = _joined([p[r] for p in pieces], place)
        if made is not None and woven and place >= 0:
            made = made.index_select(
                place, torch.tensor(_weave(made.shape[place], count), dtype=torch.int64)
            )
        if not _same(whole, made):
            return False
    return True


def _weave(size: int, count: int) -> list[int]:
    """Where element i of the whole stands when shard k of `count` has elements k, k + count, ..."""
    return [(i % count) * (size // count) + i // count for i in range(size)]


def _run_shards(
    instance: Instance,
    trial: _Trial,
    cut: tuple[tuple[int, int], ...],
    paths: Any,
    count: int,
    woven: bool,
) -> list[list[Tensor]] | None:
    size = instance.operands[cut[0][0]][cut[0][1]]
    args = instance.args
    for path in paths:
        args = replaced(args, path, size // count)
    out = []
    for shard in range(count):
        operands = list(trial.operands)
        for operand, dim in cut:
            index = (
                torch.arange(shard, size, count)
                if woven
                else torch.arange(size // count) + shard * (size // count)
            )
            operands[operand] = operands[operand].index_select(dim, index)
        results = run(instance, args, [t.clone() for t in operands])
        if results is None:
            return None
        out.append(results)
    return out


def _same(whole: Tensor, made: Tensor | None) -> bool:
    if made is None or whole.shape != made.shape or whole.dtype != made.dtype:
        return False
    if not (whole.is_floating_point() or whole.is_complex()):
        return torch.equal(whole, made)
    scale = max(1.0, float(whole.abs().max())) if whole.numel() else 1.0
    tolerance = (1e-10 if whole.dtype in (torch.float64, torch.complex128) else 1e-4) * scale
    return torch.allclose(whole, made, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------ linear groups


def _linear(instance: Instance, trials: list[_Trial]) -> Iterator[tuple[int, ...]]:
    """Groups of operands in which the call is linear: single operands first, then pairs of the
    rest and all of the rest."""
    floating = [
        o for o, t in enumerate(trials[0].operands) if t.is_floating_point() or t.is_complex()
    ]
    if not all(r.is_floating_point() or r.is_complex() for r in trials[0].results):
        return
    single = [o for o in floating if _is_linear(instance, trials, (o,))]
    yield from ((o,) for o in single)
    rest = [o for o in floating if o not in single]
    groups = [*itertools.combinations(rest, 2), *([tuple(rest)] if len(rest) > 2 else [])]
    yield from (group for group in groups if _is_linear(instance, trials, group))


#: Operands are scaled by each of these, since a function may bend far from where the draws are
#: (`threshold` at -4, `huber` at 9).
_SCALES = (1.0, 1e2, 1e6)


def _is_linear(instance: Instance, trials: list[_Trial], group: tuple[int, ...]) -> bool:
    """Whether the call on operands `group` is the sum of the calls on two terms of them."""
    for trial, scale in itertools.product(trials, _SCALES):
        whole, one, other = (
            [t.clone() for t in trial.operands],
            list(trial.operands),
            list(trial.operands),
        )
        for o in group:
            whole[o] = whole[o] * scale
            half = torch.randn(
                whole[o].shape, generator=torch.Generator().manual_seed(7 + o), dtype=torch.float64
            )
            one[o] = (half * scale).to(whole[o].dtype)
            other[o] = whole[o] - one[o]
        results = [
            run(instance, instance.args, [t.clone() for t in operands])
            for operands in (whole, one, other)
        ]
        if any(
            r is None or [t.shape for t in r] != [t.shape for t in trial.results] for r in results
        ):
            return False
        if not all(_same(w, a + b) for w, a, b in zip(*(r or [] for r in results), strict=True)):
            return False
    return True
