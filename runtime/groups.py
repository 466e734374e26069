"""The process groups that a `Program` names by mesh axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist

from planner.graph.graph import Group
from planner.graph.layout import Mesh
from planner.program.program import Communicate, Compute, Program

__all__ = ["Groups", "axes_used", "group_size", "make_groups"]

#: This rank's process group by mesh axes; groups of one rank have none.
Groups = Mapping[tuple[int, ...], dist.ProcessGroup]


def axes_used(program: Program) -> list[tuple[int, ...]]:
    """All sets of mesh axes over which the program communicates, in order of first use."""
    found: dict[tuple[int, ...], None] = {}
    for instruction in program.written:
        if isinstance(instruction, Communicate):
            found[instruction.axes] = None
        elif isinstance(instruction, Compute):
            arguments = (*instruction.args, *(value for _, value in instruction.kwargs))
            found.update(dict.fromkeys(group.axes for group in _groups_in(arguments)))
    return list(found)


def make_groups(program: Program, rank: int) -> Groups:
    """The groups that the program needs. Every rank calls this: making a group is collective."""
    out: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for axes in axes_used(program):
        if (
            group_size(program.mesh, axes) == program.mesh.num_devices > 1
            and dist.group.WORLD is not None
        ):
            out[axes] = dist.group.WORLD
        elif group_size(program.mesh, axes) > 1:
            for ranks in program.mesh.groups(axes):
                made = dist.new_group(ranks)
                if rank in ranks:
                    out[axes] = made
    return out


def group_size(mesh: Mesh, axes: tuple[int, ...]) -> int:
    """The number of ranks that differ only on `axes`."""
    return math.prod(mesh.sizes[axis] for axis in axes)


def _groups_in(argument: Any) -> Iterator[Group]:
    if isinstance(argument, Group):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _groups_in(item)
