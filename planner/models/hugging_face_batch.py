"""An example batch for a Hugging Face model: its arguments, and the target of its task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import BadValue

__all__ = ["ENCODER_DECODER", "example_inputs", "example_target"]


_SEQ, _FRAMES, _SAMPLES = 128, 256, 16_000

ENCODER_DECODER = ("seq2seq", "speech-seq2seq")


def example_inputs(
    spec: str, model: Any, task: str, options: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """The names of the arguments that the model is called with, and an example of each."""
    config, batch = model.config, options["batch"]
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    main = model.main_input_name if task != "image-text" or encoder_decoder else "input_ids"
    tensors = {main: _example(spec, config, text, main, task, options)}
    if encoder_decoder and task in (*ENCODER_DECODER, "image-text", "base"):
        tensors["decoder_input_ids"] = _ids(
            _vocabulary(config, text), batch, _sequence(text, options)
        )
    parameters = inspect.signature(model.forward).parameters
    if main == "input_ids" and "bbox" in parameters:
        tensors["bbox"] = _boxes(config, batch, tensors[main].shape[1])
    if main == "input_ids" and "pixel_values" in parameters and hasattr(config, "image_size"):
        tensors["pixel_values"] = _example(spec, config, text, "pixel_values", task, options)
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and name not in tensors
        ):
            tensors[name] = _example(spec, config, text, name, task, options)
    return tuple(tensors), tuple(tensors.values())


def _example(
    spec: str, config: Any, text: Any, main: str, task: str, options: Mapping[str, Any]
) -> Tensor:
    batch = options["batch"]
    if main in ("input_ids", "decoder_input_ids") or (main == "inputs" and task == "masked-lm"):
        return _ids(_vocabulary(config, text), batch, _sequence(text, options))
    if main in ("pixel_values", "pixel_values_videos"):
        vision = (
            getattr(config, "vision_config", None)
            or getattr(config, "backbone_config", None)
            or config
        )
        size = _entry(config, "image_size", "crop_size") or _entry(vision, "image_size") or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = (
            getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
        )
        frames = (
            (_entry(config, "num_frames", "frames_per_clip") or 8,)
            if task == "video-classification"
            else ()
        )
        return torch.randn(batch, *frames, channels, height, width)
    if main == "input_values" and not hasattr(config, "num_mel_bins"):
        return torch.randn(batch, options.get("seq", _SAMPLES))
    if main in ("input_values", "input_features"):
        mel = int(
            _entry(config, "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
            or 80
        )
        if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
            return torch.randn(batch, mel, 2 * int(config.max_source_positions))
        return torch.randn(
            batch, int(_entry(config, "max_length") or options.get("seq", _FRAMES)), mel
        )
    raise BadValue(
        f"model {spec!r}: its input {main!r} is of a kind that shardwright cannot make up; wrap "
        "the model in a module:function of your own"
    )


def _boxes(config: Any, batch: int, seq: int) -> Tensor:
    """A box for every token, its four edges in thousandths of the page; or other numbers, if a
    model wants those."""
    if hasattr(config, "dim_bbox"):
        return torch.rand(batch, seq, int(config.dim_bbox))
    near = torch.randint(0, 500, (batch, seq, 2))
    return torch.cat((near, near + torch.randint(0, 500, (batch, seq, 2))), -1)


def _entry(config: Any, *names: str) -> Any:
    """The first of `names` that is an entry of the config and is set."""
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _vocabulary(config: Any, text: Any) -> int:
    return int(_entry(text, "vocab_size", "n_vocab") or _entry(config, "vocab_size") or 2)


def _sequence(text: Any, options: Mapping[str, Any]) -> int:
    limits = [
        getattr(text, name, None)
        for name in ("max_position_embeddings", "n_positions", "max_target_positions")
    ]
    return int(
        options.get("seq")
        or min([_SEQ, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])
    )


def _ids(vocabulary: int, batch: int, seq: int) -> Tensor:
    """Random ids above the first few, which stand for padding, beginning and end."""
    return torch.randint(min(4, vocabulary - 1), vocabulary, (batch, seq))


def example_target(task: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A random target for outputs of this shape: ids of classes, or numbers if there are none."""
    if task in ("base", "backbone", "depth", "masked-image") or len(shape) < 2:
        return torch.randn(shape, dtype=torch.float32 if dtype.is_floating_point else dtype)
    if task == "segmentation":
        return torch.randint(0, shape[1], (shape[0], *shape[2:]))
    return torch.randint(0, shape[-1], shape[:-1])
