"""Measured calls and contention: exact where measured, closed forms between, and what a file
must not say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.cluster import load_cluster
from cost_models.cluster_text import write_cluster
from cost_models.device import OpRow
from cost_models.errors import BadHardware
from cost_models.machine import ContentionRow
from cost_models.roofline import op_time

CPU = load_cluster("cpu")


def row(
    op: str, kind: str, nbytes: float, seconds: float, flops: float = 1.0, dtype: str = "float32"
) -> OpRow:
    return OpRow(
        op=op,
        kind=kind,
        dtype=dtype,
        flops=flops,
        nbytes=nbytes,
        gemm=(1, 1, 1, 1),
        steps=1,
        seconds=seconds,
    )


ADDS = (
    row("add", "elementwise", 1e3, 1e-6),
    row("add", "elementwise", 1e5, 1e-4),
    row("elementwise", "elementwise", 1e3, 5e-6),
)
MEASURED = replace(CPU.device, op_table=(*ADDS, row("conv", "conv", 1e6, 3e-3, flops=1e9)))


def seconds(
    op: str, nbytes: float, kind: str = "elementwise", dtype: str = "float32", flops: float = 1.0
) -> float:
    return op_time(MEASURED, kind=kind, flops=flops, nbytes=nbytes, dtype=dtype, op=op)


def test_a_measured_call_takes_what_was_measured() -> None:
    assert seconds("add", 1e5) == pytest.approx(1e-4)
    assert seconds("conv", 1e6, kind="conv", flops=1e9) == pytest.approx(3e-3)


def test_between_measured_sizes_the_curve_is_a_power_of_the_bytes() -> None:
    assert seconds("add", 1e4) == pytest.approx(1e-5)


def test_below_the_smallest_size_it_is_flat_and_above_the_largest_in_proportion() -> None:
    assert seconds("add", 1.0) == pytest.approx(1e-6)
    assert seconds("add", 5e5) == pytest.approx(5e-4)


def test_another_dtype_takes_the_curve_in_float32_and_another_op_that_of_its_kind() -> None:
    assert seconds("add", 1e5, dtype="float64") == pytest.approx(1e-4)
    assert seconds("mul", 1e3) == pytest.approx(5e-6)


def test_twice_the_flops_of_a_measured_convolution_take_twice_its_roofline() -> None:
    plain = [
        op_time(CPU.device, kind="conv", flops=f, nbytes=1e6, dtype="float32") for f in (1e9, 2e9)
    ]
    assert seconds("conv", 1e6, kind="conv", flops=2e9) == pytest.approx(3e-3 * plain[1] / plain[0])


@given(st.floats(1.0, 1e9), st.floats(1.0, 1e9))
def test_more_bytes_never_take_less_time(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert seconds("add", low) <= seconds("add", high) * (1 + 1e-9)


def at_once(num_devices: int, *rows: tuple[int, float]) -> float:
    table = tuple(ContentionRow(num_devices=n, kind="gemm", slowdown=s) for n, s in rows)
    return replace(CPU, num_devices=num_devices, node_width=num_devices, contention=table).slowdown(
        "gemm"
    )


def test_alone_or_unmeasured_nothing_is_slowed() -> None:
    assert at_once(1, (2, 1.5)) == 1.0
    assert at_once(4) == 1.0
    assert (
        replace(
            CPU, contention=(ContentionRow(num_devices=2, kind="conv", slowdown=3.0),)
        ).slowdown("gemm")
        == 1.0
    )


def test_contention_is_log_log_between_and_in_proportion_beyond() -> None:
    assert at_once(2, (2, 1.5), (8, 6.0)) == pytest.approx(1.5)
    assert at_once(4, (2, 1.5), (8, 6.0)) == pytest.approx(math.sqrt(1.5 * 6.0))
    assert at_once(4, (2, 1.5)) == pytest.approx(3.0)
    assert at_once(3, (1, 1.0)) == pytest.approx(3.0)


def test_a_file_keeps_both_tables(tmp_path: Path) -> None:
    cluster = replace(
        CPU,
        device=replace(MEASURED, step_overhead=1e-3),
        contention=(ContentionRow(num_devices=2, kind="gemm", slowdown=1.5),),
    )
    write_cluster(tmp_path / "here.toml", cluster, provenance={}, sources={})
    found = load_cluster(str(tmp_path / "here.toml"))
    assert (found.device.op_table, found.contention) == (
        cluster.device.op_table,
        cluster.contention,
    )
    assert found.device.step_overhead == pytest.approx(1e-3)


def test_rows_of_unknown_kinds_are_refused() -> None:
    with pytest.raises(BadHardware, match="op_table: unknown kind of op 'gem'"):
        row("mm", "gem", 1.0, 1.0)
    with pytest.raises(BadHardware, match="contention: unknown kind of op"):
        ContentionRow(num_devices=2, kind="matmul", slowdown=1.0)


def test_fused_kernels_slow_down_as_elementwise_ones_until_they_are_measured() -> None:
    rows = (
        ContentionRow(num_devices=2, kind="elementwise", slowdown=1.5),
        ContentionRow(num_devices=2, kind="fused", slowdown=1.25),
    )
    for table, slowdown in ((rows[:1], 1.5), (rows, 1.25)):
        two = replace(CPU, num_devices=2, node_width=2, contention=table)
        assert two.slowdown("fused") == pytest.approx(slowdown)
