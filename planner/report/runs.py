"""The sections that `plan run` and `plan compare` print: measurements, their distance from one
process's, and the predictions beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cost_models.units import format_bytes, format_time
from planner.report.sections import Section, Table

if TYPE_CHECKING:
    from planner.plans.plan import Plan

__all__ = ["comparison", "run_section"]


def run_section(plan: Plan, result: Mapping[str, Any], median: float) -> Section:
    """The section that `plan run` prints at its end."""
    rows = [
        ("ranks", f"{result['num_ranks']} on {result['backend']}, mesh {plan.mesh}"),
        (
            "loss",
            f"{result['losses'][0]:.6f} to {result['losses'][-1]:.6f} in {len(result['losses'])} steps",
        ),
        (
            "step time",
            f"median {format_time(median)}, fastest {format_time(min(result['step_times_s']))}",
        ),
        ("peak memory", f"{format_bytes(result['peak_memory_bytes'])} per device{_beside(result)}"),
        *_loss_scale(result),
    ]
    if result["verify"] is not None:
        rows += _against_one_process(result["verdict"], result["verify"])
    return Section(title=f"Ran {plan.ask.model}", body=(Table(header=(), rows=tuple(rows)),))


def _against_one_process(verdict: str, verify: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The verdict and the largest relative errors, each with the tensor that has it."""
    left_out = _left_out(verify)
    rows = [
        ("verdict", _verdict(verdict, verify)),
        ("against one process", f"loss {verify['loss_error']:.1e} (largest relative errors)"),
        ("", f"gradients {verify['gradient_error']:.1e} (worst: {verify['worst_gradient']})"),
        (
            "",
            f"parameters {verify['parameter_error']:.1e} "
            f"(worst: {verify['worst_parameter']}{left_out})",
        ),
    ]
    if verify["worst_buffer"]:
        rows.append(("", f"buffers {verify['buffer_error']:.1e} (worst: {verify['worst_buffer']})"))
    return rows


def _loss_scale(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The loss's scale, if it is scaled."""
    scales, skipped = result.get("loss_scales", ()), result.get("num_skipped", 0)
    if not scales:
        return []
    told = f"{skipped} step{'' if skipped == 1 else 's'} skipped, whose gradients overflowed"
    return [("loss scale", f"{scales[-1]:g}; {told}")]


def _beside(result: Mapping[str, Any]) -> str:
    nbytes = result.get("shared_memory_bytes", 0)
    return f", and {format_bytes(nbytes)} of shared send buffers" if nbytes else ""


def _verdict(verdict: str, verify: Mapping[str, Any]) -> str:
    """The verdict; of a wrong run the values that are furthest off, and why there is no proof."""
    wrong = [one for one in verify["worst"] if one["error"] > verify["limit"]]
    if verdict == "no proof" and not verify["worst_gradient"]:
        return "no proof: the gradients of every step overflowed; run more --steps"
    if verdict == "no proof" and not wrong:
        return (
            "no proof: rounding alone could explain the values of most elements or of every "
            "gradient; plan with --precision fp64"
        )
    told = "; ".join(
        f"{one['what']} {one['name']}{_at(one['index'])} is {one['ours']:.6g}, but "
        f"{one['theirs']:.6g} in one process"
        for one in wrong
    )
    return f"{verdict}: {told}" if told else verdict


def _at(index: Sequence[int]) -> str:
    return f"[{', '.join(map(str, index))}]" if index else ""


def _left_out(verify: Mapping[str, Any]) -> str:
    """The share of the parameters that proves less than the rest, in words; empty if none."""
    left_out, whole = verify["num_left_out"], verify["num_elements"]
    return (
        f"; {left_out:,} of {whole:,} elements checked only as far as rounding allows"
        if left_out
        else ""
    )


def comparison(result: Mapping[str, Any], files: Mapping[str, str]) -> tuple[Section, ...]:
    """The sections that `plan compare` prints."""
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
    header = ("", "predicted", "measured", "error")
    where = f"{result['num_ranks']} ranks, mesh {result['mesh']}; predicted on {result['hardware']}"
    return (
        Section(title=f"{result['model']}: predicted and measured", body=(where,)),
        Section(
            title="One step",
            body=(Table(header=header, rows=whole, right=_NUMBERS), *_by_part(result)),
        ),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


#: The columns of a comparison that are figures.
_NUMBERS = frozenset({1, 2, 3})


def _by_part(result: Mapping[str, Any]) -> list[Table]:
    """A table for each way to split the step's time, without tables that have no rows."""
    tables = []
    for part in ("body", "kind", "phase", "collective"):
        rows = tuple(
            (
                row["kind"],
                format_time(row["predicted_s"]),
                format_time(row["measured_s"]),
                _error(row["error"]),
            )
            for row in result.get(f"by_{part}", ())  # only pipelines have bodies
        )
        if rows:
            header = (part, "predicted", "measured", "error")
            tables.append(Table(header=header, rows=rows, right=_NUMBERS))
    return tables


def _error(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:+.1f} %"
