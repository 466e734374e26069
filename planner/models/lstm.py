"""`lstm`: a binary text classifier. Token ids -> Embedding -> LSTM -> the last time step ->
Linear -> sigmoid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.spec import ModelSpec, Options, Parts, Preset, token_ids

__all__ = ["SPEC", "LSTMClassifier"]


class LSTMClassifier(nn.Module):
    """Probability of the positive class, (batch,), for token ids (batch, seq)."""

    def __init__(
        self, *, vocab: int, embed: int, hidden: int, layers: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, embed)
        self.lstm = nn.LSTM(
            embed, hidden, num_layers=layers, batch_first=True, bidirectional=bidirectional
        )
        self.linear = nn.Linear(hidden * (1 + bidirectional), 1)

    def forward(self, ids: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(ids))
        return torch.sigmoid(self.linear(outputs[:, -1])).squeeze(-1)


def _build(options: Options) -> Parts:
    module = LSTMClassifier(
        **{key: options[key] for key in ("vocab", "embed", "hidden", "layers", "bidirectional")}
    )
    ids = token_ids(options, options["batch"], options["seq"])
    labels = torch.randint(0, 2, (options["batch"],)).to(torch.get_default_dtype())
    return module, (ids, labels), F.binary_cross_entropy


SPEC = ModelSpec(
    name="lstm",
    description="binary text classifier: embedding, LSTM, linear, sigmoid; binary cross-entropy",
    options={
        "vocab": 10_000,
        "embed": 64,
        "hidden": 64,
        "layers": 1,
        "seq": 100,
        "bidirectional": False,
    },
    batch_per_device=256,
    build=_build,
    dim_names={
        "embedding.weight": ("vocab", "embed"),
        "lstm.weight_ih_l0*": ("gates,hidden", "embed"),
        "lstm.weight_ih_l*": ("gates,hidden", "hidden"),
        "lstm.weight_hh_l*": ("gates,hidden", "hidden"),
        "lstm.bias_*": ("gates,hidden",),
        "linear.weight": ("one", "hidden"),
        "linear.bias": ("one",),
    },
    presets={
        "lstm-large": Preset(
            description="4 layers of 2048, vocabulary 50,000: 237 million parameters",
            options={"vocab": 50_000, "embed": 2048, "hidden": 2048, "layers": 4},
            batch_per_device=256,
            source="our own: large enough that the split of the recurrent weights matters",
        )
    },
    sequence="seq",
)
