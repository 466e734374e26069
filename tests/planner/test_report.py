"""Reports at any width, Markdown, pictures of few and of many events, and the figures that they
are drawn from."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cost_models.cluster import load_cluster
from cost_models.device import KINDS
from cost_models.timeline import Event, Timeline
from planner.plans.plan import SolverRecord
from planner.predict.predict import memory_by_category, memory_over_time, simulate_program
from planner.report.explain import explain, explanation
from planner.report.memory_picture import draw_memory
from planner.report.records import compare_record, plan_record, run_record
from planner.report.report import proof_lines, report
from planner.report.runs import comparison, run_section
from planner.report.sections import Section, Table, markdown, show
from planner.report.timeline_picture import draw_timeline
from planner.search.search import Found, search
from planner.workload.ask import Ask

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")
FILES = {"plan": "a/plan.json", "report": "a/report.md", "timeline": "a/timeline.json"}


@pytest.fixture(scope="module")
def found() -> Found:
    """A plan of a small `gpt` for 8 devices."""
    settings = {"layers": "2", "width": "64", "heads": "4", "vocab": "128", "seq": "16"}
    ask = Ask(model="gpt", batch=16, seq=None, settings=settings, dtype="float32", num_devices=8)
    return search(ask, load_cluster("dgx-h100"))


def drawn(sections: tuple[Section, ...], width: int) -> str:
    out = io.StringIO()
    show(sections, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def png_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


# -------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_cut_off_at_any_width(found: Found, width: int) -> None:
    for sections in (report(found.plan, FILES), explanation(found.plan, explain(found.plan))):
        text = drawn(sections, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        squeezed = "".join(text.split())
        lines = [part for section in sections for part in section.body if isinstance(part, str)]
        assert all("".join(line.split()) in squeezed for line in lines)


def test_the_report_says_what_it_must(found: Found) -> None:
    text = drawn(report(found.plan, FILES), 120)
    summary = found.plan.summary
    for name, size in zip(found.plan.mesh.names, found.plan.mesh.sizes, strict=True):
        assert f"{name}={size} splits" in text
    for word in (
        "compute",
        "exposed communication",
        "idle",
        "samples/s",
        "tokens/s",
        "MFU",
        "optimizer state",
        "usable",
        "gap",
    ):
        assert word in text
    for row in summary["groups"]:
        assert row["group"] in text
    for alternative in found.plan.alternatives:
        assert alternative.name in text
    for path in FILES.values():
        assert path in text


def test_markdown_has_the_same_sections_and_rows(found: Found) -> None:
    sections = report(found.plan, FILES)
    text = markdown(sections)
    assert text.startswith(f"# {sections[0].title}\n")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        s.title for s in sections[1:]
    ]
    rows = sum(len(part.rows) + 2 for s in sections for part in s.body if isinstance(part, Table))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == rows
    assert all(line.endswith("|") for line in tables)


def test_markdown_keeps_stars_and_bars() -> None:
    table = Table(header=("a",), rows=(("h.*.attn | x",),), right=frozenset({0}))
    assert (
        markdown([Section(title="T", body=(table, "h.*"))])
        == "# T\n\n| a |\n| --: |\n| h.\\*.attn \\| x |\n\nh.\\*\n"
    )


def test_the_proof_in_words(found: Found) -> None:
    """One line has the step, the bound and the gap; another what was not searched."""
    summary = {**found.plan.summary, "step_time_s": 1.0, "planning_time_s": 2.0}
    solver = SolverRecord(bound=0.951, gap=0.049, num_meshes=7, time_s=0.1)
    lines = proof_lines(replace(found.plan, solver=solver, summary=summary))
    assert lines == (
        "step time 1.00 s, lower bound 951 ms, gap 4.9 %",
        "the bound holds for all plans on the 7 meshes searched that split repeated layers in "
        "the same "
        "way, whether they fit or not",
        "proved in 0.10 s; planned in 2.0 s in total",
    )
    cut = replace(found.plan, solver=solver, ask=replace(found.plan.ask, microbatches=4))
    several = proof_lines(replace(cut, summary={**summary, "only_one_microbatch": "batch norm"}))
    assert several[1].startswith("the bound holds for all plans in 4 microbatches on the 7 meshes")
    assert several[-1].endswith("more microbatches were not searched: batch norm")
    one = replace(
        found.plan, solver=replace(solver, num_meshes=1), summary={**summary, "left_out": ["2x2x2"]}
    )
    lines = proof_lines(one)
    assert "all plans on the one mesh searched" in lines[1]
    assert lines[2].startswith("not searched: 2x2x2; ") and len(lines) == 4


def test_the_table_says_what_was_made_to_fit_and_what_was_ruled_out(found: Found) -> None:
    first = replace(
        found.plan.alternatives[0], step_time_s=1.0, memory_bytes=1, fits=True, made_to_fit=True
    )
    other = replace(
        found.plan.alternatives[1],
        step_time_s=1.0,
        memory_bytes=1,
        fits=False,
        made_to_fit=False,
        allowed=False,
    )
    summary = {**found.plan.summary, "standard_name": "ZeRO-3"}
    text = drawn(
        report(replace(found.plan, alternatives=(first, other), summary=summary), FILES), 120
    )
    assert any(
        line.startswith(first.name) and line.rstrip().endswith("made to fit")
        for line in text.splitlines()
    )
    assert f"ruled out by the given mesh and pins: {other.name}" in text
    assert "this plan: ZeRO-3" in text


def test_an_alternative_that_is_not_there_says_why(found: Found) -> None:
    gone = replace(
        found.plan.alternatives[0], step_time_s=None, memory_bytes=None, fits=False, reason="no way"
    )
    text = drawn(report(replace(found.plan, alternatives=(gone,)), FILES), 100)
    assert f"{gone.name}: no way" in text and f"{gone.name}  " not in text
    assert plan_record(replace(found.plan, alternatives=(gone,)), FILES)["alternatives"] == [
        {
            "name": gone.name,
            "mesh": gone.mesh,
            "step_time_s": None,
            "memory_bytes": None,
            "fits": False,
            "made_to_fit": False,
            "allowed": True,
            "reason": "no way",
        }
    ]


RUN = {
    "num_ranks": 8,
    "backend": "gloo",
    "losses": [2.0, 1.5],
    "step_time_s": 0.25,
    "step_times_s": [0.3, 0.2],
    "peak_memory_bytes": 2**20,
    "verdict": None,
    "verify": None,
}


def test_what_a_run_gave(found: Found) -> None:
    assert run_record(RUN) == RUN
    text = drawn((run_section(found.plan, RUN, 0.25),), 100)
    assert "2.000000 to 1.500000 in 2 steps" in text
    assert "median 250 ms, fastest 200 ms" in text
    assert "1.00 MiB per device" in text
    errors = {
        "loss_error": 1e-12,
        "gradient_error": 2e-11,
        "parameter_error": 3e-10,
        "buffer_error": 4e-9,
    }
    verify = {**errors, "num_left_out": 1200, "num_elements": 50_000, "limit": 1e-9, "worst": []}
    checked = {
        **RUN,
        "verdict": "equal to rounding",
        "verify": {
            **verify,
            "worst_gradient": "a.weight",
            "worst_parameter": "b.bias",
            "worst_buffer": "c.seen",
        },
    }
    assert run_record(checked)["verify"] == verify
    text = drawn((run_section(found.plan, checked, 0.25),), 140)
    for words in (
        "verdict",
        "equal to rounding",
        "loss 1.0e-12",
        "gradients 2.0e-11 (worst: a.weight)",
        "parameters 3.0e-10 (worst: b.bias; 1,200 of 50,000 elements checked only as far as "
        "rounding allows)",
        "buffers 4.0e-09 (worst: c.seen)",
    ):
        assert words in text


def test_predicted_beside_measured() -> None:
    kind = {"kind": "gemm", "count": 3, "predicted_s": 0.001, "measured_s": 0.002, "error": -0.5}
    between = {
        "kind": "between ops",
        "count": 0,
        "predicted_s": 0.0,
        "measured_s": 0.0,
        "error": None,
    }
    result = {
        "model": "m",
        "mesh": "dp=2",
        "num_ranks": 2,
        "hardware": "here",
        "predicted_step_time_s": 0.011,
        "measured_step_time_s": 0.010,
        "error": 0.1,
        "predicted_peak_memory_bytes": 100,
        "measured_peak_memory_bytes": 80,
        "by_kind": [kind, between],
        "by_phase": [],
        "by_collective": [],
    }
    text = drawn(comparison(result, {"json": "x.json"}), 100)
    for words in (
        "+10.0 %",
        "+25.0 %",
        "-50.0 %",
        "x.json",
        "2 ranks, mesh dp=2; predicted on here",
    ):
        assert words in text
    assert compare_record(result)["by_kind"][0] == {
        "kind": "gemm",
        "predicted_s": 0.001,
        "measured_s": 0.002,
        "error": -0.5,
    }


# --------------------------------------------------------------------------------- memory over time


def test_memory_over_time_peaks_where_memory_by_category_says(found: Found) -> None:
    """The table, the picture and the simulated timeline are one account."""
    timeline = simulate_program(found.program, found.plan.hardware.cluster())
    times, held = memory_over_time(found.program, timeline)
    totals = [sum(values) for values in zip(*held.values(), strict=True)]
    assert times[0] == 0.0
    assert times == sorted(times)
    assert times[-1] <= timeline.step_time
    assert totals[0] >= sum(found.program.initial_bytes.values())
    assert max(totals) == timeline.peak_memory == sum(memory_by_category(found.program).values())
    assert min(min(values) for values in held.values()) >= 0


# ----------------------------------------------------------------------------------------- pictures


def events(number: int) -> Timeline:
    """A step of `number` ops, a quarter of them collectives beside the others."""
    out = []
    for i in range(number):
        talks = i % 4 == 3
        phase = "forward" if i < number / 3 else "backward"
        out.append(
            Event(
                id=f"e{i}",
                kind="all_reduce" if talks else "gemm",
                phase=phase,
                device=0,
                path=f"h.{i}.fc",
                stream="communication" if talks else "compute",
                start=i * 1e-4,
                end=(i + 1) * 1e-4,
            )
        )
    return Timeline(events=tuple(out), step_time=number * 1e-4)


@pytest.mark.parametrize(("number", "tall"), [(0, False), (1, False), (60, False), (5000, True)])
def test_timeline_picture(number: int, tall: bool) -> None:
    """Many events get close-ups below; no number of events breaks the picture."""
    width, height = png_size(draw_timeline(events(number), "title"))
    assert width == 1320
    assert (height > 500) == tall


@pytest.mark.parametrize("peak", [1, 10**6, 70 * 2**30, 90 * 2**30])
def test_memory_picture(peak: int) -> None:
    held = {"parameters": [peak // 2] * 3, "activations": [0, peak - peak // 2, 0]}
    assert png_size(draw_memory([0.0, 1e-3, 2e-3], held, 3e-3, 80 * 2**30, "title")) == (1320, 484)


def test_every_kind_of_kernel_has_a_colour_of_its_own() -> None:
    from planner.report.timeline_picture import _KINDS

    colours = [_KINDS[kind] for kind in KINDS]
    assert len(set(colours)) == len(KINDS)


def test_pictures_can_be_looked_at(found: Found, tmp_path: Path) -> None:
    """Every colour of a kind that the plan has is in the picture: nothing that ran is invisible."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    from planner.report.timeline_picture import _KINDS

    cluster = found.plan.hardware.cluster()
    timeline = simulate_program(found.program, cluster)
    path = tmp_path / "t.png"
    path.write_bytes(draw_timeline(timeline, "t"))
    pixels = {
        tuple(round(255 * float(v)) for v in pixel[:3])
        for row in imread(path)
        for pixel in row[::2]
    }
    for kind in {event.kind for event in timeline.events if event.duration > 0}:
        assert tuple(round(255 * v) for v in to_rgb(_KINDS[kind])) in pixels, kind
