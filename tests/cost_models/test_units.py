"""Formatting of seconds, bytes and rates."""

from __future__ import annotations

import pytest

from cost_models.units import format_bytes, format_rate, format_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1.25e-3, "1.25 ms"),
        (8.3e-4, "830 us"),
        (12.04, "12.0 s"),
        (2e-9, "2.00 ns"),
        (0.9999, "1.00 s"),
        (123.4, "123 s"),
    ],
)
def test_format_time(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536, "1.50 KiB"),
        (80 * 2**30, "80.0 GiB"),
        (-(2**20), "-1.00 MiB"),
    ],
)
def test_format_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (3.35e12, "B/s", "3.35 TB/s"),
        (9.89e14, "FLOP/s", "989 TFLOP/s"),
        (5e10, "B/s", "50.0 GB/s"),
        (12.0, "B/s", "12.0 B/s"),
    ],
)
def test_format_rate_is_decimal(rate: float, unit: str, text: str) -> None:
    assert format_rate(rate, unit) == text
