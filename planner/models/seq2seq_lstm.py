"""`seq2seq-lstm`: a translator of two LSTMs: the encoder's last state is the decoder's first, which
predicts the next token.

Source: Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks", section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from planner.models.gpt import next_token_loss
from planner.models.spec import ModelSpec, Options, Parts, Preset, token_ids

__all__ = ["SPEC", "Seq2SeqLSTM"]


class Seq2SeqLSTM(nn.Module):
    """Logits (batch, seq, vocab) for source ids and the target ids up to each position."""

    def __init__(self, *, vocab: int, embed: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(vocab, embed)
        self.target_embedding = nn.Embedding(vocab, embed)
        self.encoder = nn.LSTM(embed, hidden, num_layers=layers, batch_first=True)
        self.decoder = nn.LSTM(embed, hidden, num_layers=layers, batch_first=True)
        self.linear = nn.Linear(hidden, vocab)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.source_embedding(source))
        outputs, _ = self.decoder(self.target_embedding(target), state)
        logits: Tensor = self.linear(outputs)
        return logits


def _build(options: Options) -> Parts:
    module = Seq2SeqLSTM(**{key: options[key] for key in ("vocab", "embed", "hidden", "layers")})
    return (
        module,
        tuple(token_ids(options, options["batch"], options["seq"]) for _ in range(3)),
        next_token_loss,
    )


SPEC = ModelSpec(
    name="seq2seq-lstm",
    description="translator: an LSTM reads the source, another writes the target; cross-entropy of the next token",
    options={"vocab": 10_000, "embed": 128, "hidden": 256, "layers": 1, "seq": 40},
    batch_per_device=64,
    build=_build,
    dim_names={
        "*_embedding.weight": ("vocab", "embed"),
        "*.weight_ih_l0": ("gates,hidden", "embed"),
        "*.weight_*": ("gates,hidden", "hidden"),
        "*.bias_*": ("gates,hidden",),
        "linear.weight": ("vocab", "hidden"),
        "linear.bias": ("vocab",),
    },
    presets={
        "seq2seq-lstm-large": Preset(
            description="4 + 4 layers of 1000, vocabulary 80,000: 304 million parameters",
            options={"vocab": 80_000, "embed": 1000, "hidden": 1000, "layers": 4},
            batch_per_device=128,
            source="Sutskever et al. 2014, section 3.4; one vocabulary for both languages",
        )
    },
    sequence="seq",
)
