"""The stages of a pipeline: the graph of a microbatch, cut into one graph for each of them."""

from planner.stages.assign import Assigned, CannotCut, assigned
from planner.stages.cut import Crossing, Cut, StageGraph, stage_graphs
from planner.stages.units import Unit, units_of

__all__ = [
    "Assigned",
    "CannotCut",
    "Crossing",
    "Cut",
    "StageGraph",
    "Unit",
    "assigned",
    "stage_graphs",
    "units_of",
]
