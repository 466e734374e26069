"""Hardware files: all load, every figure has a source, every mistake is named, what is written
reads back."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cost_models.cluster import load_cluster, load_device, parse_cluster
from cost_models.cluster_text import cluster_text, write_cluster
from cost_models.device import ElementwiseRow, GemmRow
from cost_models.errors import BadHardware, BadValue, UnknownName
from cost_models.hardware_toml import list_clusters, list_devices
from cost_models.machine import Cluster, CollectiveRow

HARDWARE = Path(__file__).parents[2] / "cost_models" / "hardware"
FILES = sorted(HARDWARE.glob("*/*.toml"))


def numbers(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name within the file, last part of it) of every number, or list of numbers, of a file."""
    for key, value in table.items():
        if key in ("sources", "provenance"):
            continue
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value:
                yield from numbers(row, f"{prefix}{key}.{row['name']}.")
        elif isinstance(value, int | float | list):
            yield f"{prefix}{key}", key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_a_source(path: Path) -> None:
    table = tomllib.loads(path.read_text())
    sources = table["sources"]
    for full, key in numbers(table):
        parent = full.rpartition(".")[0]
        table_name = parent.rpartition(".")[2]
        assert any(len(sources.get(name, "")) > 8 for name in (full, key, parent, table_name)), (
            f"{full} has no source"
        )


@pytest.mark.parametrize("name", list_clusters())
def test_clusters_load_under_their_file_name(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.num_devices == cluster.devices_per_node
    assert cluster.device.name in list_devices()


def test_the_shelf() -> None:
    assert {"h100-sxm", "h200", "a100-40gb", "a100-80gb", "v100", "l4", "cpu-core"} <= set(
        list_devices()
    )
    assert {
        "dgx-h100",
        "dgx-h200",
        "dgx-a100",
        "dgx-a100-40gb",
        "gb200-nvl72",
        "h100-roce-24k",
        "h100-spectrum-100k",
        "p3.16xlarge",
        "g6.48xlarge",
        "cpu",
    } <= set(list_clusters())


def test_units_end_in_the_loader() -> None:
    device = load_device("a100-80gb")
    assert device.memory == round(79.15 * 2**30)
    assert device.memory_bandwidth == pytest.approx(2.039e12)
    assert device.peak("bf16") == pytest.approx(312e12)
    assert device.kernel_overhead == pytest.approx(2.5e-6)
    assert device.usable_memory == device.memory - 2 * 2**30


def edited(tmp_path: Path, old: str, new: str, name: str = "dgx-h100") -> Path:
    """A copy of a shipped cluster, device and library inline, with one edit."""
    path = tmp_path / "mine.toml"
    write_cluster(path, load_cluster(name), provenance={}, sources={})
    text = path.read_text()
    assert old in text, text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_sms = 132\n", "", r"mine.toml \[device\]: missing key 'num_sms', needed: .*num_sms"),
        ("num_sms = 132", "num_sm = 132", r"\[device\]: unknown key 'num_sm', known: .*num_sms"),
        ("num_sms = 132", "num_sms = -1", r"\[device\]: num_sms must be positive, got -1"),
        ("num_sms = 132", "num_sms = 1.5", r"num_sms must be a whole number, got 1.5"),
        ("num_sms = 132", 'num_sms = "many"', r"num_sms must be a number, got 'many'"),
        ("num_sms = 132", "num_sms = true", r"num_sms must be a number, got True"),
        ("num_sms = 132", "num_sms = nan", r"num_sms must be a number, got nan"),
        ("overlap = 0.81", "overlap = 1.5", r"overlap must be between 0 and 1, got 1.5"),
        (
            "reserved_memory_gib = 2.0",
            "reserved_memory_gib = 200",
            r"reserved_memory .* leaves nothing of its memory",
        ),
        ("fp32 = 67.0", "fp33 = 67.0", r"unknown peak of 'fp33': did you mean 'fp32'"),
        ("fp32 = 67.0\n", "", r"needs a peak for fp32"),
        ("softmax = 0.66", "softmacks = 0.66", r"unknown efficiency of kind 'softmacks'"),
        ("gemm_tiles = [", "gemm_tiles = [[1]", r"not a TOML file"),
        (
            "devices_per_node = 8",
            "devices_per_node = 0",
            r"devices_per_node must be positive, got 0",
        ),
        ("devices_per_node = 8", "gpus = 8", r"unknown key 'gpus', known: .*devices_per_node"),
        ("[intra]", "[inside]", r"unknown key 'inside'"),
        (
            'fabric = "switch"',
            'fabric = "ring"',
            r"mine.toml: unknown fabric 'ring', known: switch, mesh, host",
        ),
        (
            'fabric = "switch"',
            'fabric = "mesh"',
            r"the fabric 'mesh' needs links and other fabrics take none",
        ),
        (
            "nics_per_node = 8",
            "nics_per_node = 0",
            r"\[inter\]: nics_per_node must be positive, got 0",
        ),
        (
            'algorithm = "tree"',
            'algorithm = "bush"',
            r"unknown algorithm 'bush', known: ring, tree",
        ),
        (
            'algorithm = "pairwise"',
            'algorithm = "ring"',
            r"needs at least one protocol of the algorithm 'pairwise'",
        ),
        (
            "bandwidth_share = 0.25",
            "bandwidth_share = 2",
            r"bandwidth_share must be in \(0, 1\], got 2",
        ),
        ("[device]", "[devices]", r"unknown key 'devices'"),
        ("rails = true", 'rails = "yes"', r"levels 1: rails must be true or false, got 'yes'"),
        ("nodes = 32, ", "", r"levels 1: missing key 'nodes', needed: name, nodes"),
        (
            "rails = true",
            "oversubscription = 0.5",
            r"level 'scalable unit': oversubscription is 0.5: give how many times",
        ),
        (
            "rails = true",
            'rails = true }, { name = "pod", nodes = 48',
            r"level 'pod' has blocks of 48 nodes, which are not several blocks of level 'scalable "
            r"unit', of 32",
        ),
    ],
)
def test_bad_files_name_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(BadHardware, match=message) as caught:
        load_cluster(str(edited(tmp_path, old, new)))
    assert "mine.toml" in str(caught.value)


#: `[0, 1, 1]` as it is written.
FIRST_LINK = tomli_w.dumps({"links": [[0, 1, 1]]}).split("[", 2)[2].split("]")[0]


def test_bad_links_of_a_mesh(tmp_path: Path) -> None:
    with pytest.raises(BadHardware, match="a link must be"):
        load_cluster(
            str(edited(tmp_path, FIRST_LINK, FIRST_LINK.replace("1,", "", 1), "p3.16xlarge"))
        )
    with pytest.raises(BadHardware, match=r"link \[0, 9, 1\] is not between two of the 8 devices"):
        load_cluster(
            str(edited(tmp_path, FIRST_LINK, FIRST_LINK.replace("1", "9", 1), "p3.16xlarge"))
        )
    with pytest.raises(BadHardware, match="needs host_bandwidth_gb_s"):
        load_cluster(str(edited(tmp_path, "host_bandwidth_gb_s = 10.0\n", "", "p3.16xlarge")))


def test_bad_rows_of_a_measured_table(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        "max_nodes = 2048\n",
        'max_nodes = 2048\ncollective_table = [["all_reduce", 2, 1, 1024]]\n',
    )
    with pytest.raises(
        BadHardware, match=r"a row of collective_table must be \[string, positive number"
    ):
        load_cluster(str(path))
    path = edited(
        tmp_path,
        "max_nodes = 2048\n",
        'max_nodes = 2048\ncollective_table = [["all_produce", 2, 1, 1024, 1e-3]]\n',
    )
    with pytest.raises(
        BadHardware, match="unknown collective 'all_produce': did you mean 'all_reduce'"
    ):
        load_cluster(str(path))


def test_missing_files_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(BadHardware, match=r"nowhere.toml: cannot be read \(No such file"):
        load_cluster(str(tmp_path / "nowhere.toml"))
    with pytest.raises(UnknownName, match="unknown hardware 'dgx-h10': did you mean 'dgx-h100'"):
        load_cluster("dgx-h10")
    with pytest.raises(UnknownName, match="unknown device 'h100'"):
        load_device("h100")
    with pytest.raises(UnknownName, match="unknown device 'h1000'"):
        load_cluster(str(edited_reference(tmp_path, 'device = "h100-sxm"', 'device = "h1000"')))


def edited_reference(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "reference.toml"
    path.write_text((HARDWARE / "clusters" / "dgx-h100.toml").read_text().replace(old, new))
    return path


def test_a_cluster_may_name_its_device(tmp_path: Path) -> None:
    assert load_cluster(
        str(edited_reference(tmp_path, 'device = "h100-sxm"', 'device = "l4"'))
    ).device == load_device("l4")


def measured() -> Cluster:
    cluster = load_cluster("cpu")
    device = replace(
        cluster.device,
        gemm_table=(GemmRow(batch=1, m=64, n=64, k=64, dtype="float32", seconds=1.25e-5),),
        elementwise_table=(
            ElementwiseRow(nbytes=4096.0, bandwidth=1e9),
            ElementwiseRow(nbytes=65536.0, bandwidth=4e9),
        ),
    )
    row = CollectiveRow(kind="all_reduce", group_size=2, num_groups=1, nbytes=1024.0, seconds=1e-4)
    return replace(cluster, device=device, collective_table=(row,))


@pytest.mark.parametrize(
    "cluster",
    [measured(), load_cluster("p3.16xlarge"), load_cluster("dgx-h100")],
    ids=lambda c: str(c.name),
)
def test_written_clusters_read_back(tmp_path: Path, cluster: Cluster) -> None:
    path = tmp_path / "written.toml"
    write_cluster(
        path,
        cluster,
        provenance={"date": "2026-01-01", "command": 'plan "x"\n'},
        sources={"a.b": "c"},
    )
    table = tomllib.loads(path.read_text())
    assert table["provenance"] == {"date": "2026-01-01", "command": 'plan "x"\n'}
    assert table["sources"] == {"a.b": "c"}
    once = load_cluster(str(path))
    assert once.device.gemm_table == cluster.device.gemm_table
    assert once.collective_table == cluster.collective_table
    assert once.intra.links == cluster.intra.links
    assert once.device.memory == cluster.device.memory
    assert once.device.memory_bandwidth == pytest.approx(cluster.device.memory_bandwidth, rel=1e-12)
    assert once.library.protocols[0].hop_latency[0][1] == pytest.approx(
        cluster.library.protocols[0].hop_latency[0][1], rel=1e-12
    )
    assert [p.name for p in path.parent.iterdir()] == ["written.toml"], "the temporary file is gone"


def test_writing_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(
        BadValue, match=r"written.toml cannot be written: No such file or directory"
    ):
        write_cluster(
            tmp_path / "nowhere" / "written.toml", load_cluster("cpu"), provenance={}, sources={}
        )


@pytest.mark.parametrize("name", list_clusters())
def test_the_text_of_a_cluster_is_the_cluster(name: str) -> None:
    cluster = load_cluster(name, num_devices=12)
    again = parse_cluster(
        cluster_text(cluster, provenance={}, sources={}),
        "plan",
        num_devices=12,
        num_nodes=cluster.num_nodes,
    )
    assert again == cluster, "to the last bit: a plan is costed again on it"


def test_a_text_that_is_no_cluster() -> None:
    with pytest.raises(BadHardware, match=r"plan.json: not TOML"):
        parse_cluster("[", "plan.json", num_devices=1, num_nodes=1)
