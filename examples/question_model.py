"""A small reader for `question_answering.py`, in a file of its own: the ranks of a run import it
from here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.bert import Block

__all__ = ["ASKED", "QUESTION", "TEXT", "Reader", "losses"]

#: What a token is: of the question, of the text, or a word of the text that the question has too
#: (Chen et al. 2017, section 3.2).
QUESTION, TEXT, ASKED = range(3)


class Reader(nn.Module):
    """Logits (batch, seq, 2) of where the answer starts and ends, for token ids, what each token
    is, and which are real."""

    def __init__(self, *, layers: int, width: int, heads: int, vocab: int, positions: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocab, width), nn.Embedding(positions, width)
        self.kinds, self.norm = nn.Embedding(3, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(Block(width, heads, 2 * width) for _ in range(layers))
        self.ends = nn.Linear(width, 2)
        for table in (self.words, self.positions, self.kinds):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, ids: Tensor, kinds: Tensor, real: Tensor) -> Tensor:
        x = self.norm(
            self.words(ids)
            + self.positions(torch.arange(ids.shape[1], device=ids.device))
            + self.kinds(kinds)
        )
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        logits: Tensor = self.ends(x)
        return logits.masked_fill(~real[:, :, None], -1e4)


def losses(logits: Tensor, ends: Tensor) -> dict[str, Tensor]:
    """The cross-entropy of the answer's first word and that of its last; ends (batch, 2) are
    their positions."""
    return {
        "start": F.cross_entropy(logits[:, :, 0], ends[:, 0]),
        "end": F.cross_entropy(logits[:, :, 1], ends[:, 1]),
    }
