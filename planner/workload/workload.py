"""The `Workload`: a model, an example batch and a loss, from a built-in name or from the user's
`module:function`.

model name, sizes -> Workload. The same builder serves planning (called under fake tensors, no
memory) and running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from cost_models.errors import BadValue, unknown_name
from planner.kernels.clip import CLIP_EPSILON
from planner.models import MODELS, ModelSpec
from planner.models import user as user_model
from planner.models.keras_model import is_keras, parts_of
from planner.models.reported import Reported
from planner.models.spec import resolve
from planner.state.hung import check_hooks
from planner.state.state import State, cast_constants, state_of, trained_parts
from planner.torch_private.hooks import is_compiled
from planner.workload.batches import arguments, flatten
from planner.workload.saved import is_saved, read_saved

__all__ = [
    "DTYPES",
    "PRECISIONS",
    "Workload",
    "known_models",
    "load_workload",
    "resolve_options",
    "unused",
    "workload_of",
]

#: What `--precision` may be: the dtype of parameters and, in mixed precision, that of products.
PRECISIONS = {
    "fp32": ("float32", ""),
    "fp64": ("float64", ""),
    "bf16": ("bfloat16", ""),
    "bf16-mixed": ("float32", "bfloat16"),
}

#: How the name of a Hugging Face config begins; the module that reads it is imported only then.
_HUGGING_FACE = "hf:"

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is trained: `loss(module(*batch[:-1]), batch[-1])` is the scalar that one step
    differentiates; of several losses, by name in a dict or by number in a tuple, their sum is.

    `batch` holds the model's inputs and, last, the target; dim 0 of each is the batch. A nested
    batch is given by its tensors and its `nest` (`batches.py`). `compute` is the dtype of products
    in mixed precision, empty where it is that of the parameters; gradients whose norm, over all of
    them, is larger than `clip_norm` are scaled down to it, by the norm plus `clip_epsilon`.
    `optimizer_settings` are the optimizer's own, over those that its name implies; `options` are
    all sizes as resolved. `dim_names` gives the sub-dims of parameters the model's own words: a
    glob of parameter names to one comma list of sub-dim names for each dim, as in
    `{"h.*.attn.qkv.weight": ("three,heads,head_dim", "embed")}`; the first glob that fits a name
    counts.
    """

    name: str
    module: torch.nn.Module
    batch: tuple[torch.Tensor, ...]
    loss: Callable[[Any, Any], Any]
    nest: Any = None
    compute: str = ""
    clip_norm: float | None = None
    clip_epsilon: float = CLIP_EPSILON
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    optimizer_settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    dim_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokens_per_sample: int = 1

    def arguments(
        self, batch: Sequence[torch.Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """What the module is called with on these tensors, by position and by name, and the
        target."""
        return (
            (tuple(batch[:-1]), {}, batch[-1]) if self.nest is None else arguments(self.nest, batch)
        )

    def state(self) -> State:
        """The tensors that a step reads beside its batch, as they are now."""
        return state_of(self.module, self.loss)

    def losses(self, outputs: Any, target: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scalar to differentiate, and where there are several the losses that it is the sum
        of, by name."""
        found = self.loss(outputs, target)
        if isinstance(found, Reported):
            return found.loss, dict(found.parts)
        if isinstance(found, tuple | list):
            found = {f"loss_{number}": loss for number, loss in enumerate(found)}
        if not isinstance(found, Mapping):
            return found, {}
        if not found:
            raise BadValue(
                f"the loss of {self.name!r} returned no losses: return one scalar, or several by name"
            )
        return sum(found.values()), dict(found)  # type: ignore[return-value]

    def loss_of(
        self, batch: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`losses` of the module on these tensors, in plain torch."""
        inputs, named, target = self.arguments(batch)
        return self.losses(self.module(*inputs, **named), target)


def unused(module: torch.nn.Module, trained: Iterable[str]) -> tuple[str, ...]:
    """The names of the parameters that are not among those `trained` although they are not
    frozen."""
    names = set(trained)
    return tuple(
        name for name, p in module.named_parameters() if p.requires_grad and name not in names
    )


def known_models() -> Mapping[str, ModelSpec]:
    """The built-in models by name: each with its description, its options and their defaults,
    and its presets."""
    return dict(MODELS)


def resolve_options(
    spec: str, *, batch: int | None, seq: int | None, settings: Mapping[str, str], num_devices: int
) -> Mapping[str, Any]:
    """All sizes that `load_workload` would build with, checked, without building anything.

    Of the user's own `module:function` only the sizes that were given are known before it is
    called. Raises `UnknownName` for a model or an option that does not exist, `BadValue` for a
    value out of range.
    """
    if spec.startswith(_HUGGING_FACE):
        from planner.models import hugging_face

        return hugging_face.resolve(
            spec, batch=batch, seq=seq, settings=settings, num_devices=num_devices
        )
    if is_saved(spec):
        return {}
    if is_keras(spec) or user_model.is_user_model(spec):
        return user_model.resolve(spec, batch=batch, seq=seq, settings=settings)
    return resolve(
        _find(spec), spec, batch=batch, seq=seq, settings=settings, num_devices=num_devices
    )


def load_workload(
    spec: str,
    *,
    batch: int | None,
    seq: int | None,
    settings: Mapping[str, str],
    num_devices: int,
    dtype: str = "float32",
    compute: str = "",
    clip_norm: float | None = None,
) -> Workload:
    """The workload of a built-in model or preset, or of the user's `module:function` or
    `path/to/file.py:function`.

    `batch` is the global batch; its default is the model's batch per device times `num_devices`.
    `dtype` becomes that of the parameters and of every floating tensor of the batch. Initial values
    come from the generator as it stands and are drawn in float32 whatever `dtype` is, so that the
    same seed starts every dtype at the same point. `compute` and `clip_norm`, where given, replace
    the workload's own. Allocates nothing under `FakeTensorMode`.

    Raises `UnknownName` and `BadValue` as `resolve_options` does, and if the user's code fails.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, list(DTYPES))
    options = resolve_options(
        spec, batch=batch, seq=seq, settings=settings, num_devices=num_devices
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        workload = _loader(spec, dtype)(spec, options)
    finally:
        torch.set_default_dtype(before)
    workload = replace(
        workload,
        compute=compute or workload.compute,
        clip_norm=workload.clip_norm if clip_norm is None else clip_norm,
    )
    for part in (workload.module, workload.loss):
        if isinstance(part, torch.nn.Module):
            check_hooks(
                workload.name, part
            )  # before the cast, which takes a parameter's AccumulateGrad node from it
    return _cast(workload, DTYPES[dtype])


def _find(name: str) -> ModelSpec:
    for spec in MODELS.values():
        if name == spec.name or name in spec.presets:
            return spec
    if name.endswith(".py"):
        raise user_model.without_function(name)
    names = [name for spec in MODELS.values() for name in (spec.name, *spec.presets)]
    error = unknown_name("model", name, names)
    raise type(error)(f"{error}; or module:function of your own")


def _built_in(name: str, options: Mapping[str, Any]) -> Workload:
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


def _loader(spec: str, dtype: str) -> Callable[[str, Mapping[str, Any]], Workload]:
    if is_saved(spec):
        return _from_saved
    if is_keras(spec):
        return partial(_from_keras, dtype=dtype)
    if spec.startswith(_HUGGING_FACE):
        return _from_hugging_face
    return _from_user if user_model.is_user_model(spec) else _built_in


def _from_hugging_face(spec: str, options: Mapping[str, Any]) -> Workload:
    from planner.models import hugging_face

    module, batch, loss = hugging_face.build(spec, options)
    return Workload(
        name=spec,
        module=module,
        batch=batch,
        loss=loss,
        options=options,
        tokens_per_sample=_tokens(batch),
    )


def _from_keras(spec: str, options: Mapping[str, Any], *, dtype: str) -> Workload:
    module, batch, loss, more = parts_of(
        spec, lambda name: user_model.call(name, user_model.load_function(name), options), dtype
    )
    workload = workload_of(spec, module, batch, loss, **more)
    return replace(workload, options={"batch": workload.batch[0].shape[0], **options})


def _from_saved(spec: str, _: Mapping[str, Any]) -> Workload:
    saved = read_saved(spec)
    workload = workload_of(
        type(saved["module"]).__name__,
        saved["module"],
        saved["batch"],
        saved["loss"],
        **saved["more"],
    )
    return replace(workload, options={"batch": workload.batch[0].shape[0]})


def _from_user(spec: str, options: Mapping[str, Any]) -> Workload:
    result = user_model.call(spec, user_model.load_function(spec), options)
    if not isinstance(result, Workload):
        result = _workload_of_parts(spec, result)
    _check_batch(spec, result.batch)
    _check_shapes(spec, result.module)
    return replace(result, options={"batch": result.batch[0].shape[0], **result.options, **options})


WANTED = "(model, batch, loss): a torch.nn.Module, a tuple of tensors with the target last (or a dict), and a function"


def _workload_of_parts(spec: str, parts: object) -> Workload:
    wanted = WANTED
    if not isinstance(parts, tuple) or len(parts) != 3:
        got = (
            f"a tuple of {len(parts)}" if isinstance(parts, tuple) else f"a {type(parts).__name__}"
        )
        raise BadValue(f"{spec} returned {got}: return {wanted}, or a Workload")
    module, batch, loss = parts
    if not isinstance(module, torch.nn.Module):
        raise BadValue(f"{spec} returned a {type(module).__name__} as the model: return {wanted}")
    if not callable(loss):
        raise BadValue(f"{spec} returned a {type(loss).__name__} as the loss: return {wanted}")
    return workload_of(spec, module, batch, loss)


def workload_of(
    name: str, module: torch.nn.Module, batch: Any, loss: Callable[[Any, Any], Any], **more: Any
) -> Workload:
    """The workload of a module, an example batch (a tuple with the target last, or a dict; nested
    as may be) and a loss.

    Raises `BadValue` for a batch whose tensors do not share their dim 0.
    """
    if not isinstance(batch, tuple | list | Mapping):
        raise BadValue(f"{name} returned a {type(batch).__name__} as the batch: return {WANTED}")
    if len(batch) < 2 and not isinstance(batch, Mapping):
        raise BadValue(
            f"{name} returned a batch of {len(batch)}: return at least one input and, last, the target"
        )
    if is_compiled(loss):
        raise BadValue(
            f"{name}: the loss is compiled (torch.compile): give it uncompiled, since it becomes "
            "part of the plan's program"
        )
    plain = not isinstance(batch, Mapping) and not any(
        isinstance(item, tuple | list | Mapping) or item is None for item in batch
    )
    _check_shapes(name, module)
    tensors, nest = (tuple(batch), None) if plain else flatten(batch)
    for number, item in enumerate(() if plain or isinstance(batch, Mapping) else batch):
        if not flatten(item)[0]:
            raise BadValue(
                f"{name} returned a {type(item).__name__} as number {number} of the batch: it "
                "holds no tensor"
            )
    _check_batch(name, tensors)
    more.setdefault("tokens_per_sample", _tokens(tensors))
    return Workload(name=name, module=module, batch=tensors, nest=nest, loss=loss, **more)


def _check_shapes(name: str, module: torch.nn.Module) -> None:
    """Raises BadValue for a parameter or buffer of a lazy module that has seen no input yet."""
    _check_not_compiled(name, module)
    for what, tensor in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise BadValue(
                f"{name}: {what} has no shape yet, since its lazy module has seen no input: call the model once on an example batch "
                "where it is built, or give its layer the number of inputs"
            )


def _check_not_compiled(name: str, module: torch.nn.Module) -> None:
    """Raises BadValue for a module that torch.compile has wrapped, or compiles when it is
    called: it would be traced as compiled."""
    for path, part in module.named_modules():
        if is_compiled(part):
            what = f"its module {path!r}" if path else "the model"
            raise BadValue(
                f"{name}: {what} is compiled (torch.compile): give it uncompiled, since a plan "
                "is a program of its own"
            )


def _tokens(batch: tuple[torch.Tensor, ...]) -> int:
    """Tokens in a sample: the first whole numbers of shape (batch, seq) are read as token ids."""
    first = batch[0]
    return first.shape[1] if first.dim() == 2 and not first.dtype.is_floating_point else 1


def _check_batch(spec: str, batch: tuple[Any, ...]) -> None:
    if not batch:
        raise BadValue(
            f"{spec} returned a batch without tensors: return at least one input and, last, the target"
        )
    for index, tensor in enumerate(batch):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
            got = (
                "a tensor without dims"
                if isinstance(tensor, torch.Tensor)
                else f"a {type(tensor).__name__}"
            )
            raise BadValue(
                f"{spec} returned {got} as number {index} of the batch: each must be a tensor "
                "whose dim 0 is the batch"
            )
    sizes = [tensor.shape[0] for tensor in batch]
    if len(set(sizes)) != 1 or sizes[0] == 0:
        raise BadValue(
            f"{spec} returned a batch whose tensors have dim 0 of {sizes}: they must be equal and at least 1"
        )


def _cast(workload: Workload, dtype: torch.dtype) -> Workload:
    batch = tuple(
        tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in workload.batch
    )
    for _, part in trained_parts(workload.module, workload.loss):
        _cast_module(part, dtype)
    cast_constants(workload.module, workload.loss, dtype)
    return replace(workload, batch=batch)


def _cast_module(root: torch.nn.Module, dtype: torch.dtype) -> None:
    """`root.to(dtype)`, which fails on fake tensors. Tensors stay the objects that they are,
    with all that refers to them: modules that share one, a plain list that ties one."""
    for tensor in (*root.parameters(), *root.buffers()):
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)
