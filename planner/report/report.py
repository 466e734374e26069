"""The reports of the command line as sections of lines and tables: of a plan, a simulation, a run,
the built-in models.

Plan -> `report` -> Sections, which `sections` draws. All of it stands in the plan's file, so that a
plan can be reported again without its model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cost_models.axis_links import axis_links, links_in_words
from cost_models.memory import MEMORY_HEADROOM
from cost_models.units import format_bytes, format_rate, format_time
from planner.report.sections import Section, Table

if TYPE_CHECKING:
    from cost_models.cluster import Cluster
    from planner.plans.plan_file import Plan

__all__ = [
    "comparison",
    "mesh_body",
    "models_sections",
    "proof_lines",
    "report",
    "run_section",
    "simulation",
    "title",
]

_CATEGORY_WORDS = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "activations": "activations",
    "gathered": "gathered pieces and cast parameters",
    "temporaries": "temporaries of backward",
    "inputs": "batch and buffers",
}


def report(plan: Plan, files: Mapping[str, str]) -> tuple[Section, ...]:
    """The whole report; `files` are the plan's files by what they hold."""
    summary = plan.summary
    return (
        Section(title=title(plan), body=(_model_line(plan),)),
        Section(title="Mesh", body=mesh_body(plan)),
        Section(title="One step", body=_time_lines(summary)),
        Section(title="Memory of a device", body=(*_memory_table(summary), *_cast_again(plan))),
        Section(title="Baselines", body=_alternatives(plan)),
        Section(title="Proof", body=proof_lines(plan)),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def title(plan: Plan) -> str:
    """The model and what it is planned for."""
    count = plan.hardware.num_devices
    nodes = f", {plan.hardware.num_nodes} nodes" if plan.hardware.num_nodes > 1 else ""
    return f"{plan.ask.model} on {count} device{'s' if count > 1 else ''} of {plan.hardware.name}{nodes}"


def _model_line(plan: Plan) -> str:
    summary = plan.summary
    sizes = ", ".join(f"{name} {value}" for name, value in summary["options"].items())
    parameters = format_rate(summary["num_parameters"], "").strip()
    return f"{parameters} parameters in {_formats(plan)}, optimizer {_optimizer(plan)}; {sizes}"


def _optimizer(plan: Plan) -> str:
    """The optimizer, with what was asked of it."""
    rate = {} if plan.ask.learning_rate is None else {"lr": plan.ask.learning_rate}
    given = {**rate, **plan.ask.optimizer_settings}
    told = ", ".join(
        f"{key} {' '.join(map(str, v)) if isinstance(v, tuple | list) else v}"
        for key, v in given.items()
    )
    return f"{plan.summary['optimizer']} ({told})" if told else str(plan.summary["optimizer"])


def _formats(plan: Plan) -> str:
    """The format of the parameters, and that of products if it is another: only mixed precision
    has two."""
    kept, computed = plan.ask.dtype, plan.summary["dtype"]
    return kept if kept == computed else f"{kept}, products in {computed} (bf16-mixed)"


def mesh_body(plan: Plan) -> tuple[str | Table, ...]:
    """What every axis splits: in a sentence, and layer group by layer group."""
    whole = plan.summary["replicated_ops"]
    told = [
        ("take no part in the loss, and stay as they are: ", plan.summary.get("take_no_part", []))
    ]
    told.append(
        (
            "constants, which neither the model nor the loss registers: ",
            plan.summary.get("constants", []),
        )
    )
    told.append(("run whole on every device: ", whole))
    told.append(("run whole for want of a rule: ", plan.summary.get("ops_without_rule", [])))
    told.append(
        ("rule discovered by running the op in shards: ", plan.summary.get("discovered_ops", []))
    )
    return (
        *_axis_lines(plan),
        _group_words(plan),
        *(words + ", ".join(ops) for words, ops in told if ops),
    )


def _axis_lines(plan: Plan) -> Iterable[str]:
    """One sentence an axis: what it splits, and where."""
    if plan.mesh.num_devices == 1:
        return ["one device: nothing is split"]
    runs = [links_in_words(plan.summary["axes"])] if plan.summary.get("axes") else []
    return runs + [_axis_line(plan, axis) for axis in range(len(plan.mesh.sizes))]


def _axis_line(plan: Plan, axis: int) -> str:
    where: dict[str, list[str]] = {}
    for row in plan.summary["groups"]:
        where.setdefault(row["ops"][axis], []).append(row["group"])
    for word in ("whole", "partial sums", "-"):
        where.pop(word, None)
    name = f"{plan.mesh.names[axis]}={plan.mesh.sizes[axis]}"
    if not where:
        return f"{name} splits no op, only parameters"
    return f"{name} splits " + "; ".join(
        f"{word} in {_some(groups)}" for word, groups in where.items()
    )


def _some(groups: Sequence[str], most: int = 5) -> str:
    more = f" and {len(groups) - most} more" if len(groups) > most else ""
    return ", ".join(groups[:most]) + more


def _group_words(plan: Plan) -> Table:
    axes = [f"{name}={size}" for name, size in zip(plan.mesh.names, plan.mesh.sizes, strict=True)]
    rows = []
    for row in sorted(plan.summary["groups"], key=lambda row: row["group"].startswith("(")):
        name = row["group"] + (f" (x{row['count']})" if row["count"] > 1 else "")
        rows.append((name, *row["ops"], _parameter_words(plan.mesh.names, row["parameters"])))
    return Table(header=("layers", *axes, "parameters"), rows=tuple(rows))


def _parameter_words(names: Sequence[str], words: Sequence[str]) -> str:
    """The words of all axes in one cell: told by axis only where they differ."""
    if len(set(words)) == 1:
        return words[0]
    return "; ".join(
        f"{name}: {word}" for name, word in zip(names, words, strict=True) if word != "whole"
    )


def _time_lines(summary: Mapping[str, Any]) -> tuple[str | Table, ...]:
    """The step time in its parts, and the rates that follow."""
    step = summary["step_time_s"]
    parts = (
        ("compute", "compute_time_s"),
        ("exposed communication", "exposed_communication_time_s"),
        ("idle", "idle_time_s"),
    )
    rows = [(name, format_time(summary[key]), _percent(summary[key] / step)) for name, key in parts]
    rows.append(("step (simulated)", format_time(step), ""))
    out: list[str | Table] = [
        Table(header=("time", "", "share"), rows=tuple(rows), right=frozenset({1, 2}))
    ]
    if "samples_per_s" in summary:
        tokens = f", {_rate(summary['tokens_per_s'], 'tokens/s')}"
        shown = tokens if summary["tokens_per_s"] != summary["samples_per_s"] else ""
        rates = f"{_rate(summary['samples_per_s'], 'samples/s')}{shown}"
        out.append(f"{rates}; MFU {_percent(summary['mfu'])}, of the peak in {summary['dtype']}")
    if "padding" in summary:
        padded = summary["padding"]
        saved = _percent(1 - padded["step_time_s"] / step)
        out.append(
            f"--set {padded['setting']} would take {saved} less: {format_time(padded['step_time_s'])} on the same mesh"
        )
    return tuple(out)


def _rate(per_second: float, unit: str) -> str:
    """`926 k samples/s`: a word is no unit that takes a prefix."""
    return " ".join(format_rate(per_second, f" {unit}").split())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _memory_table(summary: Mapping[str, Any]) -> tuple[str | Table, ...]:
    """Memory at its peak by category, against what the device has."""
    capacity = summary["memory_capacity_bytes"]
    held = dict(summary["memory_bytes"])
    total = held.pop("total")
    rows: list[tuple[str, ...]] = [
        (_CATEGORY_WORDS[name], format_bytes(nbytes), _percent(nbytes / capacity))
        for name, nbytes in held.items()
        if nbytes
    ]
    rows.append(("peak", format_bytes(total), _percent(total / capacity)))
    allowed = summary["memory_allowed_bytes"]
    if allowed < capacity:
        rows.append(("allowed", format_bytes(allowed), _percent(allowed / capacity)))
    rows.append(("usable", format_bytes(capacity), "fits" if summary["fits"] else "DOES NOT FIT"))
    table = Table(
        header=("at the peak", "", "of usable"), rows=tuple(rows), right=frozenset({1, 2})
    )
    return (table, *_shared_words(summary), *_nearly_full(total / capacity, summary["fits"]))


def _shared_words(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """What a rank holds beside its own memory, to send through."""
    nbytes = summary.get("shared_memory_bytes", 0)
    return (
        (
            f"beside that, {format_bytes(nbytes)} per device to send through, which the ranks of a machine share",
        )
        if nbytes
        else ()
    )


def _cast_again(plan: Plan) -> tuple[str, ...]:
    """What a plan does that holds no casts of parameters from forward to backward."""
    if not plan.recast:
        return ()
    return (
        f"parameters are cast to {plan.summary['dtype']} again for backward: kept from forward, the casts would not fit",
    )


def _nearly_full(share: float, fits: bool) -> tuple[str, ...]:
    """A warning about a plan that fits as predicted and may not as run."""
    if not fits or share <= 1 - MEMORY_HEADROOM:
        return ()
    told = f"{_percent(share)} of the usable memory: what the allocator loses between tensors may not fit"
    return (f"{told}; --memory-headroom {MEMORY_HEADROOM:g}, the default, keeps that share free",)


def _alternatives(plan: Plan) -> tuple[str | Table, ...]:
    step = plan.summary["step_time_s"]
    name = plan.summary.get("standard_name")
    this = "this plan" if name is None else f"this plan: {name}"
    rows = [
        (
            this,
            str(plan.mesh),
            format_time(step),
            "1.00 x",
            format_bytes(plan.summary["memory_bytes"]["total"]),
            "yes",
        )
    ]
    for row in plan.alternatives:
        if row.step_time_s is None or row.memory_bytes is None:
            continue
        fits = ("made to" if row.made_to_fit else "yes") if row.fits else "no"
        rows.append(
            (
                row.name,
                row.mesh,
                format_time(row.step_time_s),
                f"{row.step_time_s / step:.2f} x",
                format_bytes(row.memory_bytes),
                fits,
            )
        )
    return (
        Table(
            header=("plan", "mesh", "step", "", "memory", "fits"),
            rows=tuple(rows),
            right=frozenset({2, 3, 4}),
        ),
        *(f"{row.name}: {row.reason}" for row in plan.alternatives if row.step_time_s is None),
        *_ruled_out(plan),
        *_drawn_on(plan.summary.get("drawn_on", ())),
    )


def _ruled_out(plan: Plan) -> tuple[str, ...]:
    """The baselines that the plan may not be, however fast."""
    names = [
        row.name for row in plan.alternatives if not row.allowed and row.step_time_s is not None
    ]
    return (
        (f"ruled out by the mesh and pins that were asked for: {', '.join(names)}",)
        if names
        else ()
    )


def _drawn_on(depths: Sequence[int]) -> tuple[str, ...]:
    """What the figures of plans that were not simulated whole come from."""
    return (
        (f"all but the fastest extrapolated from {' and '.join(map(str, depths))} layers",)
        if depths
        else ()
    )


def proof_lines(plan: Plan) -> tuple[str, ...]:
    """How good the plan is, and how that is known."""
    solver, summary = plan.solver, plan.summary
    step, bound = format_time(summary["step_time_s"]), format_time(solver.bound)
    meshes = "the one mesh" if solver.num_meshes == 1 else f"any of the {solver.num_meshes} meshes"
    lines = [
        f"step {step}; no plan that splits repeated layers alike takes less than {bound} on {meshes} searched, "
        f"whether it fits or not: gap {_percent(solver.gap)}",
        f"proved in {solver.time_s:.2f} s; planned in {summary['planning_time_s']:.1f} s in all",
    ]
    if left_out := summary.get("left_out"):
        lines.insert(
            1,
            f"not searched: {', '.join(left_out)}, for more pairs of strategies than fit in memory; --mesh plans one",
        )
    if limit := summary.get("time_limit_s"):
        late = summary.get("late")
        meshes = f"; not searched: {', '.join(late)}" if late else ""
        lines.append(f"stopped at the time limit of {limit:g} s{meshes}; --time-limit gives more")
    return tuple(lines)


def simulation(
    plan: Plan, cluster: Cluster, record: Mapping[str, Any], files: Mapping[str, str]
) -> tuple[Section, ...]:
    """The report of `plan simulate`."""
    where = f"simulated on {cluster.num_devices} x {cluster.device.name} ({cluster.name})"
    runs = links_in_words(map(asdict, axis_links(cluster, plan.mesh.names, plan.mesh.sizes)))
    return (
        Section(title=title(plan), body=(f"{where}, mesh {plan.mesh}", *((runs,) if runs else ()))),
        Section(title="One step", body=_time_lines(record)),
        Section(title="Memory of a device", body=_memory_table(record)),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def run_section(plan: Plan, result: Mapping[str, Any], median: float) -> Section:
    """What `plan run` prints at its end."""
    rows = [
        ("ranks", f"{result['num_ranks']} on {result['backend']}, mesh {plan.mesh}"),
        (
            "loss",
            f"{result['losses'][0]:.6f} to {result['losses'][-1]:.6f} in {len(result['losses'])} steps",
        ),
        (
            "step time",
            f"{format_time(median)} median, {format_time(min(result['step_times_s']))} least",
        ),
        ("peak memory", f"{format_bytes(result['peak_memory_bytes'])} a device{_beside(result)}"),
    ]
    verify = result["verify"]
    if verify is not None:
        rows += [
            ("verdict", _verdict(result["verdict"], verify)),
            ("against one process", f"loss {verify['loss_error']:.1e} (largest relative errors)"),
            ("", f"gradients {verify['gradient_error']:.1e} (worst: {verify['worst_gradient']})"),
            (
                "",
                f"parameters {verify['parameter_error']:.1e} (worst: {verify['worst_parameter']}{_left_out(verify)})",
            ),
            *(
                [("", f"buffers {verify['buffer_error']:.1e} (worst: {verify['worst_buffer']})")]
                if verify["worst_buffer"]
                else []
            ),
        ]
    return Section(title=f"Ran {plan.ask.model}", body=(Table(header=(), rows=tuple(rows)),))


def _beside(result: Mapping[str, Any]) -> str:
    nbytes = result.get("shared_memory_bytes", 0)
    return f", beside {format_bytes(nbytes)} shared to send through" if nbytes else ""


def _verdict(verdict: str, verify: Mapping[str, Any]) -> str:
    """The verdict; of a wrong run the values that are furthest off, and why there is no proof."""
    wrong = [one for one in verify["worst"] if one["error"] > verify["limit"]]
    if verdict == "no proof" and not wrong:
        return "no proof: rounding alone may explain most elements, or every gradient; plan with --precision fp64"
    told = "; ".join(
        f"{one['what']} {one['name']}{_at(one['index'])} is {one['ours']:.6g}, in one process {one['theirs']:.6g}"
        for one in wrong
    )
    return f"{verdict}: {told}" if told else verdict


def _at(index: Sequence[int]) -> str:
    return f"[{', '.join(map(str, index))}]" if index else ""


def _left_out(verify: Mapping[str, Any]) -> str:
    """The part of the parameters that says less than the rest, where there is one."""
    left_out, whole = verify["num_left_out"], verify["num_elements"]
    return (
        f"; {left_out:,} of {whole:,} elements left out: rounding alone may explain as much"
        if left_out
        else ""
    )


def comparison(result: Mapping[str, Any], files: Mapping[str, str]) -> tuple[Section, ...]:
    """What `plan compare` prints."""
    predicted, measured = result["predicted_step_time_s"], result["measured_step_time_s"]
    held, peak = result["predicted_peak_memory_bytes"], result["measured_peak_memory_bytes"]
    whole = (
        ("step time", format_time(predicted), format_time(measured), _error(result["error"])),
        (
            "peak memory",
            format_bytes(held),
            format_bytes(peak),
            _error(held / peak - 1 if peak else None),
        ),
    )
    numbers, header = frozenset({1, 2, 3}), ("predicted", "measured", "error")
    tables = tuple(
        Table(
            header=(name, *header),
            rows=tuple(
                (
                    row["kind"],
                    format_time(row["predicted_s"]),
                    format_time(row["measured_s"]),
                    _error(row["error"]),
                )
                for row in result[key]
            ),
            right=numbers,
        )
        for name, key in (
            ("kind", "by_kind"),
            ("phase", "by_phase"),
            ("collective", "by_collective"),
        )
        if result[key]
    )
    where = f"{result['num_ranks']} ranks, mesh {result['mesh']}; predicted on {result['hardware']}"
    return (
        Section(title=f"{result['model']}, predicted beside measured", body=(where,)),
        Section(
            title="One step",
            body=(
                Table(header=("", "predicted", "measured", "error"), rows=whole, right=numbers),
                *tables,
            ),
        ),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def _error(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:+.1f} %"


def models_sections(record: Mapping[str, Any]) -> tuple[Section, ...]:
    """What `plan models` prints."""
    header = ("", "batch a device", "sizes")
    built_in = [
        Section(
            title=spec["name"], body=(spec["description"], Table(header=header, rows=_sizes(spec)))
        )
        for spec in record["models"]
    ]
    return (*built_in, Section(title="your own", body=(_OWN_MODEL,)))


_OWN_MODEL = (
    "module:function or FILE.py:function; the function returns (model, batch, loss): a torch.nn.Module, a tuple of tensors "
    "with the target last, and a function of the model's output and the target; --batch, --seq and --set are passed to it"
)


def _sizes(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = [("default", spec["batch_per_device"], spec["options"])]
    rows += [
        (preset["name"], preset["batch_per_device"], preset["options"])
        for preset in spec["presets"]
    ]
    return tuple(
        (name, str(batch), ", ".join(f"{key}={value}" for key, value in sizes.items()))
        for name, batch, sizes in rows
    )
