"""The model against published kernels and NCCL collectives: fails above the errors that we state.

The limits are the measured errors, rounded up. The sources disagree among themselves by about 8 %
(four different measurements of an 8 x A100 all-reduce), so no model can do much better on all of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from measurements import (
    DATA,
    Row,
    by_group,
    collective_rows,
    domain_rows,
    gemm_rows,
    multi_node_rows,
    summary,
)

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no published measurements at {DATA}; set SHARDWRIGHT_DATA"
)


@pytest.mark.parametrize(
    ("rows", "mean", "median", "largest", "bias"),
    [(gemm_rows, 0.13, 0.07, 0.60, 0.06), (collective_rows, 0.09, 0.06, 0.65, 0.03)],
    ids=["gemm", "collectives"],
)
def test_errors_stay_within_what_we_state(
    rows: Callable[[], Iterator[Row]], mean: float, median: float, largest: float, bias: float
) -> None:
    found = summary(list(rows()))
    assert found["n"] > 300
    assert found["mean"] <= mean
    assert found["median"] <= median
    assert found["max"] <= largest
    assert abs(found["bias"]) <= bias
    assert found["mean"] < found["baseline"] / 3, "far better than one fitted rate"


@pytest.mark.parametrize("rows", [gemm_rows, collective_rows], ids=["gemm", "collectives"])
def test_no_source_is_far_off(rows: Callable[[], Iterator[Row]]) -> None:
    for group, members in by_group(rows()).items():
        assert summary(members)["mean"] <= 0.15, group


def test_large_messages_are_within_a_tenth() -> None:
    large = [row for row in collective_rows() if row.work >= 2**28]
    assert summary(large)["mean"] <= 0.05
    assert summary(large)["max"] <= 0.20


def test_large_messages_between_nodes() -> None:
    found = summary(list(multi_node_rows()))
    assert found["n"] == 7
    assert found["mean"] <= 0.10
    assert found["max"] <= 0.15


def test_domains_of_72() -> None:
    """4 GiB and more; all-reduces over racks are predicted a fifth too slow: NCCL reduces in the
    switch of each rack."""
    found = summary(list(domain_rows()))
    assert found["n"] == 18
    assert found["mean"] <= 0.11
    assert found["max"] <= 0.25
