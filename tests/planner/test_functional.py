"""Every op of torch's that writes has a twin that gives what it writes, found by schema, or it
is known to have none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

from planner.kernels.functional import is_view_in_place, rewritten, twin_of

aten = torch.ops.aten

#: Ops that write and have no form that does not, by the way that a model's author could meet them;
#: a model that runs one is refused.
WITHOUT = {
    "_compute_linear_combination", "_cummax_helper", "_cummin_helper",
    "_fill_mem_eff_dropout_mask_", "_flash_attention_forward_no_dropout_inplace",
    "_index_put_impl_", "_no_grad_fill_", "_no_grad_normal_", "_no_grad_uniform_", "_no_grad_zero_",
    "_slow_conv2d_backward", "_sobol_engine_ff_", "_sobol_engine_initialize_state_",
    "_sobol_engine_scramble_", "adaptive_avg_pool3d_backward", "alpha_dropout_", "copy_",
    "dropout_", "fbgemm_linear_fp16_weight", "fbgemm_linear_fp16_weight_fp32_activation",
    "feature_alpha_dropout_", "feature_dropout_", "fill_diagonal_",
    "fused_moving_avg_obs_fake_quant", "record_stream", "requires_grad_", "resize", "resize_",
    "resize_as", "resize_as_", "resize_as_sparse", "resize_as_sparse_", "retain_grad", "set",
    "set_", "set_data",
}  # fmt: skip


_TENSORS = {"Tensor", "Optional[Tensor]", "List[Tensor]"}
_OF_PYTHON_LISTS = ("aten.sort.Tensor", "aten.remove.Tensor")


def writers() -> list[OpOverload]:
    """Every overload of aten that writes to a tensor."""
    found = []
    for schema in torch._C._jit_get_all_schemas():
        written = {str(a.real_type) for a in schema.arguments if _writes(a)}
        if schema.name.startswith("aten::") and written and written <= _TENSORS:
            packet = getattr(aten, schema.name.removeprefix("aten::"))
            found.append(getattr(packet, schema.overload_name or "default"))
    return sorted((op for op in found if str(op) not in _OF_PYTHON_LISTS), key=str)


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _types(arguments: Any, names: set[str] | None = None) -> dict[str, str]:
    return {a.name: str(a.real_type) for a in arguments if names is None or a.name in names}


def test_every_op_that_writes_has_a_twin_with_its_arguments_or_is_known_to_have_none() -> None:
    ops = writers()
    assert len(ops) > 1000
    without: set[str] = set()
    for op in ops:
        twin = twin_of(op)
        if twin is None:
            without.add(op._schema.name.removeprefix("aten::"))
            continue
        given = _types(op._schema.arguments)
        taken = _types(twin.op._schema.arguments)
        outs = {a.name for a in op._schema.arguments if a.kwarg_only and _writes(a)}
        assert not twin.op._schema.is_mutable, op
        assert {name: kind for name, kind in taken.items() if name in given} == {
            name: kind for name, kind in given.items() if name not in outs
        }, op
        assert set(taken) - set(given) <= {"dtype", "layout", "device", "pin_memory"}, op
        fresh = [r for r in op._schema.returns if r.alias_info is None]
        assert len(twin.op._schema.returns) == len(fresh) + len(twin.written), op
    assert without == WITHOUT


# ---------------------------------------------------------------------------------- what twins give

#: Numbers for an argument, by its type: each op is tried with the first, then with the second, and
#: so on.
_FILLS: dict[str, tuple[Any, ...]] = {
    "int": (1, 0, 1, 1, 2, 1),
    "float": (0.5, 0.5, 0.5, 0.5, 0.25, 0.5),
    "bool": (False, False, False, False, True, False),
    "number": (0.5, 0.5, 2, 1, 0.25, 1),
    "List[int]": ([1], [0], [1], [4, 4], [2, 2], [1, 1]),
    "str": ("sum", "mean", "sum", "amax", "none", "sum"),
}
_TRIES = 6


def _tensor(attempt: int, position: int) -> Tensor:
    generator = torch.Generator().manual_seed(position + 1)
    shape = ((4, 4), (4,), (4, 4), (4, 4), (2, 4, 4), (1, 2, 4, 4))[attempt]
    if attempt in (2, 3) and position > attempt - 2:
        return torch.randint(0, 4, shape, generator=generator)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1


def _arguments(op: OpOverload, attempt: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for position, argument in enumerate(op._schema.arguments):
        kind = str(argument.real_type)
        if argument.has_default_value() and not _writes(argument) and "Tensor" not in kind:
            out[argument.name] = argument.default_value
        elif "Tensor" in kind:
            lists = kind.startswith("List") or "List[" in kind
            out[argument.name] = (
                [_tensor(attempt, position), _tensor(attempt, position + 9)]
                if lists
                else _tensor(attempt, position)
            )
        elif kind.startswith("Optional"):
            out[argument.name] = None
        elif kind in _FILLS:
            out[argument.name] = _FILLS[kind][attempt]
        else:
            return {}
    return out


def _cloned(value: Any) -> Any:
    if isinstance(value, list):
        return [_cloned(item) for item in value]
    return value.clone() if isinstance(value, Tensor) else value


def _outcome(
    op: OpOverload, arguments: dict[str, Any], functional: bool
) -> tuple[Any, dict[str, Any]] | None:
    """What a call returns and what is in its arguments after it; None where it is no call."""
    given = {name: _cloned(value) for name, value in arguments.items()}
    torch.manual_seed(0)
    try:
        out = rewritten(op, **given) if functional else op(**given)
    except Exception:  # noqa: BLE001 -- whatever an op has against random arguments
        return None
    return out, {name: value for name, value in given.items() if isinstance(value, Tensor | list)}


def _outs_that_fit(op: OpOverload, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with destinations of the size and dtype that the op makes of them."""
    outs = [a.name for a in op._schema.arguments if a.kwarg_only and _writes(a)]
    if not outs:
        return arguments
    for dtypes in itertools.product(
        (torch.float64, torch.int64, torch.bool), repeat=min(len(outs), 2)
    ):
        empty = {
            name: torch.empty(0, dtype=dtypes[min(at, len(dtypes) - 1)])
            for at, name in enumerate(outs)
        }
        tried = {
            name: [new.clone() for _ in v] if isinstance(v := arguments[name], list) else new
            for name, new in empty.items()
        }
        made = _outcome(op, {**arguments, **tried}, functional=False)
        if made is not None:
            return {**arguments, **{name: made[1][name] for name in outs}}
    return arguments


def _tried(op: OpOverload) -> Iterator[tuple[Any, Any]]:
    for attempt in range(_TRIES):
        arguments = _arguments(op, attempt)
        if arguments:
            arguments = _outs_that_fit(op, arguments)
            eager = _outcome(op, arguments, functional=False)
            if eager is not None:
                yield eager, _outcome(op, arguments, functional=True)


#: Ops that are not run: of other devices, that take what they are given as it is, that give what
#: nothing wrote, or that leave `out` in another shape than that of what they return.
_NOT_RUN = (
    "empty",
    "mkldnn",
    "miopen",
    "cudnn",
    "sparse",
    "quantize",
    "backward",
    "slow_conv",
    "binary_cross_entropy",
)


def _is_run(op: OpOverload) -> bool:
    name = op._schema.name.removeprefix("aten::")
    public = not name.startswith("_") or name.startswith(("_foreach", "__"))
    return (
        public
        and twin_of(op) is not None
        and not is_view_in_place(op)
        and not any(word in name for word in _NOT_RUN)
    )


@pytest.mark.filterwarnings("ignore")
def test_twins_give_what_is_written() -> None:
    """As many overloads as can be called on small tensors of random numbers: returned and
    written, dtype for dtype."""
    compared: set[str] = set()
    with torch.no_grad():
        for op in filter(_is_run, writers()):
            for eager, ours in _tried(op):
                assert ours is not None, op
                torch.testing.assert_close(ours, eager, equal_nan=True, rtol=1e-12, atol=1e-12)
                compared.add(str(op))
                break
    assert len(compared) > 700
    assert {
        "aten.pow_.Scalar",
        "aten.max.dim_max",
        "aten.ge_.Scalar",
        "aten.polygamma_.default",
        "aten._foreach_add_.Scalar",
    } <= compared
