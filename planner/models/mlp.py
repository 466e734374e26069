"""`mlp`: a regression. Inputs -> (Linear -> ReLU) x layers -> Linear, with the mean squared
error."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.spec import ModelSpec, Options, Parts

__all__ = ["MLP", "SPEC"]


class MLP(nn.Module):
    """(batch, outputs) for (batch, inputs); `layers` counts the hidden layers."""

    def __init__(self, *, inputs: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        y: Tensor = self.output(x)
        return y


def _build(options: Options) -> Parts:
    module = MLP(**{key: options[key] for key in ("inputs", "hidden", "layers", "outputs")})
    x = torch.randn(options["batch"], options["inputs"])
    y = torch.randn(options["batch"], options["outputs"])
    return module, (x, y), F.mse_loss


SPEC = ModelSpec(
    name="mlp",
    description="regression: linear layers with ReLU; mean squared error",
    options={"inputs": 1024, "hidden": 4096, "layers": 2, "outputs": 64},
    batch_per_device=256,
    build=_build,
    dim_names={
        "layers.0.weight": ("hidden", "inputs"),
        "layers.*.weight": ("hidden", "hidden"),
        "layers.*.bias": ("hidden",),
        "output.weight": ("outputs", "hidden"),
        "output.bias": ("outputs",),
    },
)
