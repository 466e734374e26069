"""`dlrm`: a click predictor of DLRM's shape: embedding tables, an MLP over dense features, their
products in pairs, an MLP.

Source: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and
Recommendation Systems", section 2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.spec import ModelSpec, Options, Parts, Preset

__all__ = ["DLRM", "SPEC"]


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(F.relu(x) if index else x)
        return x


class DLRM(nn.Module):
    """Logits (batch,) of a click for dense features (batch, dense) and one id of each table
    (batch, tables)."""

    def __init__(
        self, *, dense: int, tables: int, rows: int, embed: int, bottom: int, top: int
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, embed) for _ in range(tables))
        self.bottom = MLP(dense, bottom, embed)
        self.top = MLP(embed + (tables + 1) ** 2, top, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = F.relu(self.bottom(dense))
        vectors = torch.stack(
            [x, *(table(ids[:, index]) for index, table in enumerate(self.tables))], 1
        )
        pairs = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        logits: Tensor = self.top(torch.cat([x, pairs], 1))
        return logits.squeeze(-1)


def _build(options: Options) -> Parts:
    module = DLRM(
        **{key: options[key] for key in ("dense", "tables", "rows", "embed", "bottom", "top")}
    )
    batch = options["batch"]
    dense, ids = (
        torch.randn(batch, options["dense"]),
        torch.randint(0, options["rows"], (batch, options["tables"])),
    )
    clicks = torch.randint(0, 2, (batch,)).to(torch.get_default_dtype())
    return module, (dense, ids, clicks), F.binary_cross_entropy_with_logits


SPEC = ModelSpec(
    name="dlrm",
    description="click predictor: embedding tables, products of their vectors in pairs, MLPs; binary cross-entropy",
    options={"dense": 13, "tables": 26, "rows": 10_000, "embed": 16, "bottom": 512, "top": 512},
    batch_per_device=512,
    build=_build,
    dim_names={
        "tables.*.weight": ("rows", "embed"),
        "*.layers.*.weight": ("out", "in"),
        "*.bias": ("out",),
    },
    presets={
        "dlrm-kaggle": Preset(
            description="26 tables of 1.3 million rows of 16 (the mean of the data's tables): 541 million parameters",
            options={
                "dense": 13,
                "tables": 26,
                "rows": 1_300_000,
                "embed": 16,
                "bottom": 512,
                "top": 512,
            },
            batch_per_device=512,
            source="Naumov et al. 2019, section 5: 13 dense, 26 categorical features of Criteo "
            "Kaggle, 540 million parameters",
        )
    },
)
