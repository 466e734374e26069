"""README.md and docs/: every command is one that `plan` takes, every name and key is there,
every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cost_models import schema
from cost_models.device import KINDS, NUMBER_FORMATS
from cost_models.errors import BadValue
from cost_models.hardware_toml import list_clusters, list_devices
from cost_models.library import ALGORITHMS
from cost_models.mixed_file import load_machine
from cost_models.optimizers import OPTIMIZERS, SETTINGS, check_settings
from planner.cli.main import cli
from planner.cli.options import slug
from planner.models import MODELS
from planner.solver.problem.contest import read_contest
from planner.strategy.pins import PINS
from planner.strategy.pipeline_options import pipeline_options
from planner.workload.load import resolve_options
from planner.workload.precision import PRECISIONS, precision_of

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS, ROOT / "examples" / "README.md"]


def load_outputs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("outputs", ROOT / "docs" / "outputs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["outputs"] = module  # where its dataclass looks for its types
    spec.loader.exec_module(module)
    return module


outputs = load_outputs()


def commands(page: Path) -> Iterator[str]:
    """The `plan ...` lines of a page: those that are run with their output, and those of other
    blocks, fenced or indented."""
    text = page.read_text()
    for block in outputs.blocks(text):
        yield from (
            line for line in block.commands or block.text.splitlines() if line.startswith("plan ")
        )
    yield from re.findall(r"^    (plan -?-?[a-z].*)$", text, re.MULTILINE)


ALL = [(page, command) for page in PAGES for command in dict.fromkeys(commands(page))]


# ----------------------------------------------------------------------------------------- commands


def check_names(page: Path, given: dict[str, Any]) -> None:
    """That what the options name is there."""
    files = {block.argument for block in outputs.blocks(page.read_text()) if block.kind == "file"}
    hardware = given.get("hardware") or given.get("name")
    if hardware is not None and hardware not in files:
        assert hardware in list_clusters()
    model = given.get("model")
    if model is None:
        return
    settings = dict(pair.split("=", 1) for pair in given["settings"])
    resolve_options(
        model,
        batch=given["batch"],
        seq=given["seq"],
        settings=settings,
        num_devices=given["gpus"] or 8,
    )
    if model.partition(":")[0].endswith(".py") and page.name != "README.md":
        assert model.partition(":")[0] in files or (ROOT / model.partition(":")[0]).is_file()
    names = ("pipeline", "schedule", "chunks", "mesh", "microbatches", "recompute", "pins")
    try:
        pipeline_options(num_devices=given["gpus"] or 8, **{name: given[name] for name in names})
    except BadValue as error:  # a page may show what cannot be
        assert f"plan: error: {str(error)[:50]}" in page.read_text()
    if given["precision"]:
        precision_of(given["precision"])
    if given["optimizer"]:
        numbers = {
            key: given[key] for key in ("weight_decay", "momentum") if given[key] is not None
        }
        check_settings(given["optimizer"], numbers)


@pytest.mark.parametrize(
    ("page", "command"), ALL, ids=[f"{page.stem}: {command}" for page, command in ALL]
)
def test_every_command_is_one_that_plan_takes(page: Path, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    verb = cli.commands.get(words[0])
    with (
        verb.make_context(words[0], words[1:])
        if verb
        else cli.make_context("plan", words) as context
    ):
        assert verb or context.params["model"]
        check_names(page, context.params)


def folder_of(given: dict[str, Any]) -> str:
    return str(given["out"] or f"plans/{slug(given['model'])}-{given['gpus'] or 8}")


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_plan_that_is_run_was_made_on_the_same_page(page: Path) -> None:
    made = set()
    for command in (
        command for block in outputs.blocks(page.read_text()) for command in block.commands
    ):
        words = shlex.split(command)[1:]
        if command.startswith("plan --model"):
            made.add(folder_of(cli.make_context("plan", words).params))
        elif command.startswith("plan ") and words[0] in (
            "run",
            "compare",
            "simulate",
            "explain",
            "report",
        ):
            assert (
                cli.commands[words[0]].make_context(words[0], words[1:]).params["plan_path"] in made
            ), command


def test_there_are_commands() -> None:
    assert len(ALL) > 40
    assert {page.name for page, _ in ALL} >= {
        "README.md",
        "pins.md",
        "plans.md",
        "running.md",
        "hardware.md",
        "models.md",
    }


# ---------------------------------------------------------------------------------- what pages list


def first_cells(page: str) -> set[str]:
    """What stands in code in the first column of the tables of a page."""
    rows = re.findall(r"^\|([^|]*)\|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def in_code(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / page).read_text()))


def test_every_key_of_the_hardware_file_is_on_its_page() -> None:
    tables = (
        schema.CLUSTER_KEYS,
        schema.INTRA_KEYS,
        schema.INTER_KEYS,
        schema.DEVICE_KEYS,
        schema.LEVEL_KEYS,
        schema.MIXED_KEYS,
        schema.NODES_KEYS,
        schema.BRIDGE_KEYS,
        schema.LIBRARY_KEYS,
        schema.PROTOCOL_KEYS,
    )
    keys = {key.name for table in tables for key in table}
    # Keys that the loader itself reads.
    more = {"device", "library", "links", "gemm_tiles", "hop_latency_us"}
    measured = {
        "device.gemm_table",
        "device.elementwise_table",
        "device.op_table",
        "collective_table",
        "contention",
    }
    assert (keys | more | measured) - first_cells("hardware.md") == set()
    known = {*list_clusters(), *list_devices(), *NUMBER_FORMATS, *ALGORITHMS, *KINDS} - {"view"}
    assert known - in_code("hardware.md") == set()
    # Keys of the same name as one in another table have the other's row first.
    again = (schema.MIXED_KEYS, schema.BRIDGE_KEYS)
    once = (table for table in tables if table not in again)
    for key in (key for table in once for key in table if key.optional):
        row = next(
            line
            for line in (ROOT / "docs/hardware.md").read_text().splitlines()
            if line.startswith(f"| `{key.name}` |")
        )
        assert "| optional" in row, key.name


def test_every_model_pin_optimizer_and_precision_is_on_its_page() -> None:
    models = {name for spec in MODELS.values() for name in (spec.name, *spec.presets)}
    assert models - in_code("models.md") == set()
    assert set(PINS) - first_cells("pins.md") == set()
    pinned = {
        pin.rpartition("=")[2]
        for pin in re.findall(r"--pin '([^']+)'", (ROOT / "docs" / "pins.md").read_text())
    }
    assert set(PINS) - {"zero1"} <= pinned, "a pin has no example (zero1 is zero2)"
    assert {
        name for name in OPTIMIZERS if not name.startswith("keras-") and "amsgrad" not in name
    } <= first_cells("optimizers.md")
    assert {setting for names in SETTINGS.values() for setting in names} <= in_code("optimizers.md")
    assert set(PRECISIONS) <= first_cells("precision.md")


def test_the_files_that_pages_show_are_read(tmp_path: Path) -> None:
    for page in PAGES:
        for block in outputs.blocks(page.read_text()):
            if block.kind == "file":
                file = tmp_path / block.argument
                file.write_text(block.text)
                if file.suffix == ".toml":
                    load_machine(str(file))
                elif file.suffix == ".json":
                    read_contest(file)
                else:
                    compile(block.text, block.argument, "exec")


# ---------------------------------------------------------------------------------- pages and links


def test_the_readme_is_short_and_links_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert [page.name for page in DOCS if f"](docs/{page.name})" not in text] == []


@pytest.mark.parametrize("page", DOCS, ids=[page.stem for page in DOCS])
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    title, blank, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert blank == ""
    assert first.startswith("This page is for ")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


RECORDS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
LINKING = [
    *PAGES,
    *RECORDS,
    *(ROOT / name for name in ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")),
]


@pytest.mark.parametrize("page", LINKING, ids=[str(page.relative_to(ROOT)) for page in LINKING])
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        where, _, anchor = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# ---------------------------------------------------------------------------------- docs/outputs.py


PAGE = """text

<!-- file: a.txt -->
```
one
```

<!-- show: [], [Two], row -->
```
$ cat a.txt
old
$ cat a.txt
```

```
not run
```
"""


def test_outputs_are_written_under_their_commands(tmp_path: Path) -> None:
    new = outputs.rewritten(PAGE, tmp_path, "")
    assert new == PAGE.replace(
        "$ cat a.txt\nold\n$ cat a.txt\n", "$ cat a.txt\none\n$ cat a.txt\none\n"
    )
    assert outputs.rewritten(PAGE, tmp_path, "nothing of it") == PAGE


def test_what_is_shown_of_an_output() -> None:
    output = "head\nmore\n\nOne\nkey   value\n───────\nrow     1\nthat    2\n\nTwo\nkey   value\n───────\nlast    3"
    assert outputs.shown(output, "[]") == "head\nmore"
    assert (
        outputs.shown(output, "[], [Two]")
        == "head\nmore\n...\n\nTwo\nkey   value\n───────\nlast    3"
    )
    assert outputs.shown(output, "[Two]") == "Two\nkey   value\n───────\nlast    3"
    assert (
        outputs.shown(output, "key, row")
        == "key   value\n───────\nrow     1\n...\nkey   value\n───────"
    )


def test_a_traceback_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        outputs.run("python -c '1 / 0'", tmp_path)
