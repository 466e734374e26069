"""Every op that models use, forward and backward, with every pairing of memory formats of its
operands.

Which ops read their operands by address is derived here; the product's list has to name them, so
that a new torch with one more fails.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from format_cases import FUNCTIONS, OpCall, calls_of, rule_calls
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from planner.kernels.formats import ADDRESS_READERS
from planner.program.operators import bare, callable_of

#: Ops whose result is no value but a place in memory, or not written yet; those that draw numbers
#: are ours, from a key.
_NO_VALUE = (
    "empty",
    "as_strided",
    "view.",
    "_unsafe_view",
    "resize",
    "rand",
    "lift_fresh",
    "_local_scalar",
)

#: More combinations of formats than this are tried singly, in pairs and all alike.
_MOST = 130


def sliced(t: Tensor) -> Tensor:
    out = t.new_zeros([*t.shape[:-1], 2 * t.shape[-1]])[..., ::2]
    return out.copy_(t)


def moved(t: Tensor, source: int, place: int) -> Tensor:
    """The same values, with dim `source` at `place` in memory."""
    return t.movedim(source, place).contiguous().movedim(place, source)


def formats(t: Tensor) -> dict[str, Tensor]:
    """The tensor as it may lie in memory; an expanded one has other values."""
    out = {"contiguous": t}
    if t.numel() > 1:
        out["sliced"] = sliced(t)
        if t.shape[-1] > 1:
            out["expanded"] = t[..., :1].expand(t.shape)
        if t.dim() >= 2:
            out["transposed"] = moved(t, -1, -2)
        if t.dim() >= 3:
            out["channels last"] = moved(t, 1, -1)
            out["batch inside"] = moved(t, 0, 1)
    return {
        name: one for name, one in out.items() if name == "contiguous" or not one.is_contiguous()
    }


def pairings(tensors: list[Tensor]) -> Iterator[tuple[list[Tensor], bool]]:
    """The tensors in all formats; whether one is expanded."""
    options = [formats(t) for t in tensors]
    first = ["contiguous"] * len(tensors)
    names: Any = itertools.product(*options)
    if torch.tensor([len(o) for o in options]).prod() > _MOST:
        single = [[(i, name)] for i, o in enumerate(options) for name in o]
        pairs = [a + b for a, b in itertools.combinations(single, 2) if a[0][0] != b[0][0]]
        names = [
            tuple(dict(pair).get(i, f) for i, f in enumerate(first)) for pair in (*single, *pairs)
        ]
        names += [
            tuple(name if name in o else "contiguous" for o in options)
            for name in ("sliced", "transposed", "channels last")
        ]
    for chosen in names:
        yield [o[name] for o, name in zip(options, chosen, strict=True)], "expanded" in chosen


def results(call: Callable[..., Any], flat: list[Any], spec: Any) -> list[Tensor] | None:
    args, kwargs = tree_unflatten(flat, spec)
    try:
        return [t for t in tree_leaves(call(*args, **kwargs)) if isinstance(t, Tensor)]
    except (RuntimeError, IndexError, ValueError):
        return None


def same(a: list[Tensor], b: list[Tensor], *, ties: bool) -> bool:
    """Whether the numbers are equal to rounding; where equal ones were drawn (`ties`), which of
    them was taken may differ."""
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return False
        if x.is_floating_point() or x.is_complex():
            scale = max(1.0, float(x.abs().nan_to_num(posinf=1.0).max())) if x.numel() else 1.0
            if not torch.allclose(
                x,
                y,
                rtol=1e-4 if x.dtype == torch.float32 else 1e-8,
                atol=1e-9 * scale,
                equal_nan=True,
            ):
                return False
        elif not ties and not torch.equal(x, y):
            return False
    return True


def wrong(one: OpCall, call: Callable[..., Any]) -> str:
    """What goes wrong with some pairing of the call's formats; empty where nothing does."""
    flat, spec = tree_flatten((one.args, one.kwargs))
    at = [i for i, item in enumerate(flat) if isinstance(item, Tensor)]
    for tensors, ties in pairings([flat[i] for i in at]):
        given, plain = list(flat), list(flat)
        for i, t in zip(at, tensors, strict=True):
            given[i], plain[i] = t, t.contiguous()
        expected = results(call, plain, spec)
        if expected is None:
            continue
        got = results(call, given, spec)
        if got is None or not same(expected, got, ties=ties):
            strides = [(tuple(t.shape), t.stride()) for t in tensors]
            return f"{one.op} {'raises' if got is None else 'is wrong'} on operands of shapes and strides {strides}"
    return ""


def all_calls() -> Iterator[OpCall]:
    seen = set()
    for one in (
        *rule_calls(0),
        *(
            call
            for function, tensors in FUNCTIONS.values()
            for call in calls_of(function, *tensors)
        ),
    ):
        flat, _ = tree_flatten((one.args, one.kwargs))
        tensors = [t for t in flat if isinstance(t, Tensor)]
        key = (
            one.op,
            *(tuple(t.shape) for t in tensors),
            *(repr(x) for x in flat if not isinstance(x, Tensor)),
        )
        if tensors and key not in seen and not any(word in one.op for word in _NO_VALUE):
            seen.add(key)
            yield one


def moved_to(one: OpCall, device: str) -> OpCall:
    flat, spec = tree_flatten((one.args, one.kwargs))
    args, kwargs = tree_unflatten(
        [item.to(device) if isinstance(item, Tensor) else item for item in flat], spec
    )
    return OpCall(one.op, args, kwargs)


@pytest.fixture(scope="module", autouse=True)
def _in_doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_ops_that_read_by_address_are_known_and_made_right(device: str) -> None:
    with torch.enable_grad():
        calls = [moved_to(one, device) for one in all_calls()]
    assert len({one.op for one in calls}) > 280
    unknown = {
        one.op: why
        for one in calls
        if one.op not in ADDRESS_READERS and (why := wrong(one, callable_of(one.op)))
    }
    assert not unknown, (
        f"ops that read their operands by address, and are not in ADDRESS_READERS: {unknown}"
    )
    readers = [one for one in calls if one.op in ADDRESS_READERS]
    assert {one.op for one in readers if not wrong(one, bare(one.op))} < {one.op for one in readers}
    assert [why for one in readers for why in [wrong(one, callable_of(one.op))] if why] == []
