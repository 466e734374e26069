"""A calibration in a few seconds, the file that it writes, and the fit from figures to a cluster
in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cost_models.cluster import load_cluster, read_sources
from cost_models.device import GemmRow, OpRow
from cost_models.errors import BadHardware, BadValue
from cost_models.machine import Cluster, CollectiveRow
from cost_models.roofline import op_time
from runtime.calibrate import calibrate as calibration
from runtime.calibrate.calibrate import calibrate, calibrated_path, this_machine
from runtime.calibrate.case import row_of
from runtime.calibrate.cases import cases
from runtime.calibrate.measured import Measured
from runtime.calibrate.products import gemm_case
from runtime.calibrate.to_cluster import fit
from runtime.calibrate.unmeasured import shipped_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, Path, list[float]]:
    path = tmp_path_factory.mktemp("hardware") / "here.toml"
    done: list[float] = []
    return (
        calibrate(
            path,
            device="cpu",
            max_ranks=2,
            quick=True,
            progress=lambda what, share: done.append(share),
        ),
        path,
        done,
    )


def test_the_file_reads_back_as_the_cluster(calibrated: tuple[Cluster, Path, list[float]]) -> None:
    cluster, path, done = calibrated
    found = load_cluster(str(path), num_devices=2)
    assert found.device.op_table == cluster.device.op_table
    assert found.collective_table == cluster.collective_table
    assert found.device.peak("fp32") == pytest.approx(cluster.device.peak("fp32"))
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_every_table_is_filled_and_has_a_source(
    calibrated: tuple[Cluster, Path, list[float]],
) -> None:
    cluster, path, _ = calibrated
    assert {row.kind for row in cluster.collective_table} == {
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "send",
    }
    (size,) = {row.group_size for row in cluster.collective_table if row.kind == "send"}
    assert size == 2
    assert {row.dtype for row in cluster.device.gemm_table} == {"float32", "float64", "bfloat16"}
    assert {
        "conv",
        "attention",
        "lstm",
        "elementwise",
        "norm",
        "softmax",
        "embedding",
        "reduction",
        "copy",
        "optimizer",
    } <= {row.kind for row in cluster.device.op_table}
    assert 0 < cluster.device.kernel_overhead < 1e-3
    assert {"gemm_table", "op_table", "contention", "collective_table"} <= read_sources(
        str(path)
    ).keys()


def test_provenance_names_no_host_and_no_path(
    calibrated: tuple[Cluster, Path, list[float]],
) -> None:
    import socket

    text = calibrated[1].read_text()
    assert 'command = "plan calibrate"' in text
    assert torch.__version__ in text
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text


def test_a_row_counts_work_as_the_planners_rules_do() -> None:
    product = gemm_case((8, 4, 2), torch.float32, CPU)
    assert row_of(product, product.make(), 1.0) == OpRow(
        op="aten.mm.default",
        kind="gemm",
        dtype="float32",
        flops=2.0 * 8 * 4 * 2,
        nbytes=4.0 * (16 + 8 + 32),
        gemm=(1, 8, 4, 2),
        steps=1,
        seconds=1.0,
    )
    lstm = next(case for case in cases(CPU, quick=True) if case.op == "shardwright.lstm_backward")
    found = row_of(lstm, lstm.make(), 1.0)
    assert (found.kind, found.steps, found.gemm) == ("lstm", 16, (1, 8, 64, 16))


def test_all_cases_run_and_are_known_to_the_rules() -> None:
    small = {case.op: case for case in reversed(cases(CPU))}
    rows = [row_of(case, case.make(), 1.0) for case in small.values()]
    assert len(rows) > 20
    assert all(row.nbytes > 0 and row.dtype == "float32" for row in rows)


def figures() -> Measured:
    ops = [
        OpRow(
            op=op,
            kind="elementwise",
            dtype="float32",
            flops=1,
            nbytes=n,
            gemm=(1, 1, 1, 1),
            steps=1,
            seconds=1e-6 + n / 1e10,
        )
        for op in ("aten.add.Tensor", "aten.mul.Tensor")
        for n in (1e4, 1e6)
    ]
    gemms = [
        GemmRow(batch=1, m=100, n=100, k=100, dtype="float32", seconds=t) for t in (1e-4, 2e-4)
    ]
    collectives = [
        CollectiveRow(kind="all_reduce", group_size=2, num_groups=1, nbytes=n, seconds=s)
        for n, s in ((1e3, 4e-4), (1e4, 1e-4), (1e5, 1e-3))
    ]
    return Measured(
        ops=tuple(ops),
        gemms=tuple(gemms),
        shared=((2, "elementwise", 1.0), (2, "elementwise", 4.0), (2, "gemm", 0.5)),
        collectives=tuple(collectives),
        op_overhead=1e-6,
        step_overhead=2e-4,
    )


def test_fit_in_closed_form() -> None:
    cluster = fit(figures(), load_cluster("cpu"))
    device = cluster.device
    assert device.peak("fp32") == pytest.approx(2e6 / 1e-4)
    assert device.memory_bandwidth == pytest.approx(1e10)
    assert (device.kernel_overhead, device.step_overhead, device.overlap) == (1e-6, 2e-4, 0.0)
    assert op_time(
        device, kind="elementwise", flops=0, nbytes=1e6, dtype="float32", op="aten.add.Tensor"
    ) == pytest.approx(1.01e-4)
    pair = replace(cluster, num_devices=2, node_width=2)
    # sqrt(1 * 4).
    assert pair.slowdown("elementwise") == pair.slowdown("optimizer") == pytest.approx(2.0)
    assert pair.slowdown("gemm") == 1.0  # nothing is faster in company
    assert replace(cluster, num_devices=4, node_width=4).slowdown("elementwise") == pytest.approx(
        4.0
    )


def test_collectives_are_made_to_rise_with_their_bytes() -> None:
    seconds = [row.seconds for row in fit(figures(), load_cluster("cpu")).collective_table]
    assert seconds == pytest.approx([2e-4, 2e-4, 1e-3])


def test_on_one_core_ranks_take_turns() -> None:
    cluster = fit(replace(figures(), shared=()), load_cluster("cpu"))
    assert replace(cluster, num_devices=3, node_width=3).slowdown("gemm") == pytest.approx(3.0)


def test_an_uncalibrated_machine_is_told_to_calibrate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert this_machine() == tmp_path / "shardwright" / "hardware" / "this-machine.toml"
    assert calibrated_path("dgx-h100") == "dgx-h100"
    with pytest.raises(BadHardware, match="run `plan calibrate` first"):
        calibrated_path()


def test_bad_requests() -> None:
    with pytest.raises(BadValue, match="unknown device 'tpu'"):
        calibrate(device="tpu")
    with pytest.raises(BadValue, match="number of ranks is 0"):
        calibrate(device="cpu", max_ranks=0)
    if not torch.cuda.is_available():
        with pytest.raises(BadValue, match="there is no CUDA device"):
            calibrate(device="cuda")


@pytest.mark.parametrize(
    ("card", "memory", "cluster"),
    [
        ("NVIDIA H100 80GB HBM3", 80, "dgx-h100"),
        ("NVIDIA H200", 141, "dgx-h200"),
        ("NVIDIA A100-SXM4-80GB", 80, "dgx-a100"),
        ("NVIDIA A100-SXM4-40GB", 40, "dgx-a100-40gb"),
        ("Tesla V100-SXM2-16GB", 16, "p3.16xlarge"),
        ("NVIDIA L4", 23, "g6.48xlarge"),
        ("NVIDIA H100 PCIe", 80, ""),
        ("NVIDIA H100 NVL", 94, ""),
        ("NVIDIA A100-PCIE-40GB", 40, ""),
        ("NVIDIA L40S", 45, ""),
        ("NVIDIA A10G", 23, ""),
    ],
)
def test_a_card_has_the_shipped_figures_of_its_name(card: str, memory: int, cluster: str) -> None:
    assert shipped_for(card, memory * 10**9) == cluster
    assert not cluster or load_cluster(cluster, num_devices=1)


def test_fit_on_a_gpu_keeps_the_peaks_that_were_not_measured() -> None:
    base = load_cluster("dgx-h100", num_devices=1)
    gemms = tuple(
        GemmRow(batch=1, m=1000, n=1000, k=1000, dtype=d, seconds=t)
        for d, t in (("float32", 1e-4), ("bfloat16", 4e-6))
    )
    device = fit(replace(figures(), gemms=gemms, shared=()), base).device
    assert device.peak("bf16") == pytest.approx(5e14)
    assert device.peak("fp32") == pytest.approx(2e13)
    assert device.peak("tf32") == pytest.approx(
        base.device.peak("tf32") * 5e14 / base.device.peak("bf16")
    )
    assert (device.launch_overhead, device.kernel_overhead) == (1e-6, base.device.kernel_overhead)
    assert device.memory_bandwidth == pytest.approx(1e6 / (1.01e-4 - base.device.kernel_overhead))


def test_the_file_of_a_gpu_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the measuring, which needs one."""
    card = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", total_memory=85_000_000_000, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: card.name)
    bf16 = GemmRow(batch=1, m=1000, n=1000, k=1000, dtype="bfloat16", seconds=4e-6)
    found = replace(figures(), gemms=(*figures().gemms, bf16), shared=(), collectives=())
    monkeypatch.setattr(calibration, "launch", lambda *args, **kwargs: [found])
    written = calibrate(tmp_path / "gpu.toml", device="cuda", max_ranks=4)
    read = load_cluster(str(tmp_path / "gpu.toml"), num_devices=1)
    assert (read.device.name, read.device.memory, read.devices_per_node) == (
        card.name,
        card.total_memory,
        1,
    )
    assert read.device.op_table == written.device.op_table


@pytest.mark.gpu
def test_calibrating_a_gpu(tmp_path: Path) -> None:
    cluster = calibrate(tmp_path / "gpu.toml", device="cuda", max_ranks=1, quick=True)
    assert cluster.device.name == torch.cuda.get_device_name(0)
    assert cluster.device.launch_overhead > 0
    assert load_cluster(str(tmp_path / "gpu.toml")).device.op_table == cluster.device.op_table
