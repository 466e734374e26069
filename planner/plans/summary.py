"""The figures of a plan as plain data, in SI, with stable keys: `--json` prints them, and the
report is made from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cost_models.axis_links import axis_links
from cost_models.machine import Cluster
from cost_models.roofline import matrix_peak
from planner.graph.layout import Mesh
from planner.plans.words import describe, ops_by_source, replicated_ops
from planner.predict.predict import Prediction
from planner.state.state import registered
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.op_costs import op_dtype
from planner.strategy.traced_model import Model
from planner.workload.ask import Ask
from planner.workload.workload import Workload, unused

__all__ = ["ideal_seconds", "summarise"]


def ideal_seconds(model: Model, cluster: Cluster) -> float:
    """Seconds of one whole step on one device at its peak: the flops of every product,
    convolution, attention and recurrent op, forward and backward, as the model defines them (no
    recomputation), each at the peak of the format that its kernel uses (cuDNN's convolutions and
    recurrent layers take float32 as TF32)."""
    total = 0.0
    for node, op, times in zip(model.graph.nodes, model.dims.ops, model.repeats, strict=True):
        if (
            op.signature.kind in ("gemm", "conv", "attention", "lstm")
            and op.signature.cost is not None
        ):
            flops = op.signature.cost(op.letter_sizes(op.sizes)).flops
            total += times * flops / matrix_peak(cluster.device, op.signature.kind, op_dtype(node))
    return total


def _constants(model: Model, workload: Workload) -> dict[str, list[str]]:
    """The tensors that the step reads although neither the model nor the loss registers them, if
    there are any."""
    _, buffers = registered(workload.module, workload.loss)
    found = [
        value.name
        for value in model.graph.values
        if value.kind == "buffer" and value.name not in buffers
    ]
    return {"constants": found} if found else {}


def summarise(
    ask: Ask,
    model: Model,
    workload: Workload,
    cluster: Cluster,
    mesh: Mesh,
    choices: Choices,
    costing: Costing,
    prediction: Prediction,
    elapsed: float,
) -> dict[str, Any]:
    """The summary of a plan."""
    step, batch = prediction.step_time_s, int(workload.batch[0].shape[0])
    dtype = workload.compute or next(
        (op_dtype(n) for n in model.graph.nodes if "float" in op_dtype(n)), "float32"
    )
    return {
        "model": workload.name,
        "options": dict(workload.options),
        "optimizer": workload.optimizer,
        "dtype": dtype,
        "num_parameters": model.graph.num_parameters,
        **_constants(model, workload),
        **({"microbatches": ask.microbatches} if ask.microbatches > 1 else {}),
        **({"per_microbatch": list(ask.per_microbatch)} if model.graph.carried else {}),
        "take_no_part": list(unused(workload.module, (p.name for p in model.graph.parameters))),
        "step_time_s": step,
        "compute_time_s": prediction.compute_time_s,
        "exposed_communication_time_s": prediction.exposed_communication_time_s,
        "idle_time_s": prediction.idle_time_s,
        "samples_per_s": batch / step,
        "tokens_per_s": batch * workload.tokens_per_sample / step,
        "mfu": ideal_seconds(model, cluster) / (step * cluster.num_devices),
        "memory_bytes": {**prediction.memory_bytes, "total": prediction.total_memory_bytes},
        "shared_memory_bytes": prediction.shared_memory_bytes,
        "memory_capacity_bytes": cluster.device.usable_memory,
        "memory_allowed_bytes": ask.allowed_memory(cluster.device),
        "fits": prediction.total_memory_bytes <= ask.allowed_memory(cluster.device),
        "replicated_ops": list(replicated_ops(model, choices, costing, mesh)),
        "discovered_ops": list(ops_by_source(model, "discovered")),
        "ops_without_rule": list(ops_by_source(model, "replicated")),
        "groups": [  # lists, not tuples, as in JSON: a plan read back equals the plan written
            asdict(row) | {"ops": list(row.ops), "parameters": list(row.parameters)}
            for row in describe(model, workload, mesh, choices, costing)
        ],
        "axes": [
            asdict(axis) | {"links": list(axis.links)}
            for axis in axis_links(cluster, mesh.names, mesh.sizes)
        ],
        "planning_time_s": elapsed,
    }
