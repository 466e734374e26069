"""`rnn` and `gru`: binary text classifiers as `lstm`, with a plain recurrent layer (Elman) or a
gated recurrent unit.

Sources: Elman 1990, "Finding Structure in Time"; Cho et al. 2014, "Learning Phrase Representations
using RNN Encoder-Decoder".
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.spec import ModelSpec, Options, Parts, token_ids

__all__ = ["GRU", "RNN", "RecurrentClassifier"]


class RecurrentClassifier(nn.Module):
    """Probability of the positive class, (batch,), for token ids (batch, seq)."""

    def __init__(
        self,
        layer: type[nn.RNN | nn.GRU],
        *,
        vocab: int,
        embed: int,
        hidden: int,
        layers: int,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, embed)
        self.recurrent = layer(
            embed, hidden, num_layers=layers, batch_first=True, bidirectional=bidirectional
        )
        self.linear = nn.Linear(hidden * (1 + bidirectional), 1)

    def forward(self, ids: Tensor) -> Tensor:
        outputs, _ = self.recurrent(self.embedding(ids))
        return torch.sigmoid(self.linear(outputs[:, -1])).squeeze(-1)


def _build(layer: type[nn.RNN | nn.GRU], options: Options) -> Parts:
    names = ("vocab", "embed", "hidden", "layers", "bidirectional")
    module = RecurrentClassifier(layer, **{key: options[key] for key in names})
    ids = token_ids(options, options["batch"], options["seq"])
    labels = torch.randint(0, 2, (options["batch"],)).to(torch.get_default_dtype())
    return module, (ids, labels), F.binary_cross_entropy


def _spec(name: str, layer: type[nn.RNN | nn.GRU], what: str, rows: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        description=f"binary text classifier: embedding, {what}, linear, sigmoid; binary cross-entropy",
        options={
            "vocab": 10_000,
            "embed": 64,
            "hidden": 64,
            "layers": 1,
            "seq": 100,
            "bidirectional": False,
        },
        batch_per_device=256,
        build=partial(_build, layer),
        dim_names={
            "embedding.weight": ("vocab", "embed"),
            "recurrent.weight_ih_l0*": (rows, "embed"),
            "recurrent.weight_*": (rows, "hidden"),
            "recurrent.bias_*": (rows,),
            "linear.weight": ("one", "hidden"),
            "linear.bias": ("one",),
        },
        sequence="seq",
    )


RNN = _spec("rnn", nn.RNN, "a plain recurrent layer", "hidden")
GRU = _spec("gru", nn.GRU, "GRU", "gates,hidden")
