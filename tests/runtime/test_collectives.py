"""What a collective makes of its buffer, without ranks; `test_distributed.py` has the rest."""

from __future__ import annotations

import torch

from planner.program import Communicate
from runtime.collectives import compile_collective


def test_pieces_of_one_are_gathered_in_memory_order() -> None:
    """A transposed view would do for most ops, but the norms of torch read statistics by their addresses."""
    instruction = Communicate(
        id="x", kind="all_gather", axes=(0,), sources=(0,), results=(1,), expanded=((3, 1, 4),), shapes=((3, 2, 4),),
        dtypes=("float64",), gather=1, phase="forward",
    )  # fmt: skip
    buffer = torch.arange(24.0, dtype=torch.float64).view(2, 12)
    (whole,) = compile_collective(instruction, None, 2, 0).unpack_blocks(buffer, instruction.expanded)
    assert torch.equal(whole, buffer.view(2, 3, 4).transpose(0, 1))
    assert whole.is_contiguous()
