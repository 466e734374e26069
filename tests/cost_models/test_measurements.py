"""How published measurements are read and held against the model: on tables made here, so that
it runs without the published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import measurements
import pytest
from measurements import Row, by_group, collective_rows, gemm_rows, multi_node_rows, summary

from cost_models.cluster import load_cluster, load_device
from cost_models.collectives import collective_time
from cost_models.roofline import op_time

GEMM = "source,kind,gpu_model,dtype,m,n,k,trans_a,trans_b,time_ms"
COLLECTIVES = "source,gpu_model,op,n_gpus,n_nodes,nbytes,time_us,algo,notes,inter_node"


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the published tables' columns: some that are read, some of each kind that is left
    out."""
    a3 = "GCP A3 Mega 8x200Gb/s GPUDirect-TCPXO per node"
    (tmp_path / "gemm.csv").write_text(
        "\n".join(
            [
                GEMM,
                "one source,gemm,NVIDIA H100 SXM,bf16,4096,2048,1024.0,N,T,0.05",
                "one source,gemm,V100,fp32,512,512,512,N,N,0.04",
                "LLMCompass ISCA24 artifact,gemm,A100-SXM4-80GB,fp16,64,64,64,N,N,0.0296",
                "one source,gemm,NVIDIA H100 SXM,fp8,64,64,64,N,N,1",
                "one source,gemm,A card of another make,bf16,64,64,64,N,N,1",
                "one source,conv,NVIDIA H100 SXM,bf16,64,64,64,N,N,1",
            ]
        )
    )
    (tmp_path / "collectives.csv").write_text(
        "\n".join(
            [
                COLLECTIVES,
                "lab,H100-SXM5-80GB,all_reduce,8,1,1048576,40,,,",
                "lab,A100-SXM4,all_gather,4,1,65536,30,,,",
                "lab,H100-SXM5-80GB,all_reduce,8,1,1048576,40,NVLS off,,",
                "lab,H100-SXM5-80GB,all_reduce,8,1,1048576,40,,run with -z 1,",
                "lab,H100-SXM5-80GB,all_reduce,8,1,1048576,,,,",
                "lab,H100-SXM5-80GB,sendrecv,8,1,1048576,40,,,",
                f"lab,H100-SXM5-80GB,all_reduce,16,2,1073741824,5000,,,{a3}",
                f"lab,H100-SXM5-80GB,all_reduce,16,2,1024,50,,,{a3}",
            ]
        )
    )
    monkeypatch.setattr(measurements, "DATA", tmp_path)


@pytest.mark.usefixtures("tables")
def test_products_are_those_of_known_cards_and_formats() -> None:
    h100, v100, a100 = gemm_rows()
    assert (h100.what, h100.work, h100.measured) == (
        "4096x2048x1024 NT",
        2.0 * 4096 * 2048 * 1024,
        5e-5,
    )
    nbytes = 2 * (4096 * 1024 + 1024 * 2048 + 4096 * 2048)
    assert h100.predicted == op_time(
        load_device("h100-sxm"),
        kind="gemm",
        flops=h100.work,
        nbytes=nbytes,
        dtype="bfloat16",
        gemm=(1, 4096, 2048, 1024),
    )
    assert h100.error == h100.predicted / 5e-5 - 1
    assert v100.group == "gemm v100 float32 one"
    assert a100.predicted > 24e-6, "what the harness of that source adds"


@pytest.mark.usefixtures("tables")
def test_collectives_inside_a_node_and_between_nodes() -> None:
    reduce, gather = collective_rows()
    assert reduce.predicted == collective_time(
        load_cluster("dgx-h100", num_devices=8), (8,), (0,), "all_reduce", 2.0**20
    )
    assert (gather.group, gather.what) == ("all_gather dgx-a100 lab", "4 x 65536 B")
    assert gather.measured == pytest.approx(3e-5)
    (between,) = multi_node_rows()
    assert between.work == 2**30
    dgx = load_cluster("dgx-h100", num_devices=16)
    assert dgx.inter is not None
    # The NICs of the machine that was measured.
    theirs = replace(dgx, inter=replace(dgx.inter, bandwidth=25e9, nics_per_node=8))
    assert between.predicted == collective_time(theirs, (16,), (0,), "all_reduce", 2.0**30)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("rows", [gemm_rows, collective_rows])
def test_every_row_has_a_group(rows: Callable[[], Iterator[Row]]) -> None:
    assert sum(map(len, by_group(rows()).values())) == len(list(rows()))


def test_summary_in_closed_form() -> None:
    made = [
        Row(group="a", what="", work=w, measured=m, predicted=p)
        for w, m, p in ((1, 1, 1.5), (2, 2, 1), (8, 4, 4), (4, 4, 6))
    ]
    found = summary(made)
    assert (found["n"], found["mean"], found["median"], found["max"], found["bias"]) == (
        4,
        0.375,
        0.5,
        0.5,
        0.125,
    )
    assert found["baseline"] == 0.25, "three of four at the rate 1, the other off by 1"
