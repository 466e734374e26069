"""What a pipeline is to be, before anything is planned."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.errors import BadValue
from planner.graph.layout import Mesh
from planner.schedules.schedule import Schedule

__all__ = ["Spec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a pipeline is to be: `places` in a row, each with the devices of `mesh`, or with those of
    a mesh of its own, if there are several; `chunks` stages a place, 0 for as many as the schedule
    has if nobody says. The schedule is `given`, or made by its name. Raises BadValue if there is not
    one mesh for each place."""

    places: int
    mesh: Mesh | tuple[Mesh, ...]
    microbatches: int
    schedule: str = "1f1b"
    chunks: int = 0
    given: Schedule | None = None

    def __post_init__(self) -> None:
        if len(self.meshes) != self.places:
            raise BadValue(
                f"{len(self.meshes)} meshes for {self.places} places: give one mesh for all places, "
                "or one for each"
            )

    @property
    def meshes(self) -> tuple[Mesh, ...]:
        """The mesh of every place."""
        return (self.mesh,) * self.places if isinstance(self.mesh, Mesh) else self.mesh

    @property
    def is_uniform(self) -> bool:
        """Whether all places have the same mesh."""
        return len({mesh.sizes for mesh in self.meshes}) <= 1

    @property
    def num_devices(self) -> int:
        return sum(mesh.num_devices for mesh in self.meshes)

    @property
    def counts(self) -> str:
        """The devices of the places, in words."""
        counts = [mesh.num_devices for mesh in self.meshes]
        if self.is_uniform:
            return f"{counts[0]} devices each"
        return f"{'+'.join(map(str, counts))} devices"
