"""The sections of a report on a pipeline: its stages, what each holds, what the axes split in each,
what runs again. Made from a plan's file alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cost_models.axis_links import links_in_words
from cost_models.units import format_bytes, format_time
from planner.report.sections import Section, Table
from planner.report.step import CATEGORY_WORDS, percent

if TYPE_CHECKING:
    from planner.plans.plan import Plan

__all__ = [
    "pipeline_proof",
    "pipeline_section",
    "stage_memory",
    "stage_recomputed",
    "stage_splits",
    "stage_table",
]

#: So many names of layers are written out; of more, the first and the last.
_NAMES = 3


def pipeline_section(plan: Plan) -> Section:
    """The stages in a table: layers, devices, seconds of a microbatch, microbatches in flight, peak
    and how long the devices wait."""
    assert plan.pipeline is not None
    stages = plan.summary["stages"]
    body: tuple[str | Table, ...] = (
        pipeline_words(plan),
        stage_table(stages, plan.summary["bubble"]),
        *_bubble_words(plan.summary["bubble"]),
    )
    return Section(title="Pipeline", body=body)


def pipeline_words(plan: Plan) -> str:
    """The places, their devices and the schedule in a sentence."""
    assert plan.pipeline is not None
    places = 1 + max(row["place"] for row in plan.summary["stages"])
    stages, number = len(plan.summary["stages"]), plan.ask.microbatches
    meshes = {row["place"]: row["mesh"] for row in plan.summary["stages"]}
    each = plan.mesh.num_devices // places
    axes = ",".join(
        f"{n}={s}" for n, s in list(zip(plan.mesh.names, plan.mesh.sizes, strict=True))[1:]
    )
    devices = f"{each} devices each ({axes})" if each > 1 else "1 device each"
    if _is_unlike(plan):
        devices = f"unlike devices ({' + '.join(meshes[place] for place in range(places))})"
    parts = f"{number} microbatches" if number > 1 else "1 microbatch"
    return (
        f"{places} pipeline ranks of {devices}, {stages} stages; schedule "
        f"{plan.pipeline.schedule}, {parts}"
    )


def stage_table(stages: Sequence[Mapping[str, Any]], bubble: Sequence[float]) -> Table:
    """A row for each stage. Backward is one column, or two where it runs in two halves."""
    bodies = [
        (title, key)
        for title, key in (
            ("F", "forward_s"),
            ("B", "backward_s"),
            ("I", "input_s"),
            ("W", "weight_s"),
        )
        if any(row[key] for row in stages)
    ]
    meshes = [row.get("mesh", "") for row in stages]
    unlike = len(set(meshes)) > 1
    rows = []
    for row in stages:
        first, last = row["devices"]
        rows.append(
            (
                str(row["stage"]),
                f"{first}-{last}" if last > first else str(first),
                *((row["mesh"],) if unlike else ()),
                _names(row.get("layers", ())),
                *(format_time(row[key]) for _, key in bodies),
                format_time(row["before_s"] + row["after_s"]),
                str(row["in_flight"]),
                format_bytes(row["memory_bytes"]["total"]),
                percent(bubble[row["place"]]),
            )
        )
    titles = tuple(title for title, _ in bodies)
    return Table(
        header=(
            "stage",
            "devices",
            *(("mesh",) if unlike else ()),
            "layers",
            *titles,
            "once",
            "in flight",
            "peak",
            "waits",
        ),
        rows=tuple(rows),
        right=frozenset(range(3 + unlike, 7 + unlike + len(bodies))),
    )


def _names(layers: Sequence[str]) -> str:
    """The names of a stage's layers, shortened."""
    if len(layers) <= _NAMES:
        return ", ".join(layers)
    return f"{layers[0]} to {layers[-1]} ({len(layers)})"


def _bubble_words(bubble: Sequence[float]) -> tuple[str, ...]:
    share = percent(sum(bubble) / len(bubble))
    return (
        f"bubble {share}: the share of the step that the devices wait, on average",
        "F, B, I, W: forward, backward, its input half and its weight half, of one microbatch; once: "
        "what runs once a step, such as the update",
    )


def stage_memory(plan: Plan) -> Section:
    """What every stage holds at its peak, by category."""
    stages = plan.summary["stages"]
    names = [n for n in stages[0]["memory_bytes"] if any(row["memory_bytes"][n] for row in stages)]
    rows = tuple(
        (str(row["stage"]), *(format_bytes(row["memory_bytes"][name]) for name in names))
        for row in stages
    )
    table = Table(
        header=("stage", *(CATEGORY_WORDS.get(name, name) for name in names)),
        rows=rows,
        right=frozenset(range(1, 1 + len(names))),
    )
    return Section(title="Memory per device by stage, at its peak", body=(table,))


def _is_unlike(plan: Plan) -> bool:
    """Whether the places of a pipeline have unlike meshes."""
    assert plan.pipeline is not None
    return len({stage.mesh.sizes for stage in plan.pipeline.stages}) > 1


def _split_words(plan: Plan, row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the axes split in a group of layers, a word for each axis; all in one if stages have
    unlike axes."""
    assert plan.pipeline is not None
    if not _is_unlike(plan):
        return tuple(row["ops"][1:])
    mesh = plan.pipeline.stages[int(row["ops"][0].removeprefix("stage "))].mesh
    axes = str(mesh).split(",")
    return (", ".join(f"{axis}: {word}" for axis, word in zip(axes, row["ops"][1:], strict=True)),)


def stage_splits(plan: Plan) -> Section:
    """What the axes of the stages' meshes split, stages with the same words in one row."""
    assert plan.pipeline is not None
    mesh, summary = plan.mesh, plan.summary
    axes = [f"{n}={s}" for n, s in list(zip(mesh.names, mesh.sizes, strict=True))[1:]]
    unlike = _is_unlike(plan)
    axes = ["split"] if unlike else axes
    found: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for row in summary["groups"]:
        stage = plan.pipeline.stages[int(row["ops"][0].removeprefix("stage "))]
        names = ("pp", *stage.mesh.names)
        words = (row["group"], *_split_words(plan, row), _parameter_words(names, row["parameters"]))
        found.setdefault(words, []).append((row["ops"][0].removeprefix("stage "), row["count"]))
    rows = tuple(
        (
            _runs([int(stage) for stage, _ in some]),
            words[0] + (f" (x{count})" if (count := sum(n for _, n in some)) > 1 else ""),
            *words[1:],
        )
        for words, some in found.items()
    )
    told = (
        ("not part of the loss, so never updated: ", summary.get("take_no_part", ())),
        ("run whole on every device of a stage: ", summary["replicated_ops"]),
        ("run whole for lack of a rule: ", summary["ops_without_rule"]),
        ("rule discovered by running the op in shards: ", summary["discovered_ops"]),
    )
    links = (links_in_words(summary["axes"]),) if summary.get("axes") else ()
    table = (Table(header=("stage", "layers", *axes, "parameters"), rows=rows),)
    return Section(
        title="Mesh of the stages",
        body=(
            *links,
            *(
                table
                if unlike or plan.mesh.num_devices > mesh.sizes[0]
                else ("one device a stage",)
            ),
            *(words + ", ".join(names) for words, names in told if names),
        ),
    )


def _runs(numbers: Iterable[int]) -> str:
    """`0-2, 5` of 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in dict.fromkeys(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _parameter_words(names: Sequence[str], words: Sequence[str]) -> str:
    pairs = list(zip(names, words, strict=True))[1:]
    if len({word for _, word in pairs}) == 1:
        return pairs[0][1]
    return "; ".join(f"{name}: {word}" for name, word in pairs if word != "whole")


def stage_recomputed(plan: Plan) -> tuple[Section, ...]:
    """What runs again in backward, by stage, and what that costs; none if nothing does."""
    rows: list[tuple[str, ...]] = []
    for stage in plan.summary["stages"]:
        again = stage.get("recomputed")
        for group in again["groups"] if again else ():
            ops = ", ".join(f"{n} x{c}" if c > 1 else n for n, c in group["ops"].items())
            rows.append(
                (
                    str(stage["stage"]),
                    f"{group['group'] or '(top level)'} (x{group['count']})",
                    ops,
                    format_time(group["time_s"]),
                    percent(group["time_s"] / plan.summary["step_time_s"]),
                    format_bytes(group["held_less_bytes"]),
                )
            )
    if not rows:
        return ()
    header = ("stage", "layers", "what runs again", "time of a step", "of it", "held less")
    table = Table(header=header, rows=tuple(rows), right=frozenset({3, 4, 5}))
    return (Section(title="Recomputed in backward", body=(table,)),)


def pipeline_proof(plan: Plan) -> tuple[str, ...]:
    """How good a pipeline is known to be: not more than it is."""
    solver, summary = plan.solver, plan.summary
    step, gap = summary["step_time_s"], percent(solver.gap)
    return (
        f"step time {format_time(step)}, lower bound {format_time(solver.bound)}, gap {gap}",
        _bound(plan),
        f"{_searched(plan)}; the splits within each stage are solved, where the stages begin is "
        "balanced",
        f"planned in {summary['planning_time_s']:.1f} s in total",
    )


def _bound(plan: Plan) -> str:
    """What the bound is."""
    if plan.summary.get("pipelines"):
        return (
            "the bound is the time of all kernels, each on the whole batch on one device, over the "
            "number of devices, without messages or bubbles: few plans come near"
        )
    return (
        "the bound is all products of the model at the peak of all devices, without messages or "
        "bubbles: no plan on these devices is faster, and few come near"
    )


def _searched(plan: Plan) -> str:
    """Which pipelines the plan is the fastest of."""
    if counts := plan.summary.get("pipelines"):
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        return f"pipelines: {told}"
    if plan.solver.num_meshes == 1:
        return "as typed: one pipeline, simulated"
    return f"as typed: the fastest that fits of {plan.solver.num_meshes} pipelines, all simulated"
