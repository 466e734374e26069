"""What one op, one collective and one update cost: the figures that the search's bounds rest on."""

from __future__ import annotations

import pytest

from cost_models.cluster import load_cluster
from planner.strategy.costing import Costing


@pytest.mark.parametrize(
    ("num_devices", "sizes", "classes"),
    [
        (8, (4, 2), {(0,): "node", (1,): "node", (0, 1): "node"}),
        (16, (2, 8), {(0,): "network", (1,): "node", (0, 1): "network"}),
        (16, (8, 2), {(0,): "network", (1,): "node", (0, 1): "network"}),
        (16, (4, 4), {(0,): "network", (1,): "node"}),
        (16, (16, 1), {(0,): "network", (1,): "node"}),
    ],
)
def test_an_axis_runs_over_the_network_if_any_of_its_groups_crosses_nodes(
    num_devices: int, sizes: tuple[int, ...], classes: dict[tuple[int, ...], str]
) -> None:
    """Ranks are laid on nodes of eight in row-major order: the last axis varies fastest."""
    costing = Costing(load_cluster("dgx-h100", num_devices=num_devices), sizes, "adam", 1.0)
    assert {axes: costing.messages.link_class(axes) for axes in classes} == classes
