"""Thousands of devices cost what a handful costs: the same instructions, simulated once."""

from __future__ import annotations

import pytest
from small_plans import ask_for, planned

from cost_models.cluster import load_cluster
from cost_models.group_cells import groups_of
from planner.predict.predict import prediction_of, run_of
from planner.search.meshes import meshes_of


def test_a_plan_of_many_devices_is_simulated_as_one_of_a_few() -> None:
    """Data and tensor parallelism, eight samples for each node: a device does the same on 8 nodes
    as on 12,544, and only messages over nodes take longer."""
    runs = []
    for count in (64, 100352):
        cluster = load_cluster("h100-spectrum-100k", num_devices=count)
        made = planned(ask_for("mlp", count, batch=count), f"dp={count // 8},tp=8", cluster=cluster)
        runs.append((made.program, run_of(made.program, cluster)))
    (few, short), (many, long) = runs
    assert [one.id for one in many.instructions] == [one.id for one in few.instructions]
    assert len(long.timeline.events) == len(short.timeline.events)
    assert long.memory.peak == short.memory.peak
    parts = [prediction_of(run) for run in (short, long)]
    assert parts[1].compute_time_s == pytest.approx(parts[0].compute_time_s)
    assert parts[1].step_time_s > parts[0].step_time_s


def test_the_meshes_of_many_devices() -> None:
    """As on 64 devices: a mesh for each size of axis inside a node and between nodes."""
    sizes = {mesh.sizes for mesh in meshes_of(load_cluster("dgx-h100", num_devices=16384))}
    assert {(16384,), (2048, 8), (256, 8, 8)} <= sizes
    assert len(sizes) < 30
    for mesh in sizes:
        for axis in range(len(mesh)):
            assert groups_of(mesh, (axis,), width=8).ranks.size <= 512
