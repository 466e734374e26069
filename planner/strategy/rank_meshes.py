"""The meshes of pipeline ranks with unlike numbers of devices, as a person types them.

`dp=2+dp=1` -> a mesh for each rank, checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from cost_models.errors import BadValue
from planner.graph.layout import Mesh
from planner.strategy.pins import parse_mesh

__all__ = ["devices_of", "example", "rank_meshes"]


def rank_meshes(
    typed: Sequence[str], num_devices: int, places: int, samples: int
) -> tuple[Mesh, ...]:
    """The meshes of all pipeline ranks, as in `dp=2+dp=1`. `samples` are those of a
    microbatch on a data-parallel rank, 0 if nobody said. Raises BadValue unless there is a mesh for
    each of `places` ranks, they have all devices, and samples were not said."""
    words = "+".join(typed)
    if len(typed) != places:
        raise BadValue(
            f"--mesh {words} has {len(typed)} meshes and there are {places} pipeline ranks: "
            "give one mesh for all of them, or one for each"
        )
    if samples:
        raise BadValue(
            f"--pin microbatch={samples} counts samples of data-parallel ranks, and --mesh "
            f"{words} has unlike numbers of them: use --microbatches N"
        )
    counts = [devices_of(mesh) for mesh in typed]
    if sum(counts) != num_devices:
        raise BadValue(
            f"--mesh {words} needs {sum(counts)} devices and --gpus is {num_devices}: use --gpus "
            f"{sum(counts)}, or other meshes"
        )
    return tuple(parse_mesh(mesh, count) for mesh, count in zip(typed, counts, strict=True))


def example(num_devices: int, places: int) -> str:
    """Meshes of so many devices for so many ranks, as even as can be."""
    each, more = divmod(num_devices, places)
    return "+".join(f"dp={each + (place < more)}" for place in range(places))


def devices_of(mesh: str) -> int:
    """The devices of a mesh as it was typed; whether it is one is checked later."""
    return math.prod(int(size) for size in re.findall(r"=\s*([1-9][0-9]*)", mesh))
