"""Where models come from: a record for each kind of name.

A name -> the `Source` that it is of, which resolves its sizes and builds its `Workload`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cost_models.errors import unknown_name
from planner.models import MODELS, ModelSpec
from planner.models import user as user_model
from planner.models.keras_model import is_keras, parts_of
from planner.models.spec import built_in_options
from planner.workload.parts import (
    check_batch,
    check_shapes,
    tokens_of,
    workload_of,
    workload_of_parts,
)
from planner.workload.saved import is_saved, read_saved
from planner.workload.workload import Workload

__all__ = ["SOURCES", "Sizes", "Source", "source_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes that were asked for: the global batch and the tokens of a sample (None: the model's
    own), the texts of `--set`, and how many devices a default batch is for."""

    batch: int | None
    seq: int | None
    settings: Mapping[str, str]
    num_devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One kind of model name: `matches` tells whether a name is of it; `options` gives all options
    that the model would be built with, checked, without building anything; `load` builds it with
    them, in a dtype."""

    matches: Callable[[str], bool]
    options: Callable[[str, Sizes], Mapping[str, Any]]
    load: Callable[[str, Mapping[str, Any], str], Workload]


def source_of(spec: str) -> Source:
    """The source of the model that `spec` names."""
    return next(source for source in SOURCES if source.matches(spec))


def _hugging_face_options(spec: str, sizes: Sizes) -> Mapping[str, Any]:
    from planner.models import hugging_face  # only for its models

    return hugging_face.config_options(
        spec,
        batch=sizes.batch,
        seq=sizes.seq,
        settings=sizes.settings,
        num_devices=sizes.num_devices,
    )


def _user_options(spec: str, sizes: Sizes) -> Mapping[str, Any]:
    return user_model.user_options(spec, batch=sizes.batch, seq=sizes.seq, settings=sizes.settings)


def _built_in_options(name: str, sizes: Sizes) -> Mapping[str, Any]:
    return built_in_options(
        _find(name),
        name,
        batch=sizes.batch,
        seq=sizes.seq,
        settings=sizes.settings,
        num_devices=sizes.num_devices,
    )


def _find(name: str) -> ModelSpec:
    for spec in MODELS.values():
        if name == spec.name or name in spec.presets:
            return spec
    if name.endswith(".py"):
        raise user_model.without_function(name)
    names = [name for spec in MODELS.values() for name in (spec.name, *spec.presets)]
    error = unknown_name("model", name, names)
    raise type(error)(f"{error}; or module:function of your own")


def _built_in(name: str, options: Mapping[str, Any], _: str) -> Workload:
    spec = _find(name)
    module, batch, loss = spec.build(options)
    return Workload(
        name=name,
        module=module,
        batch=batch,
        loss=loss,
        optimizer=spec.optimizer,
        learning_rate=spec.learning_rate,
        options=options,
        dim_names=spec.dim_names,
        tokens_per_sample=options[spec.sequence] if spec.sequence else 1,
    )


def _from_hugging_face(spec: str, options: Mapping[str, Any], _: str) -> Workload:
    from planner.models import hugging_face

    module, batch, loss = hugging_face.build(spec, options)
    return Workload(
        name=spec,
        module=module,
        batch=batch,
        loss=loss,
        options=options,
        tokens_per_sample=tokens_of(batch),
    )


def _from_keras(spec: str, options: Mapping[str, Any], dtype: str) -> Workload:
    module, batch, loss, more = parts_of(
        spec, lambda name: user_model.call(name, user_model.load_function(name), options), dtype
    )
    workload = workload_of(spec, module, batch, loss, **more)
    return replace(workload, options={"batch": workload.batch[0].shape[0], **options})


def _from_saved(spec: str, _: Mapping[str, Any], __: str) -> Workload:
    saved = read_saved(spec)
    workload = workload_of(
        type(saved["module"]).__name__,
        saved["module"],
        saved["batch"],
        saved["loss"],
        **saved["more"],
    )
    return replace(workload, options={"batch": workload.batch[0].shape[0]})


def _from_user(spec: str, options: Mapping[str, Any], _: str) -> Workload:
    result = user_model.call(spec, user_model.load_function(spec), options)
    if not isinstance(result, Workload):
        result = workload_of_parts(spec, result)
    check_batch(spec, result.batch)
    check_shapes(spec, result.module)
    return replace(result, options={"batch": result.batch[0].shape[0], **result.options, **options})


#: In this order: the first that matches a name is its source. *A source: a record here.*
SOURCES = (
    Source(matches=is_saved, options=lambda spec, sizes: {}, load=_from_saved),
    Source(matches=is_keras, options=_user_options, load=_from_keras),
    Source(
        matches=lambda spec: spec.startswith("hf:"),
        options=_hugging_face_options,
        load=_from_hugging_face,
    ),
    Source(matches=user_model.is_user_model, options=_user_options, load=_from_user),
    Source(matches=lambda spec: True, options=_built_in_options, load=_built_in),
)
