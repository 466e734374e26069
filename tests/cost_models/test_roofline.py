"""Kernels by hand: each formula once, the errors, and that more work never takes less time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.cluster import load_device
from cost_models.device import ElementwiseRow, GemmRow, OpRow
from cost_models.errors import BadHardware, BadValue, UnknownName
from cost_models.hardware_toml import list_devices
from cost_models.roofline import KINDS, host_time, op_time

#: A device with round figures: 10 SMs, 100 Tflop/s in 16 bits, 1 TB/s, no second-order terms.
ROUND = replace(
    load_device("a100-80gb"),
    name="round",
    num_sms=10,
    memory_bandwidth=1e12,
    memory_efficiency=1.0,
    kernel_overhead=1e-6,
    launch_overhead=5e-6,
    gemm_efficiency=1.0,
    gemm_tiles=((128, 128),),
    gemm_tile_half_area=0.0,
    gemm_half_k=0.0,
    gemm_k_latency=0.0,
    lstm_step_overhead=2e-6,
    peak_flops=(("fp64", 1e12), ("fp32", 1e13), ("tf32", 5e13), ("fp16", 1e14)),
    kind_efficiency=(("conv", 0.5), ("attention", 0.25), ("softmax", 0.5), ("lstm", 0.5)),
)


def gemm(batch: int, m: int, n: int, k: int, dtype: str = "float16", nbytes: float = 0.0) -> float:
    return op_time(
        ROUND,
        kind="gemm",
        flops=2.0 * batch * m * n * k,
        nbytes=nbytes,
        dtype=dtype,
        gemm=(batch, m, n, k),
    )


def test_one_tile_runs_on_one_sm() -> None:
    assert gemm(1, 128, 128, 100) == pytest.approx(1e-6 + 2 * 128 * 128 * 100 / 1e13)


def test_ten_tiles_are_one_wave_and_eleven_are_two() -> None:
    assert gemm(10, 128, 128, 100) == pytest.approx(gemm(1, 128, 128, 100))
    assert gemm(11, 128, 128, 100) - 1e-6 == pytest.approx(2 * (gemm(1, 128, 128, 100) - 1e-6))


def test_a_split_of_k_fills_the_sms_and_pays_for_the_partial_sums() -> None:
    tile = 2 * 128 * 128 * (100_000 / 8) / 1e13
    sums = 1e-6 + 8 * 128 * 128 * 8 / 1e12
    assert gemm(1, 128, 128, 100_000) == pytest.approx(1e-6 + tile + sums)


def test_padding_counts() -> None:
    assert gemm(1, 1, 1, 100) == gemm(1, 128, 128, 100)


def test_halving_n_may_leave_the_time_unchanged() -> None:
    assert gemm(1, 1280, 128, 1000) == gemm(1, 1280, 64, 1000)


def test_a_skinny_product_is_bound_by_its_bytes() -> None:
    assert gemm(1, 1, 128, 128, nbytes=1e9) == pytest.approx(1e-6 + 1e-3)


def test_matrix_products_in_float32_stay_in_fp32_and_convolutions_take_tf32() -> None:
    assert gemm(10, 128, 128, 1000, "float32") == pytest.approx(
        1e-6 + 2 * 128 * 128 * 1000 * 10 / 1e13
    )
    assert op_time(ROUND, kind="conv", flops=1e9, nbytes=0, dtype="float32") == pytest.approx(
        1e-6 + 1e9 / (5e13 * 0.5)
    )
    assert op_time(ROUND, kind="conv", flops=1e9, nbytes=0, dtype="float16") == pytest.approx(
        1e-6 + 1e9 / (1e14 * 0.5)
    )


def test_attention_takes_the_larger_of_flops_and_bytes() -> None:
    assert op_time(ROUND, kind="attention", flops=1e9, nbytes=0, dtype="float16") == pytest.approx(
        1e-6 + 1e9 / (1e14 * 0.25)
    )
    assert op_time(
        ROUND, kind="attention", flops=1e3, nbytes=1e6, dtype="float16"
    ) == pytest.approx(1e-6 + 1e-6)


@pytest.mark.parametrize(
    "kind", ["elementwise", "reduction", "norm", "embedding", "optimizer", "copy"]
)
def test_memory_bound_kernels(kind: str) -> None:
    assert op_time(ROUND, kind=kind, flops=10, nbytes=1e6, dtype="bfloat16") == pytest.approx(
        1e-6 + 1e-6
    )
    assert op_time(ROUND, kind=kind, flops=1e9, nbytes=1, dtype="float64") == pytest.approx(
        1e-6 + 1e9 / 1e12
    )
    assert op_time(ROUND, kind=kind, flops=0, nbytes=1e6, dtype="int64") == pytest.approx(2e-6)


def test_a_kind_may_reach_less_of_the_bandwidth() -> None:
    assert op_time(ROUND, kind="softmax", flops=0, nbytes=1e6, dtype="float32") == pytest.approx(
        1e-6 + 2e-6
    )


def test_an_lstm_is_a_chain_of_steps() -> None:
    shape = (1, 128, 128, 100)
    step = 2e-6 + 2 * 128 * 128 * 100 / 1e13
    inputs = 3e9
    flops = 50 * 2.0 * 128 * 128 * 100 + inputs
    time = op_time(ROUND, kind="lstm", flops=flops, nbytes=0, dtype="float16", gemm=shape, steps=50)
    assert time == pytest.approx(1e-6 + 50 * step + inputs / (1e14 * 0.5))


def test_views_are_free_and_not_dispatched() -> None:
    assert op_time(ROUND, kind="view", flops=0, nbytes=1e9, dtype="float32") == 0.0
    assert host_time(ROUND, "view") == 0.0
    assert host_time(ROUND, "gemm") == 5e-6


def test_a_gemm_without_a_shape_is_a_square_one() -> None:
    assert op_time(ROUND, kind="gemm", flops=2.0 * 1280**3, nbytes=0, dtype="float16") == gemm(
        1, 1280, 1280, 1280
    )


def test_the_smooth_model_without_tiles() -> None:
    smooth = replace(ROUND, gemm_tiles=(), gemm_half_work=1e6, gemm_efficiency=0.5)
    time = op_time(
        smooth, kind="gemm", flops=2e9, nbytes=0, dtype="float16", gemm=(1, 1000, 1000, 1000)
    )
    assert time == pytest.approx(1e-6 + (2e9 + 1e6 * 10) / (1e14 * 0.5))


def test_measured_elementwise_bandwidths_take_precedence() -> None:
    rows = (ElementwiseRow(nbytes=1e4, bandwidth=1e10), ElementwiseRow(nbytes=1e6, bandwidth=1e11))
    device = replace(ROUND, elementwise_table=rows)

    def seconds(nbytes: float) -> float:
        return op_time(device, kind="copy", flops=0, nbytes=nbytes, dtype="float32") - 1e-6

    assert seconds(1e4) == pytest.approx(1e-6)
    assert seconds(1e6) == pytest.approx(1e-5)
    assert seconds(1e5) == pytest.approx(10**-5.5), "log-log between the two"
    assert seconds(1e8) == pytest.approx(1e-3), "the last bandwidth beyond the table"
    assert seconds(0) == 0.0


def test_measured_products_correct_the_model() -> None:
    model = gemm(1, 1280, 1280, 1280) - 1e-6
    row = GemmRow(batch=1, m=1280, n=1280, k=1280, dtype="float16", seconds=3 * model + 1e-6)
    device = replace(ROUND, gemm_table=(row,))
    time = op_time(
        device, kind="gemm", flops=0, nbytes=0, dtype="float16", gemm=(1, 1280, 1280, 1280)
    )
    assert time == pytest.approx(3 * model + 1e-6)
    other = op_time(
        device, kind="gemm", flops=0, nbytes=0, dtype="float32", gemm=(1, 1280, 1280, 1280)
    )
    assert other == gemm(1, 1280, 1280, 1280, "float32"), "rows of another dtype do not count"


def test_errors() -> None:
    with pytest.raises(UnknownName, match="unknown kind of op 'gem': did you mean 'gemm'"):
        op_time(ROUND, kind="gem", flops=1, nbytes=1, dtype="float32")
    with pytest.raises(UnknownName, match="unknown kind of op 'gem'"):
        host_time(ROUND, "gem")
    with pytest.raises(UnknownName, match="unknown dtype of a gemm 'int64'"):
        op_time(ROUND, kind="gemm", flops=1, nbytes=1, dtype="int64")
    with pytest.raises(UnknownName, match="unknown dtype 'float23'"):
        op_time(ROUND, kind="copy", flops=1, nbytes=1, dtype="float23")
    with pytest.raises(
        BadHardware,
        match="device 'round' has no peak flops for 'bf16': it lists fp64, fp32, tf32, fp16",
    ):
        op_time(ROUND, kind="gemm", flops=1, nbytes=1, dtype="bfloat16")
    with pytest.raises(BadValue, match="a copy needs flops >= 0"):
        op_time(ROUND, kind="copy", flops=0, nbytes=-1, dtype="float32")


def test_unused_kinds_are_not_there() -> None:
    for kind in KINDS:
        assert op_time(ROUND, kind=kind, flops=1, nbytes=1, dtype="float32") >= 0


DEVICES = [load_device(name) for name in list_devices()]
sizes = st.integers(1, 5000)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DEVICES),
    st.tuples(st.integers(1, 64), sizes, sizes, sizes),
    st.integers(0, 3),
    st.integers(0, 3000),
)
def test_products_never_fall_with_any_dimension(device, shape, dim, more) -> None:  # type: ignore[no-untyped-def]
    larger = tuple(size + more * (i == dim) for i, size in enumerate(shape))

    def seconds(gemm: tuple[int, int, int, int]) -> float:
        batch, m, n, k = gemm
        nbytes = 4.0 * batch * (m * n + n * k + m * k)
        return op_time(
            device,
            kind="gemm",
            flops=2.0 * batch * m * n * k,
            nbytes=nbytes,
            dtype="float32",
            gemm=gemm,
        )

    assert 0 < seconds(shape) <= seconds(larger) * (1 + 1e-12)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DEVICES),
    st.sampled_from([kind for kind in KINDS if kind != "gemm"]),
    st.floats(0, 1e15),
    st.floats(0, 1e12),
    st.floats(0, 1e15),
    st.floats(0, 1e12),
)
def test_other_kernels_never_fall_with_flops_or_bytes(device, kind, flops, nbytes, df, db) -> None:  # type: ignore[no-untyped-def]
    less = op_time(device, kind=kind, flops=flops, nbytes=nbytes, dtype="float32")
    more = op_time(device, kind=kind, flops=flops + df, nbytes=nbytes + db, dtype="float32")
    assert 0 <= less <= more


def test_a_product_of_complex_numbers_is_four_of_real_ones() -> None:
    real, made = gemm(1, 1280, 1280, 1280, "float32"), gemm(1, 1280, 1280, 1280, "complex64")
    assert made - 1e-6 == pytest.approx(4 * (real - 1e-6))


def test_a_fused_kernel_is_as_fast_as_elementwise_ones_until_it_is_measured() -> None:
    """A file that was calibrated before fused kernels were has none in its tables."""
    core = load_device("cpu-core")
    rows = tuple(
        OpRow(
            op=op,
            kind=op,
            dtype="float32",
            flops=1,
            nbytes=1e6,
            gemm=(1, 1, 1, 1),
            steps=1,
            seconds=seconds,
        )
        for op, seconds in (("elementwise", 2e-4), ("fused", 1e-4))
    )
    call = {"kind": "fused", "flops": 1.0, "nbytes": 1e6, "dtype": "float32"}
    for table, seconds in ((rows[:1], 2e-4), (rows, 1e-4)):
        device = replace(core, op_table=table)
        assert op_time(device, op="shardwright.fused", **call) == pytest.approx(seconds)  # type: ignore[arg-type]
