"""One measurement of `gpu_check.py`, in a process of its own: `python gpu_measure.py NAME
REQUEST.json RESULT.json`.

The request has `device`, `tiny`, `steps`, `folder` (plans and the calibrated hardware file lie
there) and `shipped`, the name of the card's own figures or nothing. The result is one JSON object;
a package that is missing is told as `{"missing": ...}`.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not
os.environ.setdefault("KERAS_BACKEND", "torch")

from gpu_cases import case_of

Request = dict[str, Any]
_WARM = 3


def environment(request: Request) -> dict[str, Any]:
    """Card, driver and versions; what is not there is None."""
    from runtime.calibrate.unmeasured import shipped_for

    cuda = request["device"] == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit(
            f"no CUDA device is there for torch {torch.__version__}: try the script with --device cpu --tiny"
        )
    asked = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    return {
        "card": torch.cuda.get_device_name(0) if cuda else None,
        "shipped": shipped_for(
            torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
        )
        if cuda
        else "cpu",
        "capability": list(torch.cuda.get_device_capability(0)) if cuda else None,
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count
        if cuda
        else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "nvidia_smi": _said(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"])
        if cuda
        else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "compiler": _said(["cc", "--version"]).partition("\n")[0],
        "cores": os.cpu_count(),
        "packages": {
            name: _version(name)
            for name in ("numpy", "pulp", "highspy", "numba", "transformers", "keras", "triton")
        },
    }


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tests(request: Request) -> dict[str, Any]:
    """`pytest -m gpu`: how many passed, and which did not."""
    root = Path(__file__).resolve().parents[1]
    files = [
        str(file)
        for file in sorted(root.glob("tests/**/test_*.py"))
        if "mark.gpu" in file.read_text(encoding="utf-8")
    ]
    options = [
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--tb=short",
        "-W",
        "default",
    ]
    command = [sys.executable, "-m", "pytest", *options, *files]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    last = (ran.stdout.strip() or "none").splitlines()[-1]
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)
    }
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", ran.stdout, re.MULTILINE)
    output = (ran.stdout + ran.stderr)[-4000:] if ran.returncode else ""
    return {"exit_code": ran.returncode, "counts": counts, "failures": failed, "output": output}


def calibrate(request: Request) -> dict[str, Any]:
    """`plan calibrate` to a hardware file in the folder, and its main figures beside the shipped
    ones."""
    from cost_models.cluster import load_cluster
    from runtime.calibrate.calibrate import calibrate as measure

    start = time.perf_counter()
    device = measure(
        _calibrated(request), device=request["device"], max_ranks=1, quick=request["tiny"]
    ).device
    shipped = load_cluster(request["shipped"], num_devices=1).device if request["shipped"] else None
    return {
        "seconds": time.perf_counter() - start,
        "file": _calibrated(request).name,
        "ops": len(device.op_table),
        "measured": _figures(device),
        "shipped": _figures(shipped) if shipped is not None else None,
    }


def _figures(device: Any) -> dict[str, Any]:
    return {
        "peak_flops": dict(device.peak_flops),
        "gemm_efficiency": device.gemm_efficiency,
        "memory_bandwidth": device.memory_bandwidth * device.memory_efficiency,
        "launch_overhead_s": device.launch_overhead,
        "kernel_overhead_s": device.kernel_overhead,
        "step_overhead_s": device.step_overhead,
        "kind_efficiency": dict(device.kind_efficiency),
    }


def _calibrated(request: Request) -> Path:
    return Path(request["folder"]) / "calibrated.toml"


# ------------------------------------------------------------------------------------------ a model


def plan(name: str, request: Request) -> dict[str, Any]:
    """Plans the model for one device, on the card's shipped figures or, without any, on those of
    the default machine."""
    from cost_models.cluster import load_cluster
    from planner.plans.plan_file import write_plan
    from planner.search.search import search
    from planner.workload.ask import Ask
    from planner.workload.precision import precision_of

    wanted = case_of(name, tiny=request["tiny"])
    formats = precision_of(wanted.pop("precision"))
    start = time.perf_counter()
    found = search(
        Ask(**formats.fields(), num_devices=1, **wanted),
        load_cluster(request["shipped"] or "dgx-h100", num_devices=1),
    )
    write_plan(found.plan, _plan(name, request))
    ops = len(found.program.instructions)
    return {
        "seconds": time.perf_counter() - start,
        "instructions": ops,
        "parameters": sum(p.numel() for p in found.workload.module.parameters()),
    }


def _plan(name: str, request: Request) -> Path:
    return Path(request["folder"]) / f"{name}.json"


def ours(name: str, request: Request) -> dict[str, Any]:
    """`plan compare`: the plan run on the device, beside its simulation with shipped figures and
    with calibrated ones."""
    from cost_models.cluster import load_cluster
    from planner.plans.plan_file import read_plan
    from planner.plans.replay import program_of
    from planner.predict.predict import predict
    from runtime.compare.compare import compare

    calibrated = _calibrated(request)
    hardware = str(calibrated) if calibrated.is_file() else request["shipped"] or "dgx-h100"
    found = compare(
        _plan(name, request),
        hardware=hardware,
        num_steps=request["steps"],
        device=request["device"],
    )
    predicted = {}
    for kind, file in (
        ("shipped", request["shipped"]),
        ("calibrated", str(calibrated) if calibrated.is_file() else ""),
    ):
        if file:
            cluster = load_cluster(file, num_devices=1)
            told = predict(program_of(read_plan(_plan(name, request)), cluster), cluster)
            predicted[kind] = {
                "step_s": told.step_time_s,
                "error": told.step_time_s / found.measured_step_time_s - 1,
            }
    return {
        "step_s": found.measured_step_time_s,
        "steps_s": list(found.step_times_s),
        "peak_bytes": found.measured_peak_memory_bytes,
        "recorded_step_s": found.recorded_step_time_s,
        "predicted": predicted,
        "predicted_peak_bytes": found.predicted_peak_memory_bytes,
        "by_kind": [row.as_json() for row in found.by_kind],
        "by_kind_predicted_with": "calibrated"
        if calibrated.is_file()
        else request["shipped"] or "dgx-h100",
    }


def eager(name: str, request: Request) -> dict[str, Any]:
    """The person's own module in plain torch on the same device, with the same optimizer."""
    return _torch(name, request, lambda step: step)


def compiled(name: str, request: Request) -> dict[str, Any]:
    """The same through `torch.compile`."""
    start = time.perf_counter()
    found = _torch(name, request, torch.compile)
    return {**found, "seconds_with_compilation": time.perf_counter() - start}


def _torch(name: str, request: Request, wrap: Callable[[Any], Any]) -> dict[str, Any]:
    from planner.workload.ask import Ask, build
    from planner.workload.precision import precision_of
    from runtime.optimizers import make_optimizer

    wanted = case_of(name, tiny=request["tiny"])
    formats = precision_of(wanted.pop("precision"))
    device = torch.device(request["device"])
    torch.manual_seed(0)
    if name == "keras":
        return _keras(wanted["batch"], device, request)
    with torch.device(
        device
    ):  # made where it is used: a billion random numbers take long on the host
        workload = build(Ask(**formats.fields(), num_devices=1, **wanted))
    module, batch = workload.module.to(device), [t.to(device) for t in workload.batch]
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(workload.optimizer, parameters, workload.learning_rate)
    loss_of = wrap(lambda *tensors: workload.loss_of(tensors)[0])

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            device.type,
            dtype=getattr(torch, formats.compute or "bfloat16"),
            enabled=bool(formats.compute),
        ):
            loss = loss_of(*batch)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return _timed(step, device, request["steps"])


def _keras(batch: int, device: torch.device, request: Request) -> dict[str, Any]:
    """Keras's own `train_on_batch`, on the device that Keras picks: the card, where there is
    one."""
    from gpu_cases import text_classifier

    model, (ids, labels) = text_classifier(batch)
    return _timed(lambda: float(model.train_on_batch(ids, labels)), device, request["steps"])


def _timed(step: Callable[[], float], device: torch.device, count: int) -> dict[str, Any]:
    """The median of `count` steps, each ended by reading its loss, and the allocator's peak
    while they ran."""
    losses = [step() for _ in range(_WARM)]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "step_s": statistics.median(times),
        "steps_s": times,
        "peak_bytes": peak,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


OF_MODELS = {"plan": plan, "ours": ours, "eager": eager, "compile": compiled}
ALONE = {"environment": environment, "tests": tests, "calibrate": calibrate}


def main() -> None:
    name, request_file, result_file = sys.argv[1:]
    request = json.loads(Path(request_file).read_text())
    model, _, measure = name.partition("/")
    try:
        found = OF_MODELS[measure](model, request) if measure else ALONE[name](request)
    except ModuleNotFoundError as error:
        found = {"missing": f"{error}"}
    Path(result_file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
