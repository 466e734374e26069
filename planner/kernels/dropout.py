"""`shardwright::dropout` and its backward: masks that depend neither on how a tensor is split nor
on the device.

Whether an element is kept is a function of the step's key, the op's number in the step and the
element's place in the whole tensor, by a counter-based generator in plain integer ops. Every row
(all dims but the last) and every column has 32 bits of splitmix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014); an element's draw is murmur3's 32-bit
finaliser (Appleby, MurmurHash3, 2011) of the two. Replicas draw the same mask, shards their part
of it; the same seed gives the same masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DRAW_STEPS",
    "Places",
    "Samples",
    "draws",
    "drop_by",
    "drop_hashes",
    "drop_threshold",
    "dropout",
    "dropout_backward",
    "key_of_microbatch",
    "numbers_of_key",
    "step_key",
]

#: For every dim of a shard, its sub-dims, outermost first: (size in the whole tensor, size here,
#: first element of this shard).
Places = tuple[tuple[tuple[int, int, int], ...], ...]

#: Which dim of a microbatch's tensor holds samples, and how: the dim is runs of `here` elements,
#: each one microbatch's part of a run of `whole` elements of the whole batch: (dim, whole, here).
Samples = Sequence[int]

#: Rows are drawn in chunks of about this many elements: their temporaries stay in a CPU core's L2
#: cache, or a GPU's.
_CHUNK_CPU = 1 << 15
_CHUNK_DEVICE = 1 << 22

#: splitmix64's increment and multipliers; murmur3's multipliers, as signed integers.
_GOLDEN, _MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MURMUR_A, _MURMUR_B = -0x7A143595, -0x3D4D51CB


def step_key(seed: int, step: int) -> Tensor:
    """The key from which all masks of step number `step` are drawn: a 64-bit integer in host
    memory."""
    return torch.tensor(_signed(_mix(_mix(seed) + step)))


def key_of_microbatch(key: Tensor, number: int) -> Tensor:
    """The step's key as microbatch `number` reads it: the key and that number, in host memory."""
    return torch.tensor((int(key), number))


def numbers_of_key(key: Tensor) -> tuple[int, int]:
    """The 64-bit key of a step, and the number of the microbatch (0 if there is one only)."""
    found: int | list[int] = key.tolist()  # reads host memory, and makes no tensor
    return (found, 0) if isinstance(found, int) else (found[0], found[1])


def dropout(
    x: Tensor,
    key: Tensor,
    p: float,
    number: int,
    places: Places | None = None,
    samples: Samples | None = None,
) -> tuple[Tensor, Tensor]:
    """x / (1 - p) where the mask keeps it and 0 elsewhere, and the mask (bool); each element is
    kept with probability 1 - p.

    `places` says which part of the whole tensor x is (None: all of it). With `samples`, the whole
    tensor is that of one microbatch, and x gets the part of the whole batch's mask.
    """
    return drop_by(x, *_hashes(x.shape, x.device, key, number, places, samples), p)


def drop_hashes(
    key: Tensor,
    shape: Sequence[int],
    number: int,
    places: Places | None = None,
    samples: Samples | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """A 32-bit hash for every row [*shape but the last] and every column [last] of a tensor of one
    dim at least: all that `drop_by` needs of the key."""
    made = _hashes(shape, device or torch.get_default_device(), key, number, places, samples)
    return made[0].view(tuple(shape[:-1])), made[1]


def drop_by(x: Tensor, rows: Tensor, columns: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Dropout of x and its mask, as `dropout`, by the hashes of its rows and columns."""
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    flat, rows = mask.view(-1, max(1, x.shape[-1] if x.dim() else 1)), rows.reshape(-1)
    threshold = drop_threshold(p)
    step = max(1, (_CHUNK_CPU if x.device.type == "cpu" else _CHUNK_DEVICE) // flat.shape[1])
    for at in range(0, flat.shape[0], step):
        torch.ge(_draw(rows[at : at + step], columns), threshold, out=flat[at : at + step])
    return dropout_backward(x, mask, p), mask


def drop_threshold(p: float) -> int:
    """The draw from which on an element is kept: a share p of the signed draws lies below."""
    return min(2**31 - 1, round(p * 2**32) - 2**31)


def dropout_backward(grad: Tensor, mask: Tensor, p: float) -> Tensor:
    """The gradient of x: that of the result where the mask kept it, divided by 1 - p."""
    # torch's own product of a float and a bool takes four times as long.
    kept = mask.view(torch.uint8).to(grad.dtype)
    return kept.mul_(grad).mul_(0.0 if p >= 1 else 1 / (1 - p))


def draws(
    shape: tuple[int, ...],
    device: torch.device,
    key: Tensor,
    number: int,
    places: Places | None,
    samples: Samples | None = None,
) -> Tensor:
    """32 random bits for every element, as a signed integer; only its high bits are well mixed."""
    return _draw(*_hashes(shape, device, key, number, places, samples)).view(shape)


#: The finaliser's steps: (shift, factor). Its last is left out: it changes low bits only.
DRAW_STEPS = ((16, _MURMUR_A), (13, _MURMUR_B))


def _draw(rows: Tensor, columns: Tensor) -> Tensor:
    """A draw of 32 bits for every pair of a row and a column. Shifts of signed integers copy the
    sign, which is masked away."""
    draw = torch.bitwise_xor(rows[:, None], columns[None])
    for shift, factor in DRAW_STEPS:
        draw.bitwise_xor_(
            torch.bitwise_right_shift(draw, shift).bitwise_and_((1 << (32 - shift)) - 1)
        ).mul_(factor)
    return draw


def _hashes(
    shape: Sequence[int],
    device: torch.device,
    key: Tensor,
    number: int,
    places: Places | None,
    samples: Samples | None,
) -> tuple[Tensor, Tensor]:
    """A 32-bit hash for every row and every column of a shard, by their numbers in the whole."""
    first, microbatch = numbers_of_key(key)
    own = _mix(_mix(first) + number)
    if places is None:
        places = tuple(((size, size, 0),) for size in shape)
    row = torch.zeros(1, dtype=torch.int64, device=device)
    column = row
    for dim, runs in enumerate(places):
        size, index = _indices(runs, device)
        if samples is not None and samples[0] == dim:
            size, index = _in_batch(size, index, samples, microbatch)
        if dim < len(places) - 1:
            row = (row[:, None] * size + index).view(-1)
        else:
            column = index
    return _hash(row, own), _hash(column, _mix(own))


def _in_batch(size: int, index: Tensor, samples: Samples, microbatch: int) -> tuple[int, Tensor]:
    """The size of a dim of the whole batch's tensor, and the indices in it, for the dim of one
    microbatch's and indices in that."""
    _, whole, here = samples
    return size // here * whole, index // here * whole + microbatch * here + index % here


def _indices(runs: tuple[tuple[int, int, int], ...], device: torch.device) -> tuple[int, Tensor]:
    """The size of a dim of the whole tensor, and the indices in it of this shard's elements."""
    (whole, here, start), *inner = runs or ((1, 1, 0),)
    index = torch.arange(start, start + here, device=device)
    for size, here, start in inner:
        whole *= size
        index = (index[:, None] * size + torch.arange(start, start + here, device=device)).view(-1)
    return whole, index


def _hash(index: Tensor, seed: int) -> Tensor:
    """32 bits of splitmix64's sequence from `seed`, at every index."""
    x = (index * _signed(_GOLDEN)).add_(_signed(seed))
    for shift, factor in ((30, _MIX_A), (27, _MIX_B)):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(_signed(factor))
    return x.bitwise_right_shift_(32).int()


def _mix(x: int) -> int:
    """splitmix64's finaliser, applied to x."""
    x = (x + _GOLDEN) % (1 << 64)
    x = (x ^ (x >> 30)) * _MIX_A % (1 << 64)
    x = (x ^ (x >> 27)) * _MIX_B % (1 << 64)
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The signed 64-bit integer with the low 64 bits of x."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


@torch.library.custom_op("shardwright::dropout", mutates_args=())
def _dropout(
    x: Tensor, key: Tensor, p: float, number: int, samples: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    return dropout(x, key, p, number, samples=samples)


@torch.library.custom_op("shardwright::dropout_backward", mutates_args=())
def _dropout_backward(grad: Tensor, mask: Tensor, p: float) -> Tensor:
    return dropout_backward(grad, mask, p)


@_dropout.register_fake
def _(
    x: Tensor, key: Tensor, p: float, number: int, samples: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


@_dropout_backward.register_fake
def _(grad: Tensor, mask: Tensor, p: float) -> Tensor:
    return torch.empty_like(grad)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.p = inputs[2]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    (mask,) = ctx.saved_tensors
    return torch.ops.shardwright.dropout_backward(grad, mask, ctx.p), None, None, None, None


_dropout.register_autograd(_differentiate, setup_context=_save)
