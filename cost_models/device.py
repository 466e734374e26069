"""The `Device` record: the rates and capacities of one accelerator (or CPU core), in SI units, with
measured tables if there are any."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.errors import BadHardware, unknown_name
from cost_models.memory import LSTM_LIBRARIES

__all__ = [
    "KINDS",
    "MATRIX_KINDS",
    "NUMBER_FORMATS",
    "VECTOR_KINDS",
    "Device",
    "ElementwiseRow",
    "GemmRow",
    "OpRow",
]

#: Kinds of kernel bound by the tensor cores' or the core's flops.
MATRIX_KINDS = ("gemm", "conv", "attention", "lstm")
#: Kinds bound by memory; their flops run on the ordinary (fp32, fp64) units.
#: `fused`: elementwise ops and norms compiled into one kernel.
VECTOR_KINDS = (
    "elementwise",
    "fused",
    "reduction",
    "norm",
    "embedding",
    "softmax",
    "optimizer",
    "copy",
)
#: All kinds. A `view` only renames memory: no kernel, no dispatch.
KINDS = (*MATRIX_KINDS, *VECTOR_KINDS, "view")
#: The number formats that a datasheet gives a peak for.
NUMBER_FORMATS = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmRow:
    """One measured product: `batch` times (m, k) @ (k, n) in `seconds`."""

    batch: int
    m: int
    n: int
    k: int
    dtype: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwiseRow:
    """One measured element-wise kernel that read and wrote `nbytes` in all at `bandwidth`
    bytes/s."""

    nbytes: float
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One measured call of `op` (the planner's name): its work as the planner counts it, and its
    seconds, dispatch included.

    `gemm` and `steps` as in `roofline.op_time`; `gemm` is (1, 1, 1, 1) if the op is no product.
    """

    op: str
    kind: str
    dtype: str
    flops: float
    nbytes: float
    gemm: tuple[int, int, int, int]
    steps: int
    seconds: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadHardware(f"op_table: {unknown_name('kind of op', self.kind, KINDS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. Seconds, bytes, flops/s, bytes/s; efficiencies and overlap are fractions.

    `peak_flops` is the datasheet's figure for each of the device's number formats (`fp32`, `tf32`,
    `bf16`, ...), `gemm_efficiency` the share of it that a large product reaches. `gemm_tiles` are
    the tile shapes tried for a product (none: the smooth model, in which `gemm_half_work` flops per
    SM reach half of that share). `kernel_overhead` is the least device time of a kernel,
    `launch_overhead` the host's time to dispatch it. `kind_efficiency` is the share of its roofline
    that a kind of kernel reaches. `overlap` is the share of the shorter of compute and
    communication that hides behind the other. `step_overhead` is the host's time per step (the
    optimizer's Python). `lstm_library` says whose workspace an LSTM keeps for backward.
    """

    name: str
    memory: int
    reserved_memory: int
    memory_bandwidth: float
    memory_efficiency: float
    peak_flops: tuple[tuple[str, float], ...]
    num_sms: int
    launch_overhead: float
    kernel_overhead: float
    gemm_efficiency: float
    gemm_half_work: float
    gemm_tiles: tuple[tuple[int, int], ...]
    gemm_tile_half_area: float
    gemm_half_k: float
    gemm_k_latency: float
    lstm_step_overhead: float
    overlap: float
    step_overhead: float = 0.0
    lstm_library: str | None = None
    kind_efficiency: tuple[tuple[str, float], ...] = ()
    gemm_table: tuple[GemmRow, ...] = ()
    elementwise_table: tuple[ElementwiseRow, ...] = ()
    op_table: tuple[OpRow, ...] = ()

    @property
    def is_host(self) -> bool:
        """Whether the host itself computes (a CPU): nothing is launched."""
        return self.launch_overhead == 0

    def __post_init__(self) -> None:
        for name in ("memory_efficiency", "gemm_efficiency", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadHardware(
                    f"device {self.name!r}: {name} must be between 0 and 1, got "
                    f"{getattr(self, name)}"
                )
        if self.lstm_library not in (None, *LSTM_LIBRARIES):
            raise BadHardware(
                f"device {self.name!r}: {unknown_name('lstm_library', str(self.lstm_library), LSTM_LIBRARIES)}"
            )
        self._check_names("peak of", self.peak_flops, NUMBER_FORMATS)
        self._check_names("efficiency of kind", self.kind_efficiency, KINDS)
        if not self.has_peak("fp32") or (
            self.gemm_tiles and not (self.has_peak("fp16") or self.has_peak("bf16"))
        ):
            raise BadHardware(
                f"device {self.name!r} needs a peak for fp32 and, if it has gemm_tiles, for fp16 "
                "or bf16"
            )
        if self.reserved_memory >= self.memory:
            raise BadHardware(
                f"device {self.name!r}: reserved_memory ({self.reserved_memory} B) leaves "
                f"nothing of its memory ({self.memory} B)"
            )

    @property
    def usable_memory(self) -> int:
        """Bytes left for tensors: memory less that of the context, the libraries' workspaces and
        the communicators."""
        return self.memory - self.reserved_memory

    def multiplies(self, number_format: str) -> bool:
        """Whether the device has units for products in `bf16` or `fp16`. A CPU without them
        converts, and lists a peak all the same."""
        return bool(self.gemm_tiles) and self.has_peak(number_format)

    def _check_names(
        self, what: str, table: tuple[tuple[str, float], ...], known: tuple[str, ...]
    ) -> None:
        for name, _ in table:
            if name not in known:
                raise BadHardware(f"device {self.name!r}: {unknown_name(what, name, known)}")

    def __hash__(self) -> int:
        """A cheap hash for caches; equality still compares every figure."""
        return hash(
            (
                self.name,
                self.memory,
                self.memory_bandwidth,
                self.gemm_efficiency,
                len(self.op_table),
            )
        )

    def peak(self, number_format: str) -> float:
        """Datasheet flops/s in `number_format`. Raises `BadHardware` if the device has no peak in
        it."""
        for name, flops in self.peak_flops:
            if name == number_format:
                return flops
        known = ", ".join(name for name, _ in self.peak_flops)
        raise BadHardware(
            f"device {self.name!r} has no peak flops for {number_format!r}: it lists {known}"
        )

    def has_peak(self, number_format: str) -> bool:
        """Whether the device lists a peak for `number_format`."""
        return any(name == number_format for name, _ in self.peak_flops)

    def efficiency_of(self, kind: str) -> float | None:
        """The measured share of the roofline that kernels of `kind` reach on this device; None if
        it is not listed."""
        for name, share in self.kind_efficiency:
            if name == kind:
                return share
        return None
