"""The config of a Hugging Face model: by name, class or file, with entries set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cost_models.errors import BadValue, UnknownName, unknown_name

__all__ = ["config_of", "first_line", "imported_transformers", "with_settings", "without_skips"]


_PREFIX = "hf:"

#: Entries of a config that mask at random with numpy, which has no key, or skip layers at random:
#: they are turned off.
_MASKS: dict[str, Any] = {
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "apply_spec_augment": False,
}

_SKIPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")

#: How many layers a config has, by the names that configs have for it.
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def imported_transformers() -> Any:
    """The package transformers, silenced. Raises BadValue if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise BadValue(
            "models named hf:... need the package transformers: pip install 'shardwright[hf]'"
        ) from None
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return transformers


def config_of(spec: str) -> Any:
    """The transformers config that `spec` names."""
    config_class, entries = _named(spec)
    return _made(spec, config_class, entries)


def _named(spec: str) -> tuple[Any, dict[str, Any]]:
    """The class of the config that `spec` names, and the entries to make it with."""
    transformers = imported_transformers()
    name = spec.removeprefix(_PREFIX)
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
            f"model {spec!r}: {config_class.__name__} refuses: {type(error).__name__}: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of a message, with the next one if the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [
        "no message"
    ]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def with_settings(spec: str, settings: Mapping[str, Any]) -> Any:
    """The config with entries set. They are passed to its class together, so that derived entries
    (a list of layer types) agree with them."""
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
    """Whether a config has an entry. Reading it as a whole raises an error in some configs if it
    varies over layers."""
    try:
        return hasattr(config, name)
    except RuntimeError:
        return True


def _cut_layers(given: dict[str, Any], before: Any, after: Any) -> None:
    """Shortens entries that have a value per layer (layer types) to a new number of layers, or
    removes them, so that they are derived again."""
    for name, value in list(given.items()):
        if isinstance(value, list | tuple) and len(value) == before != after:
            del given[name]
            if isinstance(after, int) and after < before:
                given[name] = value[:after]


def _differences(config: Any) -> dict[str, Any]:
    """The entries of a config inside another that differ from their defaults, without lists of one
    value per layer, which are derived."""
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


def without_skips(spec: str, config: Any, options: Mapping[str, Any], prefix: str = "") -> None:
    """Sets to 0, in the config and those inside it, the entries that mask at random by numpy or
    skip layers, unless they are asked for."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            without_skips(spec, value, options, f"{prefix}{name}.")
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
