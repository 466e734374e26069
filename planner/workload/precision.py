"""The formats of a training step: those of parameters, products, the optimizer's copy, gradients.

`--precision` and its options -> `Precision`. Names are those of the combinations that people train
in (docs/precision.md); an `Ask` holds the formats themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from cost_models.errors import BadValue, unknown_name

__all__ = ["DTYPES", "PLAIN", "PRECISIONS", "Formats", "Precision", "format_words", "precision_of"]

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Formats beside those of parameters and products. `master` is that of the copy of the
    parameters that the optimizer updates, with its state; empty if it updates the parameters
    themselves. Gradients are summed over ranks in `reduce`; empty: in the parameter's format; and
    over microbatches in `accumulate`; empty: in the wider of `reduce` and the optimizer's. If
    `scaled`, the loss is multiplied by a scale before backward, and gradients are divided by it
    before they are clipped and used; a step whose gradients are not finite is skipped."""

    master: str = ""
    reduce: str = ""
    accumulate: str = ""
    scaled: bool = False

    def updated(self, dtype: str) -> str:
        """The format in which the optimizer updates parameters of `dtype`."""
        return self.master or dtype

    def reduced(self, dtype: str) -> str:
        """The format in which the gradients of parameters of `dtype` are summed over ranks."""
        return self.reduce or dtype

    def accumulated(self, dtype: str) -> str:
        """The format in which the gradients of parameters of `dtype` are added up over
        microbatches."""
        either = (self.updated(dtype), self.reduced(dtype))
        return self.accumulate or max(either, key=lambda name: DTYPES[name].itemsize)


#: The optimizer updates the parameters, by gradients of their format.
PLAIN = Formats()


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The dtype of parameters, that of products in mixed precision (else empty), and the other
    formats."""

    dtype: str
    compute: str = ""
    formats: Formats = PLAIN

    def fields(self) -> dict[str, Any]:
        """The fields of an `Ask`."""
        return {"dtype": self.dtype, "compute": self.compute, "formats": self.formats}


#: What `--precision` may be.
PRECISIONS = {
    "fp32": Precision(dtype="float32"),
    "fp64": Precision(dtype="float64"),
    "bf16": Precision(dtype="bfloat16"),
    "bf16-mixed": Precision(dtype="float32", compute="bfloat16"),
    "bf16-master": Precision(dtype="bfloat16", formats=Formats(master="float32", reduce="float32")),
    "fp16-mixed": Precision(dtype="float32", compute="float16", formats=Formats(scaled=True)),
    "fp16-master": Precision(
        dtype="float16", formats=Formats(master="float32", reduce="float32", scaled=True)
    ),
}

#: The formats in which gradients may be reduced and accumulated, by their short names.
_GRADIENTS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def precision_of(
    name: str, reduce_gradients: str = "", accumulate_gradients: str = ""
) -> Precision:
    """The formats for a `--precision`, or for a torch dtype's name, a `--reduce-gradients` and an
    `--accumulate-gradients`. Raises `UnknownName` for other names, `BadValue` for formats that do
    not go together."""
    if name in ("fp16", "float16"):
        raise BadValue(
            f"--precision {name}: parameters in float16 alone lose small updates and overflow; give "
            "fp16-mixed or fp16-master"
        )
    if name not in PRECISIONS and name not in DTYPES:
        raise unknown_name("precision", name, list(PRECISIONS))
    found = PRECISIONS[name] if name in PRECISIONS else Precision(dtype=name)
    reduce = _gradients("reduce", reduce_gradients, name, found)
    if reduce:
        kept = "" if reduce == found.dtype and not found.formats.master else reduce
        found = replace(found, formats=replace(found.formats, reduce=kept))
    accumulate = _gradients("accumulate", accumulate_gradients, name, found)
    if accumulate == found.formats.accumulated(found.dtype):
        return found
    return replace(found, formats=replace(found.formats, accumulate=accumulate))


def _gradients(what: str, wanted: str, name: str, known: Precision) -> str:
    """The dtype in which gradients are reduced or accumulated, by its short name; empty if none is
    `wanted`."""
    if not wanted:
        return ""
    if wanted not in _GRADIENTS:
        raise unknown_name(f"format to {what} gradients", wanted, list(_GRADIENTS))
    if known.dtype == "float64":
        raise BadValue(
            f"--{what}-gradients {wanted} with --precision {name}: gradients of float64 parameters "
            "stay in float64; leave it out, or train in another precision"
        )
    if wanted == "fp16" and not known.formats.scaled:
        raise BadValue(
            f"--{what}-gradients fp16 with --precision {name}: gradients that are not scaled are too "
            "small for float16; give bf16, or --precision fp16-mixed or fp16-master"
        )
    return _GRADIENTS[wanted]


def format_words(dtype: str, computed: str, formats: Formats) -> str:
    """The formats in words, for the report: `bfloat16 with a float32 master copy (bf16-master)`;
    `computed` is the dtype of products."""
    name, usual = next(
        (
            (f" ({name})", known.formats.reduced(dtype))
            for name, known in PRECISIONS.items()
            if _fits(known, dtype, computed, formats)
        ),
        ("", dtype),
    )
    words = dtype
    if formats.master:
        words += f" with a {formats.master} master copy{name}"
    elif computed != dtype:
        words += f", products in {computed}{name}"
    if formats.reduced(dtype) != usual:
        words += f", gradients reduced in {formats.reduced(dtype)}"
    if formats.accumulate:
        words += f", accumulated in {formats.accumulate}"
    return words


def _fits(known: Precision, dtype: str, computed: str, formats: Formats) -> bool:
    return (known.dtype, known.compute or known.dtype, known.formats.master) == (
        dtype,
        dtype if formats.master else computed,
        formats.master,
    )
