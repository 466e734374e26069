"""What a collective makes of its buffer, without ranks; `test_distributed.py` has the rest."""

from __future__ import annotations

import pytest
import torch

from planner.program.program import Communicate
from runtime.collectives import compile_collective


def test_pieces_of_one_are_gathered_in_memory_order() -> None:
    """A transposed view would do for most ops, but the norms of torch read statistics by their
    addresses."""
    instruction = Communicate(
        id="x",
        kind="all_gather",
        axes=(0,),
        sources=(0,),
        results=(1,),
        expanded=((3, 1, 4),),
        shapes=((3, 2, 4),),
        dtypes=("float64",),
        gather=1,
        phase="forward",
    )
    buffer = torch.arange(24.0, dtype=torch.float64).view(2, 12)
    (whole,) = compile_collective(instruction, None, 2, 0).unpack_blocks(
        buffer, instruction.expanded
    )
    assert torch.equal(whole, buffer.view(2, 3, 4).transpose(0, 1))
    assert whole.is_contiguous()


@pytest.mark.parametrize("num_values", [1, 2])
def test_what_is_sent_is_what_memory_holds(num_values: int) -> None:
    """torch's conjugate is a view with a mark, which a collective refuses or does not see."""
    value = torch.view_as_complex(torch.arange(24.0, dtype=torch.float64).view(3, 4, 2)).conj()
    instruction = Communicate(
        id="x",
        kind="all_to_all",
        axes=(0,),
        sources=(0, 1)[:num_values],
        results=(2, 3)[:num_values],
        expanded=((3, 4),) * num_values,
        shapes=((6, 2),) * num_values,
        dtypes=("complex128",) * num_values,
        gather=0,
        split=1,
        phase="forward",
    )
    collective = compile_collective(instruction, None, 2, 0)
    for buffer in (
        collective.pack([value] * num_values),
        collective.pack_blocks([value] * num_values),
    ):
        assert not buffer.is_conj()
        assert buffer.is_contiguous()
    assert torch.equal(collective.pack([value] * num_values)[:12].view(3, 4), value)
    assert torch.equal(collective.pack_blocks([value] * num_values)[1, :6].view(3, 2), value[:, 2:])
