"""The module around a Hugging Face model: tensors in, logits out; and the loss of a head."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cost_models.errors import BadValue
from planner.state.known import Known, is_known
from planner.torch_private.fake_tensors import fake_copies, is_fake
from planner.torch_private.trees import tree_leaves

__all__ = [
    "Headed",
    "head_loss",
    "make_fake",
    "register_experts",
    "regression_loss",
    "static_experts",
]


def head_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the last dim of logits."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))


def regression_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(outputs, target)


class Headed(nn.Module):
    """Logits (or the first output) of a Hugging Face model for tensors given in the order of
    `names`."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        _register_tensors(model)
        self.model = model
        self.names = tuple(names)
        self.extra = {"use_cache": False} if _takes(model, "use_cache") else {}
        if _takes(model, "return_dict"):
            self.extra["return_dict"] = True
        self._caches = _caches(model)
        self.unpadded = False

    def forward(self, *inputs: Tensor) -> Tensor:
        for cached in self._caches:
            cached.cache_clear()
        given = dict(zip(self.names, inputs, strict=True))
        with _as_run(), _doubles(next(self.parameters()).dtype):
            found = self.model(
                **given, **(self._said(given) if self.unpadded else {}), **self.extra
            )
        return _first_output(found)

    def _said(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """The masks that say that no sample is padded, for a model that else looks for padding in
        the ids and branches on it."""
        out: dict[str, Tensor] = {}
        for ids, mask in (
            ("input_ids", "attention_mask"),
            ("decoder_input_ids", "decoder_attention_mask"),
        ):
            if ids in given and mask not in given and _takes(self.model, mask):
                out[mask] = torch.ones(given[ids].shape, dtype=torch.int64)
        if "input_ids" in given and _takes(self.model, "lengths"):
            batch, seq = given["input_ids"].shape
            out["lengths"] = torch.full((batch,), seq)
        return out

    def freeze_unused(self, inputs: Sequence[Tensor]) -> tuple[tuple[int, ...], torch.dtype]:
        """Freezes the parameters that take no part in the output (on tensors without memory);
        its shape and dtype."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        with fake_copies([*tensors.values(), *inputs]) as copies, Known():
            state = dict(zip(tensors, copies, strict=False))
            output = torch.func.functional_call(self, state, tuple(copies[len(tensors) :]))
            grads = torch.autograd.grad(
                output.sum(), [state[name] for name in trained], allow_unused=True
            )
            if any(state[name].grad is not None for name in trained):
                raise BadValue(
                    f"the backward pass of {type(self.model).__name__} adds to the gradients "
                    "itself (torch.autograd.backward in an autograd.Function), so that no graph "
                    "holds them: it cannot be planned"
                )
        for name, grad in zip(trained, grads, strict=True):
            if grad is None:
                self.get_parameter(name).requires_grad_(False)
        assert is_fake(output)
        return tuple(output.shape), output.dtype


def _register_tensors(model: nn.Module) -> None:
    """Makes buffers of tensors that modules keep as plain attributes, such as tables of
    positions."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                delattr(module, name)
                module.register_buffer(name, value, persistent=False)


def make_fake(model: nn.Module) -> None:
    """Replaces the parameters and buffers of a model that was built with memory by fake ones of
    the mode that is on."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in holders:
            for name, tensor in held.items():
                if tensor is not None and tensor not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = tensor.requires_grad
                    made[tensor] = (
                        nn.Parameter(fake, trained) if isinstance(tensor, nn.Parameter) else fake
                    )
                if tensor is not None:
                    held[name] = made[tensor]


def _caches(model: nn.Module) -> list[Any]:
    """Cached functions in the modules of the model's classes: they must be cleared, since a tensor
    of one trace must not appear in another, nor in a run."""
    sources = {sys.modules[type(module).__module__] for module in model.modules()}
    things = [thing for source in sources for thing in vars(source).values() if callable(thing)]
    inside = [
        cell.cell_contents for thing in things for cell in getattr(thing, "__closure__", None) or ()
    ]
    return [thing for thing in (*things, *inside) if hasattr(thing, "cache_clear")]


def _takes(model: Any, name: str) -> bool:
    import inspect

    parameters = inspect.signature(model.forward).parameters
    return name in parameters


def _first_output(found: Any) -> Tensor:
    for name in (
        "logits",
        "predicted_depth",
        "reconstruction",
        "last_hidden_state",
        "start_logits",
    ):
        value = getattr(found, name, None)
        if isinstance(value, Tensor):
            return value
    tensors = [
        t for t in tree_leaves(tuple(found.values())) if isinstance(t, Tensor) and t.requires_grad
    ]
    if not tensors:
        raise BadValue(
            f"{type(found).__name__} that the model returns holds no tensor that depends on its "
            "parameters"
        )
    return tensors[0]


@contextmanager
def _as_run() -> Iterator[None]:
    """A context in which transformers counts a tensor as fake only if no branch can be taken on it.
    It drops a mask that masks nothing, unless the tensors are fake; so a trace could differ from a
    run (PaliGemma attends to all tokens in a run, but only to earlier ones in a trace)."""
    from transformers.utils import import_utils

    with patch.object(
        import_utils, "is_fake_tensor", lambda x: isinstance(x, Tensor) and not is_known(x)
    ):
        yield


@contextmanager
def _doubles(dtype: torch.dtype) -> Iterator[None]:
    """A context for a model in float64: computations that it does in float32 for safety (a norm, a
    softmax, positions) are done in float64 too."""
    with (
        patch.object(nn.Module, "to", _to),
        _Doubles() if dtype == torch.float64 else nullcontext(),
    ):
        yield


class _Doubles(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0].double()
        # The lowest double is out of float32's range.
        if func in (torch.tensor, torch.full) and isinstance(args[-1], float):
            kwargs = {"dtype": torch.float64, **kwargs}
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


_MODULE_TO = nn.Module.to


def _to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`module.to(torch.float32)` inside a forward pass, which gives every parameter anew, where
    they are float32 already; doubles stay what they are."""
    has, wanted = (
        {p.dtype for p in module.parameters()},
        [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)],
    )
    if has == set(wanted) or (has == {torch.float64} and wanted == [torch.float32]):
        return module
    return _MODULE_TO(module, *args, **kwargs)


def register_experts() -> None:
    """Registers our implementation of experts in transformers: shapes do not depend on the
    routing."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS["shardwright"] = _experts


def _experts(self: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Every expert on every token, weighted by the router: exact, static, and split over experts or
    inside each.

    It does experts / top-k times the products of a dispatch; the built-in `moe` has the dispatch
    with a capacity.
    """
    gate: Tensor = torch.zeros(
        hidden.shape[0], self.num_experts, dtype=weights.dtype, device=hidden.device
    )
    gate = gate.scatter_add(1, index, weights)
    wide = hidden.unsqueeze(0).expand(self.num_experts, *hidden.shape)
    first = self.gate_up_proj if self.has_gate else self.up_proj
    inner = _linear(self, wide, first, "gate_up_proj_bias" if self.has_gate else "up_proj_bias")
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    out = _linear(self, inner, self.down_proj, "down_proj_bias")
    if self.has_post_expert_norm:
        out = self.post_expert_norm(out)
    return (out * gate.t().unsqueeze(-1)).sum(0).to(hidden.dtype)


def static_experts(model: nn.Module) -> None:
    """Uses our implementation also in modules that hold experts one by one (`expert_0`, `expert_1`,
    ...)."""
    for module in model.modules():
        names = [name for name in module._modules if name.startswith("expert_")]
        if (
            isinstance(module, nn.ModuleDict)
            and names
            and names == [f"expert_{i}" for i in range(len(names))]
        ):
            module.forward = partial(_experts_one_by_one, module)


def _experts_one_by_one(self: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Every expert on every token; `chosen` are the experts of a token, [tokens, k], or ones for
    those, [tokens, k, experts]."""
    experts = [expert for name, expert in self.items() if name.startswith("expert_")]
    taken = chosen if chosen.dim() == 3 else F.one_hot(chosen, len(experts))
    gate = (taken * weights.unsqueeze(-1)).sum(1)
    outs = [expert(hidden) * gate[:, i, None] for i, expert in enumerate(experts)]
    if getattr(self, "moe_token_dropout", 0.0) > 0:
        outs = [self.token_dropout(out) for out in outs]
    return torch.stack(outs).sum(0).to(hidden.dtype)


def _linear(self: Any, x: Tensor, weight: Tensor, bias: str) -> Tensor:
    """x [experts, tokens, in] by each expert's weight, [in, out] where `is_transposed`, else
    [out, in]."""
    out = torch.bmm(x, weight if self.is_transposed else weight.transpose(1, 2))
    return out + getattr(self, bias).unsqueeze(1) if self.has_bias else out


#: A head's loss: (logits, target) -> scalar.
Loss = Callable[[Tensor, Tensor], Tensor]
