"""Keras's optimizers on local shards, with the formulas of Keras 3's torch backend.

They differ from torch's of the same names: Adam's epsilon is added before the bias correction, the
powers of the betas are taken in the parameters' dtype (in float32 `1 - 0.999` is off by 1.3e-5,
which shows in the first steps), Adagrad begins at 0.1, RMSprop adds epsilon under the root. All are
element-wise, so a shard is updated like the same part of the whole. Sources:
keras/src/backend/torch/optimizers (3.15).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["KERAS_CLASSES", "Adagrad", "Adam", "KerasOptimizer", "Nadam", "RMSprop", "SGD"]


class KerasOptimizer(torch.optim.Optimizer):
    """The parts of every Keras optimizer: a schedule of the learning rate, clipping by value,
    decoupled weight decay.

    `decayed` says for each parameter whether `weight_decay` applies to it (by default to all);
    `schedule` returns the learning rate of an iteration, counted from 0, and replaces `lr`.
    """

    #: The initial value of the state.
    initial = 0.0

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        weight_decay: float | None = None,
        decayed: Sequence[bool] | None = None,
        clipvalue: float | None = None,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.weight_decay, self.clipvalue, self.schedule = weight_decay, clipvalue, schedule
        self.decayed = decayed
        self.iterations = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "Keras's optimizers evaluate the loss once a step"
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        decayed = [True] * len(held) if self.decayed is None else self.decayed
        rate = (
            self.param_groups[0]["lr"] if self.schedule is None else self.schedule(self.iterations)
        )
        chosen = [number for number, parameter in enumerate(held) if parameter.grad is not None]
        for dtype in dict.fromkeys(held[number].dtype for number in chosen):
            numbers = [number for number in chosen if held[number].dtype == dtype]
            parameters = [held[number] for number in numbers]
            self._apply(
                parameters, [decayed[number] for number in numbers], torch.tensor(rate, dtype=dtype)
            )
        self.iterations += 1

    def _apply(self, parameters: list[Tensor], decayed: list[bool], rate: Tensor) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.clipvalue:
            gradients = [gradient.clamp(-self.clipvalue, self.clipvalue) for gradient in gradients]
        shrunk = [p for p, decays in zip(parameters, decayed, strict=True) if decays]
        if self.weight_decay is not None and shrunk:
            torch._foreach_mul_(shrunk, float(1 - self.weight_decay * rate))
        self.update(parameters, gradients, rate)

    def slot(self, name: str, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The state tensors of that name, made when first asked for."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.full_like(parameter, self.initial)
        return [self.state[parameter][name] for parameter in parameters]

    def step_number(self, like: Tensor, ahead: int = 1) -> Tensor:
        """The number of this update, counted from 1, in the dtype of `like`: Keras takes powers in
        it."""
        return torch.tensor(self.iterations + ahead, dtype=like.dtype)

    @abstractmethod
    def update(self, parameters: list[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
        """Updates parameters of one dtype; `rate` is a scalar in it."""


class SGD(KerasOptimizer):
    """`m = momentum m - rate g; w += m`, with `nesterov` `w += momentum m - rate g`; without
    momentum `w -= rate g`."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        **more: Any,
    ):
        super().__init__(params, lr, **more)
        self.momentum, self.nesterov = momentum, nesterov

    def update(self, parameters: list[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
        if not self.momentum:
            torch._foreach_add_(parameters, gradients, alpha=-float(rate))
            return
        momenta = self.slot("momentum", parameters)
        torch._foreach_mul_(momenta, self.momentum)
        torch._foreach_add_(momenta, gradients, alpha=-float(rate))
        if self.nesterov:
            torch._foreach_add_(parameters, gradients, alpha=-float(rate))
            torch._foreach_add_(parameters, momenta, alpha=self.momentum)
        else:
            torch._foreach_add_(parameters, momenta)


class Adam(KerasOptimizer):
    """`w -= rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)`; with `amsgrad` the
    largest v so far."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **more: Any,
    ):
        super().__init__(params, lr, **more)
        self.beta_1, self.beta_2, self.epsilon, self.amsgrad = beta_1, beta_2, epsilon, amsgrad

    def update(self, parameters: list[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
        number = self.step_number(rate)
        one, two = (
            torch.pow(torch.tensor(beta, dtype=rate.dtype), number)
            for beta in (self.beta_1, self.beta_2)
        )
        alpha = float(rate * torch.sqrt(1 - two) / (1 - one))
        means, squares = moments(self, parameters, gradients)
        if self.amsgrad:
            largest = self.slot("velocity_hat", parameters)
            torch._foreach_maximum_(largest, squares)
            squares = largest
        roots = torch._foreach_add(torch._foreach_sqrt(squares), self.epsilon)
        torch._foreach_add_(
            parameters, torch._foreach_div(torch._foreach_mul(means, alpha), roots), alpha=-1
        )


class Nadam(KerasOptimizer):
    """Adam with Nesterov's momentum, whose schedule is `b1 (1 - 0.96^t / 2)`."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **more: Any,
    ):
        super().__init__(params, lr, **more)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.products: dict[torch.dtype, Tensor] = {}

    def update(self, parameters: list[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
        dtype = rate.dtype
        decay, beta = torch.tensor(0.96, dtype=dtype), torch.tensor(self.beta_1, dtype=dtype)
        # Keras calls them u_t and u_t_1.
        now, following = (
            beta * (1.0 - 0.5 * torch.pow(decay, self.step_number(rate, ahead))) for ahead in (1, 2)
        )
        before = self.products.get(dtype, torch.ones((), dtype=dtype))
        product = before * now
        self.products[dtype] = product
        two = torch.pow(torch.tensor(self.beta_2, dtype=dtype), self.step_number(rate))
        means, squares = moments(self, parameters, gradients)
        hats = torch._foreach_add(
            torch._foreach_div(
                torch._foreach_mul(means, float(following)), float(1 - product * following)
            ),
            torch._foreach_div(torch._foreach_mul(gradients, float(1 - now)), float(1 - product)),
        )
        roots = torch._foreach_add(
            torch._foreach_sqrt(torch._foreach_div(squares, float(1 - two))), self.epsilon
        )
        torch._foreach_add_(
            parameters, torch._foreach_div(torch._foreach_mul(hats, float(rate)), roots), alpha=-1
        )


class RMSprop(KerasOptimizer):
    """`w -= rate g / sqrt(v + epsilon)`; if `centered`, v less the squared mean of g; with
    `momentum`, that of the quotient."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **more: Any,
    ):
        super().__init__(params, lr, **more)
        self.rho, self.momentum, self.epsilon, self.centered = rho, momentum, epsilon, centered

    def update(self, parameters: list[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
        squares = self.slot("velocity", parameters)
        torch._foreach_mul_(squares, self.rho)
        torch._foreach_add_(squares, torch._foreach_mul(gradients, gradients), alpha=1 - self.rho)
        under = torch._foreach_add(squares, self.epsilon)
        if self.centered:
            means = self.slot("average_gradient", parameters)
            torch._foreach_mul_(means, self.rho)
            torch._foreach_add_(means, gradients, alpha=1 - self.rho)
            torch._foreach_add_(under, torch._foreach_mul(means, means), alpha=-1)
        steps = torch._foreach_div(
            torch._foreach_mul(gradients, float(rate)), torch._foreach_sqrt(under)
        )
        if self.momentum > 0:
            momenta = self.slot("momentum", parameters)
            torch._foreach_mul_(momenta, self.momentum)
            torch._foreach_add_(momenta, steps)
            steps = tuple(momenta)
        torch._foreach_add_(parameters, steps, alpha=-1)


class Adagrad(KerasOptimizer):
    """`a += g^2; w -= rate g / sqrt(a + epsilon)`."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **more: Any,
    ):
        super().__init__(params, lr, **more)
        self.initial, self.epsilon = initial_accumulator_value, epsilon

    def update(self, parameters: list[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
        sums = self.slot("accumulator", parameters)
        torch._foreach_add_(sums, torch._foreach_mul(gradients, gradients))
        roots = torch._foreach_sqrt(torch._foreach_add(sums, self.epsilon))
        torch._foreach_add_(
            parameters,
            torch._foreach_div(torch._foreach_mul(gradients, float(rate)), roots),
            alpha=-1,
        )


def moments(
    optimizer: Adam | Nadam, parameters: list[Tensor], gradients: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The running means of the gradients and of their squares, this step's included."""
    means, squares = optimizer.slot("momentum", parameters), optimizer.slot("velocity", parameters)
    torch._foreach_mul_(means, optimizer.beta_1)
    torch._foreach_add_(means, gradients, alpha=1 - optimizer.beta_1)
    torch._foreach_mul_(squares, optimizer.beta_2)
    torch._foreach_add_(
        squares, torch._foreach_mul(gradients, gradients), alpha=1 - optimizer.beta_2
    )
    return means, squares


#: The classes by Keras's names.
KERAS_CLASSES: dict[str, Callable[..., KerasOptimizer]] = {
    "Adagrad": Adagrad,
    "Adam": Adam,
    "Nadam": Nadam,
    "RMSprop": RMSprop,
    "SGD": SGD,
}
