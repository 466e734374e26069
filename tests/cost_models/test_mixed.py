"""Clusters of unlike nodes: their file, slices of one kind, the ways between kinds, bad files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from measurements import DATA

from cost_models.cluster import load_cluster
from cost_models.errors import BadHardware, BadValue, UnknownName
from cost_models.hardware_toml import list_mixed
from cost_models.machine import Cluster
from cost_models.mixed import MixedCluster
from cost_models.mixed_file import load_machine, load_mixed
from cost_models.point_to_point import links_between

TWO = """
name = "two"
library = "nccl"

[[nodes]]
name = "fast"
count = 2
cluster = "dgx-a100-40gb"

[[nodes]]
name = "slow"
count = 1
device = "titan-rtx"
devices_per_node = 4

[nodes.intra]
fabric = "host"
link = "pcie"
bandwidth_gb_s = 12
efficiency = 0.8
overhead_us = 20.0

[nodes.inter]
link = "ethernet"
nics_per_node = 1
bandwidth_gb_s = 1.25
efficiency = 0.8
overhead_us = 40.0

[[bridges]]
groups = ["slow", "fast"]
link = "ethernet"
bandwidth_gb_s = 1.0
latency_us = 10.0
"""


def written(folder: Path, old: str = "", new: str = "") -> str:
    assert old in TWO
    path = folder / "two.toml"
    path.write_text(TWO.replace(old, new, 1))
    return str(path)


@pytest.mark.parametrize("name", list_mixed())
def test_shipped_files_load_under_their_names(name: str) -> None:
    machine = load_machine(name)
    assert isinstance(machine, MixedCluster) and machine.name == name
    assert machine.num_devices == sum(group.num_devices for group in machine.groups)


def test_two_a100_nodes_and_one_v100_node() -> None:
    machine = load_mixed("a100-v100")
    assert [group.device.name for group in machine.groups] == ["a100-40gb", "v100"]
    assert (machine.num_devices, machine.starts) == (24, (0, 16))
    assert [machine.group_of(device) for device in (0, 15, 16, 23)] == [0, 0, 1, 1]
    stages = [machine.slice(8 * index, 8) for index in range(3)]
    assert stages[0] == stages[1] == replace(load_cluster("gcp-a100"), name="a100")
    assert stages[2] == replace(load_cluster("gcp-v100"), name="v100")


def test_a_file_with_both_forms_of_nodes(tmp_path: Path) -> None:
    machine = load_machine(written(tmp_path))
    assert isinstance(machine, MixedCluster)
    assert [group.name for group in machine.groups] == ["fast", "slow"]
    assert (machine.num_devices, machine.groups[1].library.name) == (20, "nccl")
    bridge = machine.bridge(1, 0)
    assert (bridge.groups, bridge.link, bridge.bandwidth) == ((0, 1), "ethernet", 1e9)
    assert links_between(machine, 12, 16, 4).time(1e9) == pytest.approx(4.0, rel=1e-3)


def test_the_first_devices_of_a_mixed_cluster() -> None:
    part = load_mixed("a100-v100", num_devices=20)
    assert [group.num_devices for group in part.groups] == [16, 4]
    one = load_mixed("a100-v100", num_devices=4)
    assert [group.num_devices for group in one.groups] == [4]
    for count in (0, 25, 1.5):
        with pytest.raises(BadValue, match=f"'a100-v100' has 1 to 24 devices, but {count!r} were"):
            load_mixed("a100-v100", num_devices=count)  # type: ignore[arg-type]


def test_files_of_one_kind_are_clusters(tmp_path: Path) -> None:
    assert load_machine("dgx-h100", num_devices=64) == load_cluster("dgx-h100", num_devices=64)
    assert isinstance(load_machine("cpu"), Cluster)
    with pytest.raises(UnknownName, match="unknown hardware 'a100-v10': did you mean 'a100-v100'"):
        load_machine("a100-v10")
    with pytest.raises(BadHardware, match=r"two.toml: \[\[nodes\]\] of unlike kinds, which only"):
        load_cluster(written(tmp_path))
    with pytest.raises(BadHardware, match=r"a100-v100: \[\[nodes\]\] of unlike kinds"):
        load_cluster("a100-v100")


def test_slices_of_several_kinds() -> None:
    machine = load_mixed("a100-v100")
    with pytest.raises(
        BadValue,
        match=r"8 devices from device 12 of 'a100-v100' on are of several kinds \(a100-40gb to device "
        r"15, then v100\): a stage has devices of one kind",
    ):
        machine.slice(12, 8)
    for first, count in ((-1, 2), (20, 5), (3, 0)):
        with pytest.raises(BadValue, match=f"{count} from device {first} on are no slice of it"):
            machine.slice(first, count)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'device = "titan-rtx"',
            'device = "titan"',
            "unknown device 'titan': did you mean 'titan-",
        ),
        ('cluster = "dgx-a100-40gb"', 'cluster = "dgx"', "unknown cluster 'dgx'"),
        ("count = 2", "count = 0", "nodes 1: count must be positive, got 0"),
        ("count = 2", "count = 200", "'dgx-a100-40gb' has at most 140 nodes"),
        ("count = 2\n", "", "nodes 1: missing key 'count', needed: name, count"),
        ("count = 2", "count = 2\nintra = 3", "nodes 1: intra beside cluster = 'dgx-a100-40gb'"),
        ('name = "slow"', 'name = "fast"', "two .*nodes.* are called 'fast'"),
        ('"slow", "fast"', '"slow", "fats"', "unknown group of nodes 'fats': did you mean 'fast'"),
        ('"slow", "fast"', '"slow"', "groups must be the names of two .*known: fast, slow"),
        ("[[bridges]]", "[[bridge]]", "unknown key 'bridge', known: .*bridges"),
        (
            TWO[TWO.index("[[bridges]]") :],
            "",
            r"no path between 'fast' \(infiniband\) and 'slow' \(ethernet\): give \[\[bridges\]\]",
        ),
        (TWO[TWO.index("[[nodes]]", 60) :], "", r"1 \[\[nodes\]\]: give one for each kind"),
    ],
)
def test_bad_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises((BadHardware, BadValue, UnknownName), match=message):
        load_mixed(written(tmp_path, old, new))


def test_a_group_without_a_network(tmp_path: Path) -> None:
    cut = TWO[TWO.index("[nodes.inter]") :]
    with pytest.raises(
        BadHardware, match=r"no path between 'fast' \(infiniband\) and 'slow' \(no n"
    ):
        load_mixed(written(tmp_path, cut, ""))


@pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no published measurements at {DATA}; set SHARDWRIGHT_DATA"
)
def test_the_most_that_sailor_measured_between_a100_and_v100() -> None:
    """1, 2 and 4 pairs of an A100 and a V100 on Google's nodes of four devices, which have half of
    the network of those of eight."""
    with (DATA.parent / "sailor" / "network_inter.csv").open(newline="", encoding="utf-8") as file:
        most = {
            int(row["send_count"]): float(row["max_bytes_per_s"])
            for row in csv.DictReader(file)
            if row["send_zone"] == row["recv_zone"] == "us-central1-a"
            and (row["send_gpu"], row["recv_gpu"]) == ("A100-40", "V100-16")
            and row["send_count"] == row["recv_count"]
        }
    machine = load_mixed("a100-v100")
    halved = replace(machine, groups=tuple(map(with_half_a_network, machine.groups)))
    for count, rate in most.items():
        ours = links_between(halved, 8, 16, count).time(1e9)
        assert count * 1e9 / ours == pytest.approx(rate, rel=0.18), count


def with_half_a_network(group: Cluster) -> Cluster:
    assert group.inter is not None
    return replace(group, inter=replace(group.inter, bandwidth=group.inter.bandwidth / 2))
