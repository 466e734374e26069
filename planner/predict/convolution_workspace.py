"""The workspace of convolutions on a CPU, forward and backward.

In float32, float64 and bfloat16 they are oneDNN's, which copies images and weights to its own order
of channels. In float16 they are torch's own, if the CPU multiplies no float16: the image's columns
are held, one for each pixel of a kernel (ATen ConvolutionMM2d.cpp, NaiveDilatedConvolution.cpp,
NaiveConvolutionTranspose2d.cpp). Measured as in `workspace.py`.
"""

from __future__ import annotations

import math
from typing import Any

from cost_models.memory import dtype_bytes
from planner.predict.kernel_call import KernelCall, Kind, nbytes_of

__all__ = ["convolution", "convolution_backward"]

#: Channels that oneDNN keeps together.
_BLOCK = 16


def convolution(call: KernelCall) -> int:
    """Copies of the image and the weights, then of the result. Kernels of one pixel need fewer in
    bfloat16, and else none."""
    if not call.host:
        return 0
    if call.result[1] == "float16":
        return _columns(call.kind(0), call.kind(1), call.result, call.settings[3:9], 0)
    if _pixels(call.kind(1)) == 1:
        short = call.result[1] == "bfloat16"
        return call.nbytes(0) + call.nbytes(1) + nbytes_of(call.result) // 2 if short else 0
    image, weights, result = _image(call.kind(0)), call.nbytes(1), _padded(call.result)
    if image and call.shape(1)[0] < _BLOCK:
        return image + nbytes_of(call.result) + 2 * weights
    return max(image + weights if image else 0, result)


def convolution_backward(call: KernelCall) -> int:
    """Copies of the result's gradient and the image; in bfloat16 also the weights' gradient in
    float32, and one sample of both, transposed."""
    if not call.host:
        return 0
    gradient, image, weights = call.kind(0), call.kind(1), call.kind(2)
    if gradient[1] == "float16":
        return _columns(image, weights, gradient, call.settings[4:10], nbytes_of(gradient))
    copies = max(_padded(gradient) + _image(image), nbytes_of(weights))
    if gradient[1] == "bfloat16":
        channels = [-(-size // _BLOCK) * _BLOCK for size in weights[0][:2]]
        wide = math.prod(channels) * _pixels(weights) * dtype_bytes("float32")
        several = _pixels(weights) > 1
        return copies + wide + (_sample(gradient) + _sample(image) if several else 0)
    return 0 if _pixels(weights) == 1 else copies


def _columns(
    image: Kind,
    weights: Kind,
    result: Kind,
    settings: tuple[Any, ...],
    gradient: int,
) -> int:
    """Bytes of the columns of torch's own kernels, of one group of channels at a time; then results
    are joined. `settings` are stride, padding, dilation, transposed, output padding and groups;
    `gradient` the bytes of the result's gradient, in backward."""
    stride, _, dilation, transposed, _, groups = settings
    samples, pixels = image[0][0], _pixels(weights)
    if pixels == 1 and max(stride) == 1:
        return 0
    positions = image if transposed else result
    each = math.prod((*weights[0][1:], *positions[0][2:])) * dtype_bytes(image[1])
    one_by_one = bool(gradient) if transposed else max(dilation) > 1
    held: int = each if one_by_one else each * samples
    if groups == 1:
        return held
    parts = (nbytes_of(image) + gradient) // groups
    joined = nbytes_of(image) + nbytes_of(weights) if gradient else nbytes_of(result)
    return int(max(held + parts, joined))


def _pixels(weights: Kind) -> int:
    return math.prod(weights[0][2:])


def _sample(image: Kind) -> int:
    """Bytes of one sample, in oneDNN's order."""
    return _padded(image) // max(image[0][0], 1)


def _image(image: Kind) -> int:
    """Bytes of the image in oneDNN's order; 0 if it has too few channels to be reordered."""
    channels = image[0][1]
    return 0 if channels < 4 else nbytes_of(image) if channels < _BLOCK else _padded(image)


def _padded(image: Kind) -> int:
    channels = image[0][1]
    return nbytes_of(image) // channels * (-(-channels // _BLOCK) * _BLOCK)
