"""The optimizers that a plan may name: one table, for costing and for running.

A name implies a class and the settings that decide how much state it keeps: `sgd` with momentum is
`sgd-momentum`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cost_models.errors import BadValue, unknown_name

__all__ = ["OPTIMIZERS", "SETTINGS", "Optimizer", "check_settings", "named", "optimizer_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """`kind` is torch's class, or Keras's if `keras`; `implied` are the settings that the name
    implies. `states` is the number of tensors of a parameter's shape and dtype that it keeps,
    `step_bytes` the bytes of a step counter per parameter."""

    kind: str
    states: int
    step_bytes: int = 0
    keras: bool = False
    implied: Mapping[str, Any] = field(default_factory=dict)


#: Sources: torch.optim Adam, AdamW and SGD `_init_group` (`exp_avg`, `exp_avg_sq`, `max_exp_avg_sq`
#: with amsgrad, a float32 `step`; `momentum_buffer`); keras/src/optimizers/*.py `build`, which
#: count their steps in Python.
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(kind="Adam", states=2, step_bytes=4),
    "adam-amsgrad": Optimizer(kind="Adam", states=3, step_bytes=4, implied={"amsgrad": True}),
    "adamw": Optimizer(kind="AdamW", states=2, step_bytes=4),
    "adamw-amsgrad": Optimizer(kind="AdamW", states=3, step_bytes=4, implied={"amsgrad": True}),
    "sgd": Optimizer(kind="SGD", states=0),
    "sgd-momentum": Optimizer(kind="SGD", states=1, implied={"momentum": 0.9}),
    "keras-adam": Optimizer(kind="Adam", states=2, keras=True),
    "keras-adam-amsgrad": Optimizer(kind="Adam", states=3, keras=True, implied={"amsgrad": True}),
    "keras-nadam": Optimizer(kind="Nadam", states=2, keras=True),
    "keras-sgd": Optimizer(kind="SGD", states=0, keras=True),
    "keras-sgd-momentum": Optimizer(kind="SGD", states=1, keras=True, implied={"momentum": 0.9}),
    "keras-rmsprop": Optimizer(kind="RMSprop", states=1, keras=True),
    "keras-rmsprop-momentum": Optimizer(
        kind="RMSprop", states=2, keras=True, implied={"momentum": 0.9}
    ),
    "keras-rmsprop-centered": Optimizer(
        kind="RMSprop", states=2, keras=True, implied={"centered": True}
    ),
    "keras-rmsprop-centered-momentum": Optimizer(
        kind="RMSprop", states=3, keras=True, implied={"centered": True, "momentum": 0.9}
    ),
    "keras-adagrad": Optimizer(kind="Adagrad", states=1, keras=True),
}

_ADAM = ("betas", "eps", "weight_decay", "amsgrad", "maximize")
#: The settings of torch's classes, beside the learning rate, that a user may give.
SETTINGS: dict[str, tuple[str, ...]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": ("momentum", "dampening", "nesterov", "weight_decay", "maximize"),
}

#: Settings that add to the state, and the word for each in a name.
_STATEFUL = {"amsgrad": "amsgrad", "momentum": "momentum"}


def optimizer_of(name: str) -> Optimizer:
    """The optimizer of that name. Raises `UnknownName` for any other name."""
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, list(OPTIMIZERS))
    return OPTIMIZERS[name]


def named(name: str, *settings: Mapping[str, Any]) -> str:
    """The name that includes how much state torch's optimizer `name` keeps under the `settings` of
    all groups of parameters."""
    base = name.partition("-")[0]
    own = optimizer_of(name).implied
    words = [
        word
        for key, word in _STATEFUL.items()
        if any(given.get(key, own.get(key)) for given in settings or ({},))
    ]
    return "-".join([base, *(word for word in words if f"{base}-{word}" in OPTIMIZERS)])


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raises `BadValue` for a setting that torch's optimizer `name` does not take, or a value
    that it cannot have."""
    optimizer = optimizer_of(name)
    if optimizer.keras:
        raise BadValue(
            f"--optimizer {name}: Keras optimizers are for Keras models only; give adam, adamw, "
            "sgd or sgd-momentum"
        )
    for key, value in settings.items():
        if key not in SETTINGS[optimizer.kind]:
            takes = ", ".join(SETTINGS[optimizer.kind])
            raise BadValue(f"optimizer {name!r} takes no {key} ({key}={value}): it takes {takes}")
        _check_value(key, value)


def _check_value(key: str, value: Any) -> None:
    if key == "betas":
        if not (
            isinstance(value, tuple | list)
            and len(value) == 2
            and all(_is_number(b) and 0 <= b < 1 for b in value)
        ):
            raise BadValue(
                f"betas {value}: give two numbers from 0 up to, but not including, 1, as in 0.9,0.95"
            )
    elif key in ("amsgrad", "maximize", "nesterov"):
        if not isinstance(value, bool):
            raise BadValue(f"{key} {value}: give true or false")
    elif not (_is_number(value) and 0 <= value < float("inf")):
        raise BadValue(f"{key.replace('_', ' ')} {value}: give a number of at least 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
