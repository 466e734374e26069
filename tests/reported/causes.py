"""Models that torch itself cannot trace, refused with what to do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Parts = tuple[nn.Module, tuple[Tensor, ...], object]


class Packed(nn.Module):
    """A recurrent layer over sequences without their padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        return out[:, 0]


def packed(batch: int = 8) -> Parts:
    x, lengths = torch.randn(batch, 5, 4), torch.randint(1, 6, (batch,))
    return Packed(), (x, lengths, torch.randint(0, 3, (batch,))), F.cross_entropy


def _parts(module: nn.Module, batch: int) -> Parts:
    return module, (torch.randn(batch, 4), torch.randint(0, 3, (batch,))), F.cross_entropy


def cumulative(batch: int = 8) -> Parts:
    return _parts(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=None)), batch)


def wrapped(batch: int = 8) -> Parts:
    return _parts(nn.DataParallel(nn.Linear(4, 3)), batch)


RIGHT: dict[str, object] = {}
REFUSED = {
    "packed": (packed, r"causes\.py:\d+ \(packed = .*pad the batch to one length"),
    "cumulative": (cumulative, r"momentum=None .*give it a momentum"),
    "wrapped": (wrapped, r"nn\.DataParallel .*model\.module"),
}
