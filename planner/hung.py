"""What hangs on a module's parameters, beside their values: hooks, attributes, and flags.

A gradient hook is a function of the gradient and is traced with the step. Refused by name is what no graph of a step holds: hooks that
run when a gradient has been added to another, hooks on all modules of a process, and hooks that keep something from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import NotTraceable
from planner.torch_private import accumulate_hooks, global_module_hooks, gradient_hooks, hung_attributes, post_accumulate_hooks

__all__ = ["check_hooks", "check_training_mode", "hook_memory", "kept_by_hooks", "same_hung", "turned"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
#: How far what a hook holds is looked through.
_DEPTH = 4


def check_hooks(name: str, module: nn.Module) -> None:
    """Raises NotTraceable, naming the parameter and the hook, for a hook that no graph of a step can hold."""
    for hook in global_module_hooks():
        raise NotTraceable(
            f"model {name!r}: {called(hook)} is a hook of all modules of the process (torch.nn.modules.module): "
            "register it on the modules that it is for"
        )
    for path, parameter in module.named_parameters():
        for hook in post_accumulate_hooks(parameter):
            raise NotTraceable(
                f"model {name!r}: parameter {path!r} has the hook {called(hook)} after its gradient is accumulated, which no plan "
                "runs: change the gradient in a hook of register_hook, and leave updates to the optimizer"
            )
        for hook in accumulate_hooks(parameter):
            raise NotTraceable(
                f"model {name!r}: parameter {path!r} has the hook {called(hook)} on its AccumulateGrad node, which no plan runs: "
                "give it to register_hook of the parameter"
            )


def called(hook: Any) -> str:
    """A hook as its author knows it."""
    name = str(getattr(hook, "__qualname__", "") or type(hook).__qualname__)
    code = getattr(hook, "__code__", None)
    return f"{name} (line {code.co_firstlineno})" if code is not None and name.endswith("<lambda>") else name


def same_hung(one: Tensor, other: Tensor, alike: Callable[[Any, Any], bool]) -> bool:
    """Whether the same hangs on two tensors, as far as that can be told: two hooks never do the same."""
    mine, theirs = hung_attributes(one), hung_attributes(other)
    return not (*gradient_hooks(one), *gradient_hooks(other)) and alike(mine, theirs)


# ------------------------------------------------------------------------------------------------- flags


def turned(before: Mapping[str, bool], module: nn.Module) -> tuple[list[str], list[str]]:
    """The parameters whose `requires_grad` has been turned off, and on."""
    now = {name: p.requires_grad for name, p in module.named_parameters()}
    return [n for n, on in before.items() if on and not now[n]], [n for n, on in before.items() if not on and now[n]]


def check_training_mode(name: str, module: nn.Module) -> None:
    """Raises NotTraceable where `module.train()`, which a training loop may call or not, would make another model of it."""
    if all(type(part).train is nn.Module.train for part in module.modules()):
        return

    def flags() -> dict[str, bool]:
        modes = {f"the mode of {path or 'the model'}": part.training for path, part in module.named_modules()}
        return modes | {f"requires_grad of {path!r}": p.requires_grad for path, p in module.named_parameters()}

    before = flags()
    module.train(module.training)
    changed = [what for what, on in flags().items() if before.get(what) != on]
    if changed:
        raise NotTraceable(
            f"model {name!r}: its own train({module.training}) changes {_first(changed)}: call it where the model is made, so that "
            "it is what is trained"
        )


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


# ------------------------------------------------------------------------------------------------- what hooks keep


def hook_memory(module: nn.Module) -> dict[tuple[str, str, str], Any]:
    """What the gradient hooks of parameters can keep from call to call, by parameter, hook and name: plain values as they are."""
    out = {}
    for path, parameter in module.named_parameters():
        for hook in gradient_hooks(parameter):
            for name, value in _held(hook):
                out[path, called(hook), name] = _fingerprint(value, _DEPTH)
    return out


def kept_by_hooks(before: Mapping[tuple[str, str, str], Any], module: nn.Module) -> str:
    """What a hook has changed since `before`, in words; empty if none has."""
    now = hook_memory(module)
    for (path, hook, name), value in before.items():
        if now.get((path, hook, name), value) != value:
            return f"gradient hook {hook} of parameter {path!r} changes {name!r}"
    return ""


def _held(hook: Any) -> Iterator[tuple[str, Any]]:
    """What a function can see of its own from call to call: closure, defaults, globals that it names, the object it is bound to."""
    if isinstance(hook, MethodType):
        yield from _attributes(hook.__self__)
        hook = hook.__func__
    if isinstance(hook, FunctionType):
        for name, cell in zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True):
            yield name, _contents(cell)
        yield from (hook.__kwdefaults__ or {}).items()
        yield from ((f"default {number}", value) for number, value in enumerate(hook.__defaults__ or ()))
        yield from ((name, hook.__globals__[name]) for name in hook.__code__.co_names if name in hook.__globals__)
    else:
        yield from _attributes(hook)


def _attributes(thing: Any) -> Iterable[tuple[str, Any]]:
    return list(getattr(thing, "__dict__", {}).items())


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _fingerprint(value: Any, depth: int) -> Any:
    """Plain values by value, others by identity; of containers and plain objects what is in them."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if depth == 0 or isinstance(value, nn.Module | ModuleType | FunctionType | type | torch.dtype):
        return id(value)
    if isinstance(value, Mapping):
        return {str(key): _fingerprint(item, depth - 1) for key, item in list(value.items())}
    if isinstance(value, list | tuple | set | frozenset):
        return [_fingerprint(item, depth - 1) for item in list(value)]
    return id(value), {name: _fingerprint(item, depth - 1) for name, item in _attributes(value)}
