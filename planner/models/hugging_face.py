"""Hugging Face models by config, without a download: `hf:gpt2`, `hf:LlamaConfig`,
`hf:path/to/config.json`.

A config -> the class of the right head, an example batch, and a loss. Any `model_type` that
transformers has a head for; any entry of the config can be set with `--set` (`--set
num_hidden_layers=4`, `--set text_config.hidden_size=64`). Dropout is the config's; whole layers and
time steps are not dropped at random; parameters that take no part in the loss are frozen.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import BadValue, UnknownName, unknown_name
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

__all__ = ["PREFIX", "build", "config_of", "is_hugging_face", "config_options"]

PREFIX = "hf:"
_BATCH_PER_DEVICE, _SEQ, _FRAMES, _SAMPLES = 4, 128, 256, 16_000

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
_ENCODER_DECODER = ("seq2seq", "speech-seq2seq")
#: Entries of a config that mask at random by numpy, which no key reaches, or skip layers by a
#: number drawn: off.
_MASKS: dict[str, Any] = {
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "apply_spec_augment": False,
}
_SKIPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
#: The errors of tensors without memory of which the values are asked for, by the names of their
#: (private) classes.
_READS_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")
#: How many layers a config has, by the names that configs have for it.
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def is_hugging_face(spec: str) -> bool:
    """Whether `spec` names a config of transformers."""
    return spec.startswith(PREFIX)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise BadValue(
            "models named hf:... need the package transformers: pip install 'shardwright[hf]'"
        ) from None
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return transformers


# --------------------------------------------------------------------------------------- the config


def config_of(spec: str) -> Any:
    """The config that `spec` names, as transformers makes it."""
    config_class, entries = _named(spec)
    return _made(spec, config_class, entries)


def _named(spec: str) -> tuple[Any, dict[str, Any]]:
    """The class of the config that `spec` names, and the entries that are given to it."""
    transformers = _transformers()
    name = spec.removeprefix(PREFIX)
    if name.endswith(".json") or "/" in name:
        return _named_in_file(transformers, spec, Path(name))
    types = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    by_class = {class_name: model_type for model_type, class_name in reversed(list(types.items()))}
    same = {model_type.replace("_", "-").lower(): model_type for model_type in types}
    found = by_class.get(name) or same.get(name.replace("_", "-").lower())
    if found is not None:
        return transformers.CONFIG_MAPPING[found], {}
    config_class = getattr(transformers, name, None) if name.endswith("Config") else None
    if isinstance(config_class, type):
        return config_class, {}
    raise unknown_name("Hugging Face model type", name, list(types))


def _named_in_file(transformers: Any, spec: str, path: Path) -> tuple[Any, dict[str, Any]]:
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise UnknownName(f"model {spec!r}: no file {path} in {Path.cwd()}")
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise BadValue(f"model {spec!r}: {path} is not JSON: {error}") from None
    kind = entries.get("model_type") if isinstance(entries, dict) else None
    types = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if kind not in types:
        raise unknown_name(f"model_type in {path}", str(kind), list(types))
    return transformers.CONFIG_MAPPING[kind], {
        k: v for k, v in entries.items() if k != "model_type"
    }


def _made(spec: str, config_class: Any, entries: Mapping[str, Any]) -> Any:
    try:
        return config_class(**entries)
    except Exception as error:
        raise BadValue(
            f"model {spec!r}: {config_class.__name__} refuses: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """The first line of a message, with the next where the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [
        "no message"
    ]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _with_settings(spec: str, settings: Mapping[str, Any]) -> Any:
    """The config with entries set: given to its class together, so that what follows from them
    (a list of layer types) does."""
    config_class, entries = _named(spec)
    base = _made(spec, config_class, entries)
    given = dict(entries)
    for key, value in settings.items():
        *path, last = key.split(".")
        holder, into = base, given
        for part in path:
            holder = getattr(holder, part, None)
            inner = into.get(part)
            into[part] = dict(inner) if isinstance(inner, dict) else _differences(holder)
            into = into[part]
        if holder is None or not _has(holder, last):
            raise unknown_name(f"{spec} option", key, ["task", *_entries(base)])
        if last in _NUM_LAYERS:
            _cut_layers(into, getattr(holder, last), value)
        into[last] = value
    return _made(spec, config_class, given) if settings else base


def _has(config: Any, name: str) -> bool:
    """Whether a config has an entry, which some do not let be read as a whole where it varies
    over layers."""
    try:
        return hasattr(config, name)
    except RuntimeError:
        return True


def _cut_layers(given: dict[str, Any], before: Any, after: Any) -> None:
    """What is given layer by layer (layer types) for another number of layers is that of the
    first ones, or follows anew."""
    for name, value in list(given.items()):
        if isinstance(value, list | tuple) and len(value) == before != after:
            del given[name]
            if isinstance(after, int) and after < before:
                given[name] = value[:after]


def _differences(config: Any) -> dict[str, Any]:
    """What a config inside another was given beyond its defaults, and what lists of layer by
    layer do not follow from."""
    if not hasattr(config, "to_diff_dict"):
        return dict(config) if isinstance(config, dict) else {}
    out = dict(config.to_diff_dict())
    layers = next(
        (found for name in _NUM_LAYERS if isinstance(found := getattr(config, name, None), int)), -1
    )
    for name in ("transformers_version", "out_features", "out_indices", "stage_names"):
        out.pop(name, None)
    return {
        name: value
        for name, value in out.items()
        if not (isinstance(value, list) and len(value) == layers)
    }


def _entries(config: Any) -> list[str]:
    names = [name for name in config.to_dict() if not name.startswith("_")]
    parts = [name for name in names if hasattr(getattr(config, name, None), "to_dict")]
    return names + [f"{part}.{name}" for part in parts for name in getattr(config, part).to_dict()]


# -------------------------------------------------------------------------------------------- sizes


def config_options(
    spec: str, *, batch: int | None, seq: int | None, settings: Mapping[str, str], num_devices: int
) -> dict[str, Any]:
    """`batch`, `seq` where given, `task`, and every entry of the config that is set.

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
    _without_skips(spec, _with_settings(spec, _of_config(options)), options)
    return options


def _of_config(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("batch", "seq", "task")}


def _parse(text: str) -> Any:
    """A value of a config, as JSON where it is (`4`, `0.5`, `true`, `[2, 2]`), else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# ---------------------------------------------------------------------------------------- the model


def build(spec: str, options: Mapping[str, Any]) -> Parts:
    """The model with its head, an example batch and its loss, under the caller's random state."""
    transformers = _transformers()
    config = _with_settings(spec, _of_config(options))
    _without_skips(spec, config, options)
    task, model_class = _class_of(transformers, spec, config, options.get("task"))
    try:
        model = _instance(model_class, config)
    except Exception as error:
        raise BadValue(
            f"model {spec!r}: {model_class.__name__} refuses: {type(error).__name__}: {_first_line(error)}"
        ) from error
    names, inputs = _inputs(spec, model, task, options)
    module = Headed(model, names)
    try:
        shape, dtype = module.freeze_unused(inputs)
    except RuntimeError as error:
        if type(error).__name__ not in _READS_DATA:
            raise
        module.unpadded = True
        shape, dtype = module.freeze_unused(inputs)
    return module, (*inputs, _target(task, shape, dtype)), _loss(task)


def _instance(model_class: Any, config: Any) -> nn.Module:
    """The model, its initial values drawn as its class says; of implementations, those of which
    the shapes are static."""
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


def _without_skips(spec: str, config: Any, options: Mapping[str, Any], prefix: str = "") -> None:
    """Sets to 0, in the config and in those inside it, what masks at random by numpy or skips
    layers, unless it is asked for."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            _without_skips(spec, value, options, f"{prefix}{name}.")
        elif name in _MASKS:
            if options.get(f"{prefix}{name}"):
                raise BadValue(
                    f"model {spec!r}: {prefix}{name} masks with numpy's random numbers, which is "
                    "not supported: leave it out, or set it to 0"
                )
            setattr(config, name, _MASKS[name])
        elif name in _SKIPS and f"{prefix}{name}" not in options:
            setattr(config, name, 0.0)
    if getattr(config, "use_cache", False):
        config.use_cache = False


def _class_of(transformers: Any, spec: str, config: Any, task: str | None) -> tuple[str, Any]:
    """The task and the class of the head: as asked, as the config's `architectures` says, or the
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
            and name in _ENCODER_DECODER
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


# ---------------------------------------------------------------------------------------- the batch


def _inputs(
    spec: str, model: Any, task: str, options: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """The names of the arguments that the model is called with, and an example of each."""
    config, batch = model.config, options["batch"]
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    main = model.main_input_name if task != "image-text" or encoder_decoder else "input_ids"
    tensors = {main: _example(spec, config, text, main, task, options)}
    if encoder_decoder and task in (*_ENCODER_DECODER, "image-text", "base"):
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
    """A box for every token, its four edges in thousandths of the page; or numbers, where a
    model wants those."""
    if hasattr(config, "dim_bbox"):
        return torch.rand(batch, seq, int(config.dim_bbox))
    near = torch.randint(0, 500, (batch, seq, 2))
    return torch.cat((near, near + torch.randint(0, 500, (batch, seq, 2))), -1)


def _entry(config: Any, *names: str) -> Any:
    """The first of some entries that a config has and that is set."""
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
    """Random ids above the first few, which are padding and marks of begin and end."""
    return torch.randint(min(4, vocabulary - 1), vocabulary, (batch, seq))


def _target(task: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if task in ("base", "backbone", "depth", "masked-image") or len(shape) < 2:
        return torch.randn(shape, dtype=torch.float32 if dtype.is_floating_point else dtype)
    if task == "segmentation":
        return torch.randint(0, shape[1], (shape[0], *shape[2:]))
    return torch.randint(0, shape[-1], shape[:-1])


def _loss(task: str) -> Any:
    if task in ("base", "backbone", "depth", "masked-image"):
        return regression_loss
    return torch.nn.functional.cross_entropy if task == "segmentation" else head_loss
