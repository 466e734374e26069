"""The graph of one microbatch, made from the graph of the whole batch."""

from planner.microbatch.accumulated import accumulated_in
from planner.microbatch.possible import check_microbatches, possible_microbatches
from planner.microbatch.refused import CannotSplit, with_line
from planner.microbatch.split import check_globs, microbatch_graph

__all__ = [
    "CannotSplit",
    "accumulated_in",
    "check_globs",
    "check_microbatches",
    "microbatch_graph",
    "possible_microbatches",
    "with_line",
]
