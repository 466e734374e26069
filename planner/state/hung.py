"""Hooks, attributes and flags that hang on a module's parameters.

A gradient hook is traced with the step, and its state is checked like that of the model's own code
(`reachable.py`). Hooks that no graph of a step can hold are refused by name: those that run after a
gradient has been accumulated, and those on all modules of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from cost_models.errors import NotTraceable
from planner.torch_private.fake_tensors import hung_attributes
from planner.torch_private.hooks import (
    accumulate_hooks,
    global_module_hooks,
    gradient_hooks,
    post_accumulate_hooks,
)

__all__ = ["check_hooks", "check_training_mode", "same_hung", "turned"]


def check_hooks(name: str, module: nn.Module) -> None:
    """Raises NotTraceable, naming the parameter and the hook, for a hook that no graph of a step
    can hold."""
    for hook in global_module_hooks():
        raise NotTraceable(
            f"model {name!r}: {called(hook)} is a global hook on all modules "
            "(torch.nn.modules.module): register it on the modules that need it"
        )
    named = dict(module.named_parameters())
    for (path, parameter), accumulating in zip(
        named.items(), accumulate_hooks(list(named.values())), strict=True
    ):
        for hook in post_accumulate_hooks(parameter):
            raise NotTraceable(
                f"model {name!r}: parameter {path!r} has the hook {called(hook)} after its "
                "gradient is accumulated, which a plan does not run: change the gradient in a "
                "hook of register_hook, and leave updates to the optimizer"
            )
        for hook in accumulating:
            raise NotTraceable(
                f"model {name!r}: parameter {path!r} has the hook {called(hook)} on its "
                "AccumulateGrad node, which a plan does not run: pass it to register_hook of "
                "the parameter"
            )


def called(hook: Any) -> str:
    """A hook's name, as its author knows it."""
    name = str(getattr(hook, "__qualname__", "") or type(hook).__qualname__)
    code = getattr(hook, "__code__", None)
    return (
        f"{name} (line {code.co_firstlineno})"
        if code is not None and name.endswith("<lambda>")
        else name
    )


def same_hung(one: Tensor, other: Tensor, alike: Callable[[Any, Any], bool]) -> bool:
    """Whether two tensors have the same attributes and no hooks: two hooks are never known to do
    the same."""
    mine, theirs = hung_attributes(one), hung_attributes(other)
    return not (*gradient_hooks(one), *gradient_hooks(other)) and alike(mine, theirs)


# -------------------------------------------------------------------------------------------- flags


def turned(before: Mapping[str, bool], module: nn.Module) -> tuple[list[str], list[str]]:
    """The parameters whose `requires_grad` has been turned off, and on."""
    now = {name: p.requires_grad for name, p in module.named_parameters()}
    return [n for n, on in before.items() if on and not now[n]], [
        n for n, on in before.items() if not on and now[n]
    ]


def check_training_mode(name: str, module: nn.Module) -> None:
    """Raises NotTraceable if `module.train()`, which a training loop may or may not call, would
    change what the model computes."""
    if all(type(part).train is nn.Module.train for part in module.modules()):
        return

    def flags() -> dict[str, bool]:
        modes = {
            f"the mode of {path or 'the model'}": part.training
            for path, part in module.named_modules()
        }
        return modes | {
            f"requires_grad of {path!r}": p.requires_grad for path, p in module.named_parameters()
        }

    before = flags()
    module.train(module.training)
    changed = [what for what, on in flags().items() if before.get(what) != on]
    if changed:
        raise NotTraceable(
            f"model {name!r}: its own train({module.training}) changes {_first(changed)}: call "
            "it where the model is built, so that the changed model is trained"
        )


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
