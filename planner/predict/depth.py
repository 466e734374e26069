"""Extrapolates the prediction of a deep program from two shallow ones of the same model.

A table does not grow with depth, but a program does: lowering and simulating 126 layers takes
seconds, for each of a dozen candidates. The blocks of a stack are alike, so time and memory grow by
the same amount for each further one, apart from buckets of gradients that are not full. So
candidates are ranked by linear extrapolation from two shallow programs; the plan that is reported
is lowered and simulated whole.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from cost_models.machine import Cluster
from planner.dims.ties import pattern_of
from planner.graph.layout import Mesh
from planner.lowering.lower import lower
from planner.predict.predict import CATEGORIES, Prediction, predict
from planner.program.program import Program
from planner.strategy.choices import read_choices
from planner.strategy.cost_table import CostTable
from planner.strategy.message_costs import BUCKET_BYTES
from planner.strategy.recompute import readings_in
from planner.strategy.traced_model import Model, Use, UseGroups
from planner.strategy.update_costs import total_gradient_bytes

__all__ = ["Shallow", "fits_together"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shallow:
    """The model at two smaller depths, and its full depth."""

    models: tuple[Model, Model]
    depths: tuple[int, int]
    depth: int

    def predict(
        self,
        table: CostTable,
        choice: tuple[int, ...],
        mesh: Mesh,
        cluster: Cluster,
        *,
        recast: bool,
    ) -> tuple[Program, Prediction]:
        """The program at the larger of the two depths, and the prediction extrapolated to the full
        depth."""
        small, large = (total_gradient_bytes(model.graph) for model in self.models)
        block = (large - small) / (self.depths[1] - self.depths[0])
        programs = [
            self._lowered(table, choice, mesh, model, block, recast) for model in self.models
        ]
        return programs[1], self._extrapolated_from(
            *(predict(program, cluster) for program in programs)
        )

    def _lowered(
        self,
        table: CostTable,
        choice: tuple[int, ...],
        mesh: Mesh,
        model: Model,
        block: float,
        recast: bool,
    ) -> Program:
        """The program at one depth. A bucket takes at most the gradients of one `block`: if a
        shallow model did not fill a bucket, extrapolation would assume that nothing is sent before
        the end."""
        again = table.may_run_again
        groups = _groups(table.readings.groups)
        hubs = {
            key: table.hub_of[alike[0][:2]]
            for key, alike in groups.items()
            if alike[0][:2] in table.hub_of
        }
        hub_of = {
            (v, phase): hubs[key]
            for key, alike in _groups(readings_in(model, again).groups).items()
            if key in hubs
            for v, phase, _ in alike
        }
        choices = read_choices(replace(table, model=model, hub_of=hub_of), choice)
        bucket = max(BUCKET_BYTES, min(choices.bucket, int(block)))
        return lower(model, mesh, replace(choices, bucket=bucket, recast=recast), table.costing)

    def _extrapolated_from(self, first: Prediction, second: Prediction) -> Prediction:
        steps = (self.depth - self.depths[1]) / (self.depths[1] - self.depths[0])

        def line(a: float, b: float) -> float:
            return max(0.0, b + (b - a) * steps)

        return Prediction(
            step_time_s=line(first.step_time_s, second.step_time_s),
            compute_time_s=line(first.compute_time_s, second.compute_time_s),
            exposed_communication_time_s=line(
                first.exposed_communication_time_s, second.exposed_communication_time_s
            ),
            idle_time_s=line(first.idle_time_s, second.idle_time_s),
            memory_bytes={
                name: round(line(first.memory_bytes[name], second.memory_bytes[name]))
                for name in CATEGORIES
            },
            shared_memory_bytes=round(line(first.shared_memory_bytes, second.shared_memory_bytes)),
        )


def fits_together(whole: Model, shallow: Model) -> bool:
    """Whether the two have the same classes of ops, parameters and readings, so that a choice
    for one is a choice for the other."""
    distinct = all(
        len(_groups(model.use_groups)) == len(model.use_groups) for model in (whole, shallow)
    )
    return (
        distinct
        and _classes(whole) == _classes(shallow)
        and _groups(whole.use_groups).keys() == _groups(shallow.use_groups).keys()
    )


def _groups(groups: UseGroups) -> dict[Hashable, list[tuple[int, str, list[Use]]]]:
    """Groups of readings by their distinct readers: a value that all blocks read has more of the
    same readers in a deeper model."""
    return {(*key[:2], frozenset(key[2])): alike for key, alike in groups.items()}


def _classes(model: Model) -> Hashable:
    nodes, parameters = model.graph.nodes, model.graph.parameters
    ops = tuple(
        (nodes[n[0]].op, nodes[n[0]].phase, pattern_of(nodes[n[0]].path))
        for n in model.ties.nodes_of
    )
    return ops, tuple(pattern_of(parameters[p[0]].name) for p in model.ties.parameters_of)
