"""The calls of layers that calibration measures: embeddings, convolutions, attention, LSTMs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from planner.program.operators import callable_of
from runtime.calibrate.case import Arguments, Case, ids, on_a_gpu, random, several

__all__ = ["attentions", "convolutions", "embeddings", "lstms"]


def embeddings(device: torch.device) -> Iterator[Case]:
    """Embeddings by rows, width and tokens."""
    shapes = (
        (128, 64, 128),
        (10_000, 64, 6_400),
        (10_000, 64, 25_600),
        (8_192, 256, 512),
        (8_192, 256, 2_048),
    )
    for shape in (*shapes, *on_a_gpu(device, (50_304, 768, 8_192))):
        shared = shape == (10_000, 64, 6_400)
        yield Case("aten.embedding.default", partial(_embedding, device, *shape), shared=shared)
        yield Case(
            "aten.embedding_dense_backward.default",
            partial(_embedding_backward, device, *shape),
            shared=shared,
        )


def _embedding(device: torch.device, rows: int, width: int, tokens: int) -> Arguments:
    return random(device, rows, width), ids(device, rows, tokens)


def _embedding_backward(device: torch.device, rows: int, width: int, tokens: int) -> Arguments:
    return random(device, tokens, width), ids(device, rows, tokens), rows, -1, False


#: batch, input channels, height and width, output channels.
_CONVOLUTIONS = (
    (8, 8, 8, 16),
    (16, 3, 32, 32),
    (64, 3, 32, 32),
    (16, 32, 16, 64),
    (64, 32, 16, 64),
    (16, 64, 8, 128),
    (64, 64, 8, 128),
    (64, 16, 32, 32),
)


_WINDOW: Arguments = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)


def convolutions(device: torch.device) -> Iterator[Case]:
    for shape in (
        *_CONVOLUTIONS,
        *on_a_gpu(
            device, (64, 64, 56, 64), (64, 128, 28, 128), (64, 256, 14, 256), (64, 512, 7, 512)
        ),
    ):
        shared = shape == (64, 32, 16, 64)
        yield Case("aten.convolution.default", partial(_convolution, device, *shape), shared=shared)
        yield Case(
            "aten.convolution_backward.default",
            partial(_convolution_backward, device, *shape),
            shared=shared,
        )


def _convolution(
    device: torch.device, batch: int, channels: int, image: int, width: int
) -> Arguments:
    return (
        random(device, batch, channels, image, image),
        random(device, width, channels, 3, 3),
        None,
        *_WINDOW,
    )


def _convolution_backward(
    device: torch.device, batch: int, channels: int, image: int, width: int
) -> Arguments:
    """Gradients of a convolution. If the input is the images themselves (3 channels), it has
    none."""
    x, weight, *_ = _convolution(device, batch, channels, image, width)
    return (
        random(device, batch, width, image, image),
        x,
        weight,
        (width,),
        *_WINDOW,
        (channels != 3, True, True),
    )


def attentions(device: torch.device) -> Iterator[Case]:
    shapes = ((1, 32, 4, 32), (2, 128, 8, 32), (8, 128, 8, 32), (2, 256, 4, 64), (4, 128, 12, 64))
    # On a GPU these are two kernels of different speed.
    for dtype in (torch.float32, *on_a_gpu(device, torch.bfloat16)):
        for shape in (*shapes, *on_a_gpu(device, (8, 1024, 12, 64), (2, 2048, 32, 64))):
            shared = shape == (8, 128, 8, 32)
            yield Case(
                "shardwright.attention", partial(_attention, device, shape, dtype), shared=shared
            )
            yield Case(
                "shardwright.attention_backward",
                partial(_attention_backward, device, shape, dtype),
                shared=shared,
            )


def _attention(
    device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Arguments:
    """q, k and v as views of one tensor, like those of a fused QKV product."""
    batch, length, heads, depth = shape
    qkv = torch.ops.aten.split(
        random(device, batch, length, 3 * heads * depth).to(dtype), heads * depth, 2
    )
    q, k, v = (t.reshape(shape).transpose(1, 2) for t in qkv)
    return q, k, v, True, depth**-0.5


def _attention_backward(
    device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Arguments:
    *qkv, causal, scale = _attention(device, shape, dtype)
    out, lse = callable_of("shardwright.attention")(*qkv, causal, scale)
    return torch.randn_like(out), *qkv, out, lse, causal, scale


def lstms(device: torch.device) -> Iterator[Case]:
    """LSTMs by steps, batch, inputs and hidden units."""
    small = ((8, 8, 16, 16), (100, 16, 64, 64), (100, 64, 64, 64), (100, 256, 64, 64))
    for shape in (*small, (50, 64, 64, 256), (20, 32, 512, 512)):
        shared = shape == (100, 64, 64, 64)
        yield Case("shardwright.lstm", partial(_lstm, device, *shape), shared=shared)
        yield Case(
            "shardwright.lstm_backward", partial(_lstm_backward, device, *shape), shared=shared
        )


def _lstm(device: torch.device, steps: int, batch: int, inputs: int, hidden: int) -> Arguments:
    x, state = (
        random(device, batch, steps, inputs).transpose(0, 1),
        torch.zeros(batch, hidden, device=device),
    )
    weights = (random(device, 4 * hidden, n).mul_(hidden**-0.5) for n in (inputs, hidden))
    return x, state, state, *weights, *several(device, 2, 4 * hidden)


def _lstm_backward(
    device: torch.device, steps: int, batch: int, inputs: int, hidden: int
) -> Arguments:
    arguments = _lstm(device, steps, batch, inputs, hidden)
    y, _, c, reserve = callable_of("shardwright.lstm")(*arguments)
    return torch.randn_like(y), None, None, *arguments, y, c, reserve
