"""Pictures of clusters are PNG files, whatever the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cost_models.cluster import load_cluster
from cost_models.errors import BadValue
from cost_models.topology_picture import draw_cluster


@pytest.mark.parametrize(
    ("name", "devices"),
    [("dgx-h100", 64), ("p3.16xlarge", 16), ("p3.16xlarge", 5), ("cpu", 40), ("dgx-h100", 1)],
)
def test_pictures(tmp_path: Path, name: str, devices: int) -> None:
    path = tmp_path / "cluster.png"
    draw_cluster(load_cluster(name, num_devices=devices), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="cannot be written"):
        draw_cluster(load_cluster("cpu", num_devices=2), tmp_path / "nowhere" / "cluster.png")
