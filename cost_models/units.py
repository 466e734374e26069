"""Conversions between SI, used everywhere inside, and the units in which people read and write.

Only the hardware-file loader and the report use this module; everything between them holds seconds,
bytes and flops.
"""

from __future__ import annotations

__all__ = ["GB", "GIB", "KIB", "MIB", "TERA", "US", "format_bytes", "format_rate", "format_time"]

#: One microsecond in seconds.
US = 1e-6
#: Decimal giga (bytes of a bandwidth: GB/s as vendors print them) and tera (flops of a peak).
GB = 1e9
TERA = 1e12
#: Binary units (bytes of a memory: GiB as allocators print them).
KIB = 2**10
MIB = 2**20
GIB = 2**30

_TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_BYTE_UNITS = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_RATE_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    """`value` in the largest unit in which it is at least one (if there is none, in the smallest
    unit)."""
    for scale, name in units:
        if abs(value) >= scale * (1 - 5e-4):
            return value / scale, name
    scale, name = units[-1]
    return value / scale, name


def _digits(value: float) -> str:
    """`value` to three significant digits, without an exponent."""
    places = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{places}f}"


def format_time(seconds: float) -> str:
    """`seconds` as a person reads it: `1.25 ms`, `830 us`, `12.0 s`; `0 s` for nothing."""
    if seconds == 0:
        return "0 s"
    value, unit = _scaled(seconds, _TIME_UNITS)
    return f"{_digits(value)} {unit}"


def format_bytes(nbytes: float) -> str:
    """`nbytes` in binary units: `79.6 GiB`, `512 B`."""
    value, unit = _scaled(nbytes, _BYTE_UNITS)
    return f"{value:.0f} B" if unit == "B" else f"{_digits(value)} {unit}"


def format_rate(per_second: float, unit: str) -> str:
    """`per_second` in decimal units: `format_rate(3.35e12, "B/s")` is `3.35 TB/s`."""
    value, prefix = _scaled(per_second, _RATE_UNITS)
    return f"{_digits(value)} {prefix}{unit}"
