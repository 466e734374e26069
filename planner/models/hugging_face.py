"""Hugging Face models by config, without a download: `hf:gpt2`, `hf:LlamaConfig`,
`hf:path/to/config.json`.

A config -> the class of the right head, an example batch, and a loss. Any `model_type` that
transformers has a head for; any entry of the config can be set with `--set` (`--set
num_hidden_layers=4`, `--set text_config.hidden_size=64`). Dropout is the config's; whole layers and
time steps are not dropped at random; parameters that take no part in the loss are frozen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from cost_models.errors import BadValue, unknown_name
from planner.models.hugging_face_batch import ENCODER_DECODER, example_inputs, example_target
from planner.models.hugging_face_config import (
    first_line,
    imported_transformers,
    with_settings,
    without_skips,
)
from planner.models.hugging_face_module import (
    Headed,
    head_loss,
    make_fake,
    register_experts,
    regression_loss,
    static_experts,
)
from planner.models.spec import Parts, check_given_once
from planner.torch_private.fake_tensors import fake_mode_is_on
from planner.torch_private.modes import really

__all__ = ["build", "config_options"]


_BATCH_PER_DEVICE = 4

#: Heads by task, as transformers' own tables of classes (`MODEL_FOR_..._MAPPING_NAMES`); the first
#: that has the model is taken.
TASKS = {
    "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM",
    "speech-seq2seq": "SPEECH_SEQ_2_SEQ",
    "masked-lm": "MASKED_LM",
    "causal-lm": "CAUSAL_LM",
    "image-classification": "IMAGE_CLASSIFICATION",
    "audio-classification": "AUDIO_CLASSIFICATION",
    "video-classification": "VIDEO_CLASSIFICATION",
    "segmentation": "SEMANTIC_SEGMENTATION",
    "depth": "DEPTH_ESTIMATION",
    "sequence-classification": "SEQUENCE_CLASSIFICATION",
    "token-classification": "TOKEN_CLASSIFICATION",
    "question-answering": "QUESTION_ANSWERING",
    "image-text": "IMAGE_TEXT_TO_TEXT",
    "masked-image": "MASKED_IMAGE_MODELING",
    "backbone": "BACKBONE",
    "base": "",
}

#: Names of the (private) classes of errors of fake tensors whose values are asked for.
_READS_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")


def config_options(
    spec: str, *, batch: int | None, seq: int | None, settings: Mapping[str, str], num_devices: int
) -> dict[str, Any]:
    """`batch`, `seq` if given, `task`, and every entry of the config that is set.

    Raises UnknownName for a model type, a task or an entry that does not exist, BadValue for a
    value of the wrong kind.
    """
    flags = {"batch": batch, "seq": seq}
    check_given_once(flags, settings)
    options: dict[str, Any] = {
        "batch": batch if batch is not None else _BATCH_PER_DEVICE * num_devices
    }
    if seq is not None:
        options["seq"] = seq
    for key, text in settings.items():
        options[key] = text if key == "task" else _parse(text)
    if options.get("task", "base") not in TASKS:
        raise unknown_name("task", options["task"], list(TASKS))
    for key in ("batch", "seq"):
        value = options.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadValue(
                f"{key} is {value} for model {spec!r}: give a whole number of at least 1"
            )
    without_skips(spec, with_settings(spec, _of_config(options)), options)
    return options


def _of_config(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("batch", "seq", "task")}


def _parse(text: str) -> Any:
    """A value of a config, parsed as JSON if possible (`4`, `0.5`, `true`, `[2, 2]`), else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def build(spec: str, options: Mapping[str, Any]) -> Parts:
    """The model with its head, an example batch and its loss, under the caller's random state."""
    transformers = imported_transformers()
    config = with_settings(spec, _of_config(options))
    without_skips(spec, config, options)
    task, model_class = _class_of(transformers, spec, config, options.get("task"))
    try:
        model = _instance(model_class, config)
    except Exception as error:
        raise BadValue(
            f"model {spec!r}: {model_class.__name__} refuses: {type(error).__name__}: {first_line(error)}"
        ) from error
    names, inputs = example_inputs(spec, model, task, options)
    module = Headed(model, names)
    try:
        shape, dtype = module.freeze_unused(inputs)
    except RuntimeError as error:
        if type(error).__name__ not in _READS_DATA:
            raise
        module.unpadded = True
        shape, dtype = module.freeze_unused(inputs)
    return module, (*inputs, example_target(task, shape, dtype)), _loss(task)


def _instance(model_class: Any, config: Any) -> nn.Module:
    """The model, with initial values as its class draws them, and with implementations whose shapes
    are static."""
    from transformers.initialization import no_init_weights

    wanted = getattr(model_class, "config_class", None) or type(config)
    if not isinstance(config, wanted):  # a head of the text model inside
        config = next((part for part in vars(config).values() if isinstance(part, wanted)), config)
    register_experts()
    config._experts_implementation = "shardwright"
    with no_init_weights() if fake_mode_is_on() else nullcontext():
        try:
            model: Any = model_class._from_config(config)
        except RuntimeError as error:  # its class reads values of tensors
            if not (fake_mode_is_on() and type(error).__name__ in _READS_DATA):
                raise
            model = really(model_class._from_config, config)
            make_fake(model)
    model.tie_weights()
    static_experts(model)
    out: nn.Module = model.train()
    return out


def _class_of(transformers: Any, spec: str, config: Any, task: str | None) -> tuple[str, Any]:
    """The task and the class of the head: as asked for, as in the config's `architectures`, or the
    first task that has one."""
    auto = transformers.models.auto.modeling_auto
    tables = {name: _table(auto, table) for name, table in TASKS.items()}
    named = (getattr(config, "architectures", None) or [None])[0]
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    for name, table in tables.items():
        found = table.get(config.model_type)
        found = found[0] if isinstance(found, list | tuple) else found
        if found is None or (task is not None and name != task):
            continue
        if (
            task is None
            and named is not None
            and found != named
            and any(t.get(config.model_type) == named for t in tables.values())
        ):
            continue
        if (
            task is None
            and name in ENCODER_DECODER
            and not encoder_decoder
            and name != "speech-seq2seq"
        ):
            continue
        if hasattr(transformers, found):
            return name, getattr(transformers, found)
    having = [name for name, table in tables.items() if config.model_type in table]
    wanted = f"task {task}" if task else "any task that is known"
    raise BadValue(
        f"model {spec!r}: transformers has no head for {wanted}; {config.model_type} has {', '.join(having) or 'none'}"
    )


def _table(auto: Any, table: str) -> Mapping[str, Any]:
    return dict(
        getattr(auto, f"MODEL_FOR_{table}_MAPPING_NAMES" if table else "MODEL_MAPPING_NAMES")
    )


def _loss(task: str) -> Any:
    if task in ("base", "backbone", "depth", "masked-image"):
        return regression_loss
    return torch.nn.functional.cross_entropy if task == "segmentation" else head_loss
