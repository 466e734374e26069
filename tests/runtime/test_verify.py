"""What `--verify` sees and what it leaves out: on gradients whose rounding is known."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand_programs import INPUTS, OUTPUTS, Split, make_workload, perceptron
from torch import Tensor, nn

from planner.graph.layout import Mesh
from planner.report.runs import run_section
from planner.workload.workload import Workload
from runtime.alike import begin
from runtime.executor import Executor
from runtime.reference import Doubt, Reference, reference_run
from runtime.verdict import EXIT_CODES
from runtime.verify import Verification, compare

ONE = Mesh(("dp",), (1,))


def reference(gradient: list[float], rounding: list[float]) -> Reference:
    """Two tensors in float32: `large`, whose gradient is exact, and `small`, whose elements
    moved by 0.003."""
    gradients = {"large": torch.ones(2), "small": torch.tensor(gradient)}
    return Reference(
        losses=(1.0,),
        gradients=gradients,
        parameters={"large": torch.ones(2), "small": torch.full((len(gradient),), 0.003)},
        rounding={"large": torch.zeros(2), "small": torch.tensor(rounding)},
        doubt={
            "large": torch.zeros(2),
            "small": torch.tensor([max(rounding) / abs(g) if g else 0.0 for g in gradient]),
        },
        noise={"large": 0.0, "small": max(rounding) / max(map(abs, gradient))},
        moved={"large": 0.003, "small": 0.003},
        buffer_rounding={},
        limit=1e-4,
    )


def verify(of: Reference, gradient: list[float], parameter: list[float]) -> Verification:
    ours = {"large": torch.ones(2), "small": torch.tensor(gradient)}
    return compare([1.0], ours, {"large": torch.ones(2), "small": torch.tensor(parameter)}, of)


def test_a_wrong_gradient_far_below_the_largest_is_seen() -> None:
    """Of 1e-7 beside gradients of 1: less than a rounding of the largest, and exact in its own
    tensor."""
    found = verify(reference([1e-7, 2e-7], [1e-14, 1e-14]), [1e-7, 4e-7], [0.003, 0.003])
    assert found.worst_gradient == "small"
    assert found.gradient_error == pytest.approx(1.0)
    assert found.num_left_out == 0


def test_a_gradient_of_rounding_noise_says_nothing_and_is_counted() -> None:
    """Ours has the other sign, and Adam went the other way."""
    found = verify(reference([1e-9, -2e-9], [3e-9, 1e-9]), [-1e-9, 2e-9], [-0.003, 0.003])
    assert found.gradient_error <= 1e-4
    assert found.parameter_error < 1e-6
    assert (found.num_left_out, found.num_elements) == (2, 4)


def test_noise_allows_no_more_than_noise() -> None:
    """A gradient that should vanish and does not; a parameter further off than it has moved back
    and forth."""
    of = reference([1e-9, -2e-9], [3e-9, 1e-9])
    assert verify(of, [1e-6, 0.0], [0.003, 0.003]).gradient_error > 1e-3
    assert verify(of, [1e-9, -2e-9], [0.0091, 0.003]).parameter_error > 1e-2


def test_what_has_no_gradient_stays_where_it_was() -> None:
    found = verify(reference([0.0, 1.0], [0.0, 1e-7]), [0.0, 1.0], [0.0031, 0.003])
    assert found.parameter_error == pytest.approx(0.1 / 3, rel=1e-3)
    assert found.num_left_out == 0


def test_elements_between_are_allowed_in_proportion() -> None:
    """A gradient of a hundred times the tensor's rounding: a tenth of what was moved."""
    of = reference([1.0, 1e-5], [1e-7, 0.0])
    assert verify(of, [1.0, 1e-5], [0.003, 0.0033]).parameter_error < 1e-6
    assert verify(of, [1.0, 1e-5], [0.003, 0.0036]).parameter_error == pytest.approx(0.1, rel=1e-3)
    assert verify(of, [1.0, 1e-5], [0.003, 0.003]).num_left_out == 1


def test_a_buffer_is_held_against_what_rounding_does_to_it() -> None:
    """`centred` is 0 but for rounding; `exact` is small beside `large_buffer`, and no less to be
    compared."""
    theirs = {
        "large_buffer": torch.ones(2),
        "exact": torch.full((2,), 1e-6),
        "centred": torch.full((2,), 1e-9),
    }
    of = reference([1.0], [1e-7])
    of = replace(
        of,
        parameters={**of.parameters, **theirs},
        buffer_rounding={"large_buffer": 1e-7, "exact": 1e-13, "centred": 2e-9},
    )

    def found(**changed: float) -> Verification:
        ours = theirs | {name: torch.full((2,), value) for name, value in changed.items()}
        return compare(
            [1.0], of.gradients, {name: of.parameters[name] for name in of.gradients}, of, ours
        )

    assert found(centred=-2e-9).buffer_error <= 1e-4
    assert found(centred=1e-6).buffer_error > 1e-3
    assert found(exact=1.1e-6).buffer_error == pytest.approx(0.1, rel=1e-3)
    assert found(exact=1.1e-6).worst_buffer == "exact"


class Centred(nn.Module):
    """A linear layer whose bias a mean takes away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return (x - x.mean(0)).pow(3)


def test_rounding_is_measured_where_it_happens() -> None:
    def make() -> Workload:
        return replace(make_workload(), module=Centred().double())

    found = reference_run(make, perceptron(Split(ONE, batch=(0,))), seed=0, num_steps=1)
    share = {
        name: float(r.max() / found.gradients[name].abs().max())
        for name, r in found.rounding.items()
    }
    assert share["linear.bias"] > 0.1
    assert share["linear.weight"] < 1e-13
    assert found.moved["linear.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert found.limit == 1e-9


class Counted(Centred):
    """Keeps the running mean of what the linear layer gives, and of that without its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(OUTPUTS, affine=False)
        self.after = nn.BatchNorm1d(OUTPUTS, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.norm(self.linear(x)))
        return (100 * out).pow(3)


def test_what_rounding_does_to_buffers_is_measured() -> None:
    """The bias before a norm has a gradient of rounding noise, which Adam makes whole updates
    of; the running mean follows."""

    def make() -> Workload:
        return replace(make_workload(), module=Counted().double())

    found = reference_run(make, perceptron(Split(ONE, batch=(0,))), seed=0, num_steps=3)
    share = {
        name: r / float(found.parameters[name].abs().max())
        for name, r in found.buffer_rounding.items()
    }
    assert share["norm.running_mean"] > 1e-5
    assert share["norm.running_var"] < 1e-12
    assert share["after.running_mean"] > 0.1
    assert share["norm.num_batches_tracked"] == 0


def test_what_training_makes_of_a_rounding_is_measured_too() -> None:
    """On another processor a rounding may do no more in three steps than in one."""
    found = reference_run(make_workload, perceptron(Split(ONE, batch=(0,))), seed=0, num_steps=3)
    first = reference_run(make_workload, perceptron(Split(ONE, batch=(0,))), seed=0, num_steps=1)
    for name, doubt in found.doubt.items():
        assert bool((doubt >= first.doubt[name]).all())
        assert found.noise[name] >= first.noise[name] > 0
        largest, smallest = float(first.rounding[name].max()), float(first.rounding[name].min())
        share = first.doubt[name] * first.gradients[name].abs().double()
        assert smallest <= float(share.min()) <= float(share.max()) == pytest.approx(largest)


def test_the_doubt_of_an_element_is_that_of_its_worst_step() -> None:
    doubt = Doubt(torch.zeros(2))
    doubt.add(torch.tensor([4.0, 1.0]), torch.tensor([0.1, 0.1]))
    assert doubt.worst.tolist() == pytest.approx([0.1 / 4, 0.1])
    assert doubt.of_largest == pytest.approx(0.1 / 4)
    doubt.add(torch.tensor([1.0, 1.0]), torch.tensor([0.8, 0.1]))
    typical = math.sqrt((0.8**2 + 0.1**2) / 2)
    assert doubt.worst.tolist() == pytest.approx([0.8 / 4, typical])
    assert doubt.of_largest == pytest.approx(0.8 / 4)
    doubt.add(torch.tensor([100.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert doubt.worst.tolist() == pytest.approx([0.8 / 4, typical])


# -------------------------------------------------------------------------------------- the verdict


def test_the_very_numbers_are_equal() -> None:
    of = reference([1e-7, 2e-7], [1e-14, 1e-14])
    same = verify(of, [1e-7, 2e-7], [0.003, 0.003])
    assert (same.verdict, EXIT_CODES[same.verdict]) == ("equal", 0)
    near = verify(of, [1e-7, 2.000001e-7], [0.003, 0.003])
    assert (near.verdict, EXIT_CODES[near.verdict]) == ("equal to rounding", 0)


def test_what_is_wrong_is_told_with_its_values() -> None:
    found = verify(reference([1e-7, 2e-7], [1e-14, 1e-14]), [1e-7, 4e-7], [0.003, 0.002])
    assert (found.verdict, EXIT_CODES[found.verdict]) == ("WRONG", 1)
    gradient, parameter, loss = found.worst
    assert (gradient.what, gradient.name, gradient.index) == ("gradient", "small", (1,))
    assert (gradient.ours, gradient.theirs, gradient.error) == pytest.approx((4e-7, 2e-7, 1.0))
    assert (parameter.what, parameter.name, parameter.index) == ("parameter", "small", (1,))
    assert (parameter.ours, parameter.theirs) == pytest.approx((0.002, 0.003))
    assert (loss.what, loss.name, loss.error) == ("loss", "of step 1", 0.0)
    table = run_section_of(found)
    assert (
        "WRONG: gradient small[1] is 4e-07, but 2e-07 in one process; parameter small[1] is "
        "0.002, but 0.003 in one process" in table
    )


def run_section_of(found: Verification) -> str:
    result = {
        "num_ranks": 2,
        "backend": "gloo",
        "losses": [1.0],
        "step_times_s": [1.0],
        "peak_memory_bytes": 1,
        "verdict": found.verdict,
        "verify": asdict(found),
    }
    plan: Any = SimpleNamespace(mesh="dp=2", ask=SimpleNamespace(model="m"))
    return str(run_section(plan, result, 1.0))


def test_too_little_is_no_proof() -> None:
    """Half of the elements may be left out, as of a bias that is taken away; of more the rest
    proves nothing."""
    half = verify(reference([1e-9, -2e-9], [3e-9, 1e-9]), [-1e-9, 2e-9], [-0.003, 0.003])
    assert (half.num_left_out, half.num_elements, half.verdict) == (2, 4, "equal to rounding")
    most = verify(
        reference([1e-9, -2e-9, 1e-9], [3e-9, 1e-9, 1e-9]), [1e-9, -2e-9, 1e-9], [0.003] * 3
    )
    assert (most.num_left_out, most.num_elements, most.verdict) == (3, 5, "no proof")
    assert EXIT_CODES[most.verdict] == 3
    assert "no proof: rounding alone could explain the values of most elements" in run_section_of(
        most
    )


def test_gradients_of_nothing_but_rounding_are_no_proof() -> None:
    of = reference([1e-9, -2e-9], [3e-9, 1e-9])
    of = replace(of, rounding={**of.rounding, "large": torch.ones(2)})
    assert verify(of, [1e-9, -2e-9], [0.003, 0.003]).verdict == "no proof"


def test_a_training_without_numbers_is_no_proof_and_a_run_without_them_is_wrong() -> None:
    of = reference([1.0, 2.0], [1e-9, 1e-9])
    nan = float("nan")
    assert compare([nan], {}, {}, of).verdict == "WRONG"
    assert compare([nan], {}, {}, replace(of, losses=(nan,))).verdict == "no proof"
    assert compare([1.0], {}, {}, replace(of, losses=(float("inf"),))).verdict == "no proof"


def test_a_loss_is_held_against_what_rounding_does_to_it() -> None:
    of = replace(reference([1.0], [1e-9]), losses=(1.0, 1e-6), loss_rounding=(0.0, 1e-7))
    assert compare([1.0, 1.5e-6], {}, {}, of).verdict == "equal to rounding"
    assert compare([1.0, 1e-4], {}, {}, of).verdict == "WRONG"


def test_the_reference_begins_as_the_run_did() -> None:
    """A builder that draws from a generator which goes on gives other values each time."""
    own = torch.Generator().manual_seed(0)

    def make() -> Workload:
        workload = make_workload()
        with torch.no_grad():
            for parameter in workload.module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=own, dtype=parameter.dtype))
        return workload

    program = perceptron(Split(ONE, batch=(0,)))
    began = begin(make, program, 0)
    found = Executor(program, began, keep_gradients=True)
    losses = [found.step(began.batch)]
    again = reference_run(make, program, seed=0, num_steps=1, began=began)
    assert compare(losses, found.gradients, found.parameter_shards(), again).verdict in (
        "equal",
        "equal to rounding",
    )
    assert (
        compare(losses, {}, {}, reference_run(make, program, seed=0, num_steps=1)).verdict
        == "WRONG"
    )
