"""The difference between two golden records in words: what a person reads before keeping the new
one."""

from __future__ import annotations

import difflib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cost_models.units import format_bytes, format_time

__all__ = ["differences"]

#: Seconds that differ by less are the same: another processor's last bits, and the six digits of
#: the text.
SAME_SECONDS = 1e-4

#: A bound is the end of a numerical optimisation, so it is compared less closely.
SAME_BOUND = 1e-3

#: Kinds and ratios of seconds that are told one by one.
MOST_RATIOS = 8


class Row(NamedTuple):
    """An instruction's columns, and its number in the program."""

    us: float
    nbytes: str
    kind: str
    id: str
    call: str
    place: int

    @property
    def frees(self) -> str:
        return self.call.partition("  frees ")[2]

    @property
    def told(self) -> str:
        return f"{self.kind} {self.id}: {self.nbytes} bytes, {self.call}"


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different now, a line each, the most general first; none where the records say the
    same."""
    rows = _baselines(kept["baselines"], now["baselines"])
    return [
        *_figures(kept, now),
        *rows,
        *_choices(kept, now),
        *_program(kept["program"], now["program"]),
    ]


# ------------------------------------------------------------------------------------------ figures


def _figures(kept: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    yield from _number("step", kept["step_time_s"], now["step_time_s"], format_time, SAME_SECONDS)
    yield from _number("bound", kept["bound_s"], now["bound_s"], format_time, SAME_BOUND)
    for name in dict.fromkeys((*kept["memory_bytes"], *now["memory_bytes"])):
        before, after = kept["memory_bytes"].get(name, 0), now["memory_bytes"].get(name, 0)
        yield from _number(f"memory {name}", before, after, format_bytes)
    for name in ("mesh", "bucket_bytes", "recast", "standard_name"):
        if kept[name] != now[name]:
            yield f"{name} {kept[name]} -> {now[name]}"


def _number(
    name: str,
    before: float | None,
    after: float | None,
    show: Callable[[float], str],
    same: float = 0.0,
) -> Iterator[str]:
    """One figure, if it is another; with all of its digits if those that are usually shown are
    the same."""
    if before == after or (
        before and after and math.isclose(before, after, rel_tol=same, abs_tol=0.0)
    ):
        return
    if before is None or after is None:
        yield f"{name} {'none' if before is None else show(before)} -> {'none' if after is None else show(after)}"
        return
    shown = (
        (show(before), show(after)) if show(before) != show(after) else (repr(before), repr(after))
    )
    yield f"{name} {shown[0]} -> {shown[1]}{f' (x {_ratio(after / before)})' if before else ''}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if abs(ratio - 1) >= 0.01 else f"{ratio:.6f}"


def _baselines(
    kept: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    before, after = ({row["name"]: row for row in rows} for rows in (kept, now))
    for name in dict.fromkeys((*before, *after)):
        if name not in after or name not in before:
            yield f"baseline {name} is {'gone' if name in before else 'new'}"
            continue
        a, b = before[name], after[name]
        yield from _number(
            f"baseline {name}: step", a["step_time_s"], b["step_time_s"], format_time, SAME_SECONDS
        )
        yield from _number(
            f"baseline {name}: memory", a["memory_bytes"], b["memory_bytes"], format_bytes
        )
        for key in sorted(set(a) - {"step_time_s", "memory_bytes"}):
            if a[key] != b[key]:
                yield f"baseline {name}: {key} {a[key]} -> {b[key]}"


def _choices(kept: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, what in (("options", "ops"), ("parameters", "parameters"), ("hubs", "hubs")):
        before, after = kept[name], now[name]
        if len(before) != len(after):
            yield f"{what}: {len(before)} classes -> {len(after)}"
        different = [n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
        if different:
            n, many = different[0], f"{len(different)} of {len(before)} classes of {what}"
            yield f"{many} have another choice, the first is class {n}: {before[n]} -> {after[n]}"


# ----------------------------------------------------------------------------------------- programs


def _program(kept: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    (head, before), (new_head, after) = _parsed(kept), _parsed(now)
    changed = [line for line in difflib.ndiff(head, new_head) if line[0] in "-+"]
    for line in changed[:6]:
        yield f"program head {line}"
    if len(changed) > 6:
        yield f"program head: {len(changed) - 6} more lines differ"
    if [row.told for row in before] != [row.told for row in after]:
        yield from _kinds(before, after)
        yield from _first(before, after)
        yield from _same_ids(before, after)
    yield from _seconds(before, after)


def _parsed(lines: Sequence[str]) -> tuple[list[str], list[Row]]:
    """The lines before the instructions, without their alignment, and the instructions."""
    start = next(
        n for n, line in enumerate(lines) if line.split() == ["us", "bytes", "kind", "id", "call"]
    )
    rows = [line.split(maxsplit=4) for line in lines[start + 1 :]]
    return [" ".join(line.split()) for line in lines[:start]], [
        Row(float(us), *rest, n) for n, (us, *rest) in enumerate(rows)
    ]  # type: ignore[call-arg]


def _kinds(before: list[Row], after: list[Row]) -> Iterator[str]:
    """How many instructions there are of each kind, where that is another number."""
    counts, new = Counter(row.kind for row in before), Counter(row.kind for row in after)
    told = [
        f"{kind} {counts[kind]} -> {new[kind]}"
        for kind in sorted({*counts, *new})
        if counts[kind] != new[kind]
    ]
    if told:
        yield f"instructions {len(before)} -> {len(after)}: {', '.join(told)}"


def _first(before: list[Row], after: list[Row]) -> Iterator[str]:
    """The first instruction that is another."""
    same = next(
        (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a.told != b.told),
        min(len(before), len(after)),
    )
    was = before[same].told if same < len(before) else "the end"
    now = after[same].told if same < len(after) else "the end"
    yield f"instruction {same} is the first that differs:\n    was {was}\n    now {now}"


def _same_ids(before: list[Row], after: list[Row]) -> Iterator[str]:
    """What is different of instructions that there were before."""
    old, new = {row.id: row for row in before}, {row.id: row for row in after}
    both = [name for name in old if name in new]
    for what, names in (
        ("are gone", [n for n in old if n not in new]),
        ("are new", [n for n in new if n not in old]),
    ):
        if names:
            yield f"{len(names)} instructions {what}: {_some(names)}"
    order = [name for name in new if name in old]
    if order != both:
        moved = sum(a != b for a, b in zip(both, order, strict=True))
        yield f"the order of {moved} instructions is another"
    frees = [name for name in both if old[name].frees != new[name].frees]
    if frees:
        yield f"{len(frees)} instructions free other values: {_some(frees)}"
    nbytes = [name for name in both if old[name].nbytes != new[name].nbytes]
    if nbytes:
        yield f"{len(nbytes)} instructions have other bytes: {_some(nbytes)}"
    calls = [
        name
        for name in both
        if old[name].call.partition("  frees ")[0] != new[name].call.partition("  frees ")[0]
    ]
    if calls:
        yield f"{len(calls)} instructions read, write or compute something else: {_some(calls)}"


def _seconds(before: list[Row], after: list[Row]) -> Iterator[str]:
    """Instructions of the same id that take other seconds, those of one kind and about one ratio
    together."""
    new = {row.id: row for row in after}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in before:
        other = new.get(row.id)
        if other is not None and not math.isclose(
            row.us, other.us, rel_tol=SAME_SECONDS, abs_tol=0.0
        ):
            groups[row.kind, _ratio(other.us / row.us) if row.us else "infinite"].append(row)
    for (kind, ratio), rows in list(groups.items())[:MOST_RATIOS]:
        r = rows[0]
        yield f"{len(rows)} {kind} take {ratio} times the seconds, the first {r.id}: {r.us:g} -> {new[r.id].us:g} us"
    if len(groups) > MOST_RATIOS:
        yield f"{sum(map(len, list(groups.values())[MOST_RATIOS:]))} more take other seconds"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
