"""Fused ops as compiled kernels: they give what their ops give one by one, and need a compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import runtime.fused
from cost_models.cluster import load_cluster
from cost_models.errors import RunFailed
from planner.fusion.fusible import NORMS
from planner.graph.fused import FUSED, body_of
from planner.kernels import drop_hashes, step_key
from planner.kernels.formulas import FORMULAS
from planner.predict.predict import memory_by_category
from planner.program.operators import bare
from planner.program.program import Compute, Program
from planner.search.search import search
from planner.torch_private.compiling import missing_compiler
from planner.workload.ask import Ask
from planner.workload.ask import build as build_workload
from planner.workload.precision import precision_of
from runtime.executor import Executor, gather_parameters
from runtime.loss_scale import LossScale
from runtime.parameters import build
from runtime.reference import reference_run
from runtime.verify import compare

needs_compiler = pytest.mark.skipif(
    bool(missing_compiler(torch.device("cpu"))), reason="no C++ compiler"
)


class Block(nn.Module):
    """A gate, a norm and a rotation: every kind of member in few kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(24, 32, bias=False), nn.Linear(24, 32, bias=False)
        self.norm = nn.RMSNorm(32, eps=1e-5)
        self.down = nn.Linear(32, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        one, other = up.split(16, -1)
        out: Tensor = self.down(self.norm(F.silu(gate) * up + torch.cat((-other, one), -1)))
        return out


def make_block() -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    return Block(), (torch.randn(256, 24), torch.randn(256, 24)), F.mse_loss


def asked(precision: str = "fp64") -> Ask:
    return Ask(
        model=f"{__file__}:make_block",
        batch=None,
        seq=None,
        settings={},
        num_devices=1,
        compile=True,
        **precision_of(precision).fields(),
    )


def planned(precision: str = "fp64") -> Program:
    return search(asked(precision), load_cluster("cpu", num_devices=1)).program


def fused_ops(program: Program) -> list[Compute]:
    return [i for i in program.instructions if isinstance(i, Compute) and i.op == FUSED]


@needs_compiler
def test_compiled_kernels_train_as_plain_torch() -> None:
    """Loss, gradients and parameters of two steps, float64; and the kernels hold what is predicted.
    Warming compiles every kernel, and changes nothing."""
    program = planned()
    bodies = {body_of(one.args) for one in fused_ops(program)}
    members = {member.op for body in bodies for member in body.members}
    assert {"aten.silu.default", "aten.cat.default", NORMS[0]} <= members
    workload = build(lambda: build_workload(asked()), 0)
    executor = Executor(program, workload, keep_gradients=True)
    executor.warm(executor.local_batch(workload.batch))
    assert [len(kernel.by_strides) for kernel in executor.kernels.values()] == [1] * len(bodies)
    losses = [executor.step(workload.batch)]
    gradients = executor.gradients
    losses.append(executor.step(workload.batch))
    assert [len(kernel.by_strides) for kernel in executor.kernels.values()] == [1] * len(bodies)
    reference = reference_run(lambda: build_workload(asked()), program, seed=0, num_steps=2)
    errors = compare(losses, gradients, gather_parameters(executor), reference)
    assert max(errors.loss_error, errors.gradient_error, errors.parameter_error) < 1e-9
    executor.recorded_step(workload.batch)
    predicted = sum(memory_by_category(program).values())
    assert predicted == pytest.approx(executor.peak_memory_bytes, rel=0.03)


@pytest.mark.parametrize("precision", ["fp64", "fp16-mixed"])
def test_warming_changes_nothing(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, the number of the step and the scale of the loss stay; the first step is that of
    an executor that was not warmed."""
    monkeypatch.setattr(runtime.fused, "compiled_kernel", lambda function, operands: function)
    program, losses = planned(precision), []
    for warm in (False, True):
        workload = build(lambda: build_workload(asked(precision)), 0)
        executor = Executor(program, workload)
        local = executor.local_batch(workload.batch)
        if warm:
            before = {name: t.clone() for name, t in executor.parameter_shards().items()}
            executor.warm(local)
            after = executor.parameter_shards()
            assert executor.num_steps == 0
            if executor.loss_scale is not None:
                assert vars(executor.loss_scale) == vars(LossScale())
            assert all(torch.equal(before[name], after[name]) for name in before)
        losses.append([executor.step_local(local) for _ in range(2)])
    assert losses[0] == losses[1]


def test_without_a_compiler_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = planned()
    monkeypatch.setattr(runtime.fused, "missing_compiler", lambda device: "a C++ compiler (g++)")
    with pytest.raises(RunFailed) as refused:
        Executor(program, build(lambda: build_workload(asked()), 0))
    assert str(refused.value) == (
        "the plan runs compiled kernels (--compile), which need a C++ compiler (g++) on this "
        "machine: install it, or plan again without --compile"
    )


def test_results_of_a_kernel_share_no_memory() -> None:
    """A compiler may return one tensor twice, or an operand; a collective may then overwrite a value
    that is still read."""
    x = torch.ones(3)
    assert runtime.fused.share_memory([x, x.view(3)], [])
    assert runtime.fused.share_memory([x[:1]], [x])
    assert not runtime.fused.share_memory([x + 1, x + 2], [x, x])


def _norm_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    x, weight = torch.randn(6, 8).to(dtype), torch.randn(8).to(dtype)
    return x, weight, 1, 8, 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_formulas_are_our_kernels(dtype: torch.dtype) -> None:
    """What the compiler is given is what the kernel of the same name computes."""
    torch.manual_seed(0)
    x, weight, dims, count, eps = _norm_arguments(dtype)
    grad = torch.randn(6, 8).to(dtype)
    (_, rstd) = bare("shardwright.rms_norm")(x, weight, dims, count, eps)
    pieces = (torch.randn(2, 3).to(dtype), torch.randn(2, 1).to(dtype), torch.randn(2, 2).to(dtype))
    calls: dict[str, list[tuple[Any, ...]]] = {
        "shardwright.rms_norm": [(x, weight, dims, count, eps), (x, None, dims, count, eps)],
        "shardwright.rms_norm_backward": [(grad, x, weight, rstd, dims, count)],
        "shardwright.dropout_backward": [(grad, torch.rand(6, 8) < 0.5, 0.25)],
        "shardwright.drop_by": [(x, *drop_hashes(step_key(1, 2), (6, 8), 3), 0.25)],
        "shardwright.reshape": [(x, [3, 16])],
        "aten.cat.default": [([*pieces], 1), ([*pieces], -1), ([x.int(), x.int()], 0)],
        "aten.slice_backward.default": [
            (grad, [6, 20], 1, 5, 13, 1),
            (grad, [6, 8], 1, 0, 2**63 - 1, 1),
            (grad, [6, 16], 1, 0, 16, 2),
        ],
    }
    assert calls.keys() == FORMULAS.keys()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    for op, several in calls.items():
        for arguments in several:
            made, wanted = FORMULAS[op](*arguments), bare(op)(*arguments)
            torch.testing.assert_close(made, wanted, rtol=tolerance, atol=tolerance)
