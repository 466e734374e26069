"""The fields of a workload for the optimizer of a compiled Keras model: our name for it, and its
settings.

Features that training by a plan would leave out (moving averages, loss scales) are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cost_models.errors import BadValue

__all__ = ["optimizer_of"]

#: The settings that are handed on, by Keras's class.
_SETTINGS = {
    "Adam": ("beta_1", "beta_2", "epsilon"),
    "AdamW": ("beta_1", "beta_2", "epsilon"),
    "Nadam": ("beta_1", "beta_2", "epsilon"),
    "SGD": ("momentum", "nesterov"),
    "RMSprop": ("rho", "momentum", "epsilon"),
    "Adagrad": ("initial_accumulator_value", "epsilon"),
}
_REFUSED = ("use_ema", "loss_scale_factor", "gradient_accumulation_steps", "clipnorm")


def optimizer_of(spec: str, model: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """The fields of a workload that the model's optimizer decides; `names` are the variables' by
    their id.

    Raises BadValue for another optimizer, for one that has made steps, and for settings that are
    not planned.
    """
    optimizer, kind = model.optimizer, type(model.optimizer).__name__
    if kind not in _SETTINGS or not type(optimizer).__module__.startswith("keras."):
        raise BadValue(
            f"{spec}: the optimizer {kind} is not supported; compile with one of "
            f"{', '.join(_SETTINGS)}"
        )
    for key in _REFUSED:
        if getattr(optimizer, key):
            raise BadValue(
                f"{spec}: {kind} with {key}={getattr(optimizer, key)} is not supported; leave it "
                "out"
            )
    if int(optimizer.iterations):
        raise BadValue(
            f"{spec}: the optimizer has made {int(optimizer.iterations)} steps already: compile "
            "the model again"
        )
    settings = {key: getattr(optimizer, key) for key in _SETTINGS[kind]}
    if optimizer.clipvalue:
        settings["clipvalue"] = optimizer.clipvalue
    if optimizer.weight_decay:
        settings["weight_decay"] = optimizer.weight_decay
        # There is no public getter for the variables that are excluded.
        kept = [v for v in model.trainable_variables if not optimizer._use_weight_decay(v)]
        settings["excluded"] = tuple(names[id(variable)] for variable in kept)
    schedule = _schedule(spec, optimizer)
    if schedule is not None:
        settings["schedule"] = schedule
    _check_constraints(spec, model, names)
    return {
        "optimizer": _name(optimizer, kind),
        "learning_rate": float(optimizer.learning_rate),
        "clip_norm": optimizer.global_clipnorm,
        "clip_epsilon": 0.0,
        "optimizer_settings": settings,
    }


def _name(optimizer: Any, kind: str) -> str:
    """The name of ours, which says how many tensors of state there are."""
    parts = ["keras", "adam" if kind == "AdamW" else kind.lower()]
    parts += [word for word in ("amsgrad", "centered") if getattr(optimizer, word, False)]
    return "-".join(parts + (["momentum"] if getattr(optimizer, "momentum", 0.0) else []))


def _schedule(spec: str, optimizer: Any) -> Callable[[int], float] | None:
    """The learning rate as a function of the iteration; None if it is a number."""
    import keras

    rate = optimizer._learning_rate  # the property gives the number of now
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):

        def of(iteration: int) -> float:
            with keras.device("cpu"):
                return float(rate(iteration))

        return of
    if not isinstance(rate, keras.Variable):
        raise BadValue(
            f"{spec}: the learning rate is a {type(rate).__name__}: give a number or a LearningRateSchedule"
        )
    return None


def _check_constraints(spec: str, model: Any, names: Mapping[int, str]) -> None:
    for variable in model.trainable_variables:
        if variable.constraint is not None:
            kind = type(variable.constraint).__name__
            raise BadValue(
                f"{spec}: the constraint {kind} of {names[id(variable)]} is not supported; leave "
                "it out"
            )
