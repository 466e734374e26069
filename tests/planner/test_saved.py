"""A module as a file: what pickle cannot do by itself comes back as it was, or is refused by its
name."""

from __future__ import annotations

import enum
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from cost_models.errors import BadValue, NotTraceable
from planner import api, plan
from planner.plans.retrace import may_follow_a_set
from planner.state.hash_seed import environment
from planner.torch_private.fake_tensors import FakeTensorMode
from planner.torch_private.hooks import gradient_hooks
from planner.trace.trace import trace
from planner.workload.load import load_workload
from planner.workload.saved import read_saved, write_saved

BATCH = torch.randn(8, 4), torch.randn(8, 4)


def again(module: nn.Module, folder: Path, loss: Any = nn.functional.mse_loss) -> Any:
    return read_saved(write_saved(folder / "model.pt", module, BATCH, loss, {}))


class Plain(nn.Module):
    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin(x)
        return out


def test_what_no_process_can_import_goes_by_value(tmp_path: Path) -> None:
    class Way(enum.Enum):
        UP = 1

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.act, self.way, self.me = (
                nn.Linear(4, 4),
                lambda x: 2 * x,
                Way.UP,
                weakref.ref(self),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(self.lin(x))
            return out if self.way is Way.UP else x

    module = Local()
    found = again(module, tmp_path, loss=lambda y, t: (y - t).abs().mean())
    made = found["module"]
    assert made.me() is made
    torch.testing.assert_close(made(BATCH[0]), module(BATCH[0]))
    code = f"""
import torch
held = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
print(held["loss"](held["module"](held["batch"][0]), held["batch"][1]).item())
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert float(told) == pytest.approx(found["loss"](module(BATCH[0]), BATCH[1]).item(), rel=1e-5)


class Adding(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight - 1


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda lin: parametrize.register_parametrization(lin, "weight", Adding()),
    ],
)
def test_parametrized_modules(change: Any, tmp_path: Path) -> None:
    module = Plain()
    change(module.lin)
    made = again(module.eval(), tmp_path)["module"]
    assert parametrize.is_parametrized(made.lin) and isinstance(made.lin, nn.Linear)
    assert made.state_dict().keys() == module.state_dict().keys()
    torch.testing.assert_close(made(BATCH[0]), module(BATCH[0]))
    parametrize.remove_parametrizations(made.lin, "weight")
    assert type(made.lin) is nn.Linear


def test_a_parametrized_recurrent_layer(tmp_path: Path) -> None:
    """It has weak references of its own, which its class leaves out."""
    module = parametrize.register_parametrization(nn.GRU(4, 4), "weight_hh_l0", Adding())
    made = again(module, tmp_path)["module"]
    torch.testing.assert_close(made(BATCH[0])[0], module(BATCH[0])[0])


class Masked(Plain):
    """The hook is a method: it holds the module, which holds the parameter, which holds the
    hook."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 1.0, 1.0]))
        self.lin.weight.register_hook(self.only)
        self.lin.weight.register_hook(lambda g: 3 * g)
        self.lin.weight.rate = 0.5  # type: ignore[attr-defined]

    def only(self, gradient: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        return gradient * self.mask


def test_gradient_hooks_and_attributes(tmp_path: Path) -> None:
    module = Masked()
    made = again(module, tmp_path)["module"]
    assert made.lin.weight.rate == 0.5
    for one in (module, made):
        one(BATCH[0]).sum().backward()
    torch.testing.assert_close(made.lin.weight.grad, module.lin.weight.grad)
    assert not made.lin.weight.grad[:, :2].any() and made.lin.weight.grad[:, 2:].all()
    assert gradient_hooks(made.lin.weight)[0].__self__ is made  # type: ignore[attr-defined]


def test_a_hook_of_what_was_frozen_since(tmp_path: Path) -> None:
    module = Masked()
    module.requires_grad_(False)
    made = again(module, tmp_path)["module"]
    assert len(gradient_hooks(made.lin.weight)) == 2 and not made.lin.weight.requires_grad


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_it_is_planned_as_it_is_whatever_the_precision(dtype: str, tmp_path: Path) -> None:
    """With its buffers, which torch reads under fake tensors as if they were of another device."""
    name = write_saved(tmp_path / "model.pt", Masked(), BATCH, nn.functional.mse_loss, {})

    def build() -> Any:
        return load_workload(name, batch=None, seq=None, settings={}, num_devices=1, dtype=dtype)

    graph = trace(build).graph
    assert {value.dtype for value in graph.values if value.kind in ("parameter", "buffer")} == {
        dtype
    }
    assert (
        sum(node.op == "aten.mul.Tensor" and node.phase == "backward" for node in graph.nodes) >= 2
    ), "both hooks"


class Forgetful(Plain):
    """Draws its weights anew where it is read."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lin = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            lambda: Plain(steps=(i for i in range(3))),
            "for 'steps' of 'Plain', a generator: cannot pickle 'generator' object",
        ),
        (
            lambda: nn.Sequential(Plain(log=Path("log").open("w"))),  # noqa: SIM115
            "for 'log' of '0', a TextIOWrapper",
        ),
        (
            Forgetful,
            r"'lin\.weight' changes when the model is pickled and read back",
        ),
    ],
)
def test_what_cannot_be_given_to_ranks_is_named(
    module: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = module()
    with pytest.raises(BadValue, match=words):
        write_saved(tmp_path / "plan" / "model.pt", made, BATCH, nn.functional.mse_loss, {})
    assert not (tmp_path / "plan").exists()
    for part in made.modules():
        if hasattr(part, "log"):
            part.log.close()


def test_hooks_that_no_file_holds_are_refused_from_python_too(tmp_path: Path) -> None:
    module = Plain()
    module.lin.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(
        NotTraceable,
        match=r"'lin\.weight' has the hook .*<lambda> \(line \d+\) after its gradient is accumulated",
    ):
        plan(module, BATCH, nn.functional.mse_loss, num_devices=1, folder=tmp_path)


# ------------------------------------------------------------------------------- the order of a set


class Towers(nn.Module):
    def __init__(self, names: Any) -> None:
        super().__init__()
        self.names = names
        self.towers = nn.ModuleDict({name: nn.Linear(4, 4) for name in sorted(names)})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = sum(self.towers[name](x) for name in self.names)  # type: ignore[assignment]
        return out


class Literal(Plain):
    def forward(self, x: Tensor) -> Tensor:
        for _ in {"a", "b"}:
            x = self.lin(x)
        return x


def test_what_may_follow_the_order_of_a_set() -> None:
    assert may_follow_a_set(Towers({"a", "b"}))
    assert may_follow_a_set(nn.Sequential(Literal()))
    assert not may_follow_a_set(Towers(["a", "b"]))
    assert not may_follow_a_set(Masked())


def test_the_order_of_a_set_is_found_when_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has drawn a hash seed; ranks all have the same."""
    asked: list[Path] = []
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setattr(api, "digest_elsewhere", lambda path: asked.append(path) or "another")
    with pytest.raises(
        BadValue, match="Towers cannot be run in other processes: the model iterates over a set"
    ):
        plan(Towers({"a", "b", "c"}), BATCH, nn.functional.mse_loss, num_devices=1, folder=tmp_path)
    assert asked == [tmp_path / "plan.json"]
    monkeypatch.setenv("PYTHONHASHSEED", environment()["PYTHONHASHSEED"])
    plan(Towers({"a", "b", "c"}), BATCH, nn.functional.mse_loss, num_devices=1, folder=tmp_path)
    assert len(asked) == 1


def test_reading_under_fake_tensors_holds_no_memory(tmp_path: Path) -> None:
    name = write_saved(tmp_path / "model.pt", nn.BatchNorm1d(4), BATCH, nn.functional.mse_loss, {})
    with FakeTensorMode():
        buffer = read_saved(name)["module"].running_mean
        buffer.data = buffer.data.double()
    assert buffer.dtype == torch.float64
