"""Dependencies point one way: cost_models <- planner <- runtime, room by room; no file imports
itself round a circle; and files are named for what they do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cost_models", "planner", "runtime")
#: Lowest first: what lies in a room imports from its own and from those above it in this list.
ROOMS = (
    "cost_models",
    "planner/torch_private",
    "planner/graph",
    "planner/rules",
    "planner/dims",
    "planner/state",
    "planner/kernels",
    "planner/program",
    "planner/schedules",
    "planner/partition",
    "planner/models",
    "planner/workload",
    "planner/trace",
    "planner/fusion",
    "planner/solver/problem",
    "planner/solver/reduce",
    "planner/solver/relax",
    "planner/solver/large",
    "planner/solver/exact",
    "planner/schedules/find",
    "planner/strategy",
    "planner/microbatch",
    "planner/stages",
    "planner/lowering",
    "planner/predict",
    "planner/plans",
    "planner/search",
    "planner/report",
    "planner/api.py",
    "planner/__init__.py",
    "planner/cli",
    "planner/__main__.py",
    "runtime",
    "runtime/calibrate",
    "runtime/compare",
)
#: Rooms that hold nothing but rooms: their `__init__.py` says what they are.
HALLS = ("planner/solver",)
#: The command line runs plans: it reaches up, inside functions, so that planning does not import
#: what runs.
REACHES_UP_LAZILY = "planner/cli"
SAYS_NOTHING = {"utils.py", "util.py", "common.py", "base.py", "helpers.py", "misc.py"}
NEEDS_NO_TORCH = ("cost_models", "planner/solver", "planner/schedules", "planner/partition")
#: The one room that uses names of torch's that are private. Ops are public whatever their names:
#: `torch.ops.aten._softmax`, `torch._foreach_add`.
MAY_USE_PRIVATE_NAMES = "planner/torch_private"
OPS = ("torch.ops.", "torch._foreach_")


@cache
def imports(source: str) -> tuple[tuple[str, bool], ...]:
    """(dotted name, whether inside a function) of every absolute import in `source`; of `from a
    import b` it is `a.b`."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return tuple(walk(ast.parse(source), False))


@cache
def sources() -> dict[str, str]:
    """Every file of the three packages, by its path, with its text."""
    return {
        str(f.relative_to(ROOT)): f.read_text()
        for package in PACKAGES
        for f in sorted((ROOT / package).rglob("*.py"))
    }


def file_of(name: str, files: Mapping[str, str]) -> str | None:
    """The file that an imported name lies in, None if it is none of ours."""
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):
        for tail in (".py", "/__init__.py"):
            if "/".join(parts[:end]) + tail in files:
                return "/".join(parts[:end]) + tail
    return None


def room_of(file: str) -> str | None:
    """The room of a file: its folder, or the file itself where it has a place of its own."""
    return next((room for room in (file, str(Path(file).parent)) if room in ROOMS), None)


def arrows(files: Mapping[str, str]) -> Iterator[tuple[str, str, bool]]:
    """(file, file that it imports, whether inside a function)."""
    for file, source in files.items():
        for name, lazy in imports(source):
            target = file_of(name, files)
            if target is not None and target != file:
                yield file, target, lazy


def up(files: Mapping[str, str]) -> list[str]:
    """The imports that point to a higher room."""
    return [
        f"{file} -> {target}"
        for file, target, lazy in arrows(files)
        if ROOMS.index(room_of(target) or "") > ROOMS.index(room_of(file) or "")
        and not (lazy and room_of(file) == REACHES_UP_LAZILY and target.startswith("runtime/"))
    ]


def circles(files: Mapping[str, str]) -> list[list[str]]:
    """Files that import each other, however far round and wherever in the file."""
    graph = nx.DiGraph((file, target) for file, target, _ in arrows(files))
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_every_file_lies_in_a_room() -> None:
    halls = {f"{hall}/__init__.py" for hall in HALLS}
    assert [file for file in sources() if room_of(file) is None and file not in halls] == []


def test_imports_point_one_way() -> None:
    halls = {f"{hall}/__init__.py" for hall in HALLS}
    assert up({file: text for file, text in sources().items() if file not in halls}) == []


def test_no_imports_go_in_circles() -> None:
    assert circles(sources()) == []


def test_hardware_schedules_and_solver_need_no_torch() -> None:
    found = {
        file: [name for name, _ in imports(text) if name.partition(".")[0] == "torch"]
        for file, text in sources().items()
        if file.startswith(NEEDS_NO_TORCH)
    }
    assert {file: names for file, names in found.items() if names} == {}


def private_names(source: str) -> list[str]:
    """The private names of torch's that `source` imports, or reads as attributes of `torch`."""
    read = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    dotted = [*(name for name, _ in imports(source)), *map(ast.unparse, read)]
    return sorted(
        name
        for name in set(dotted)
        if re.fullmatch(r"torch(\.\w+)+", name)
        and not name.startswith(OPS)
        and re.search(r"\._[a-z]", name, re.IGNORECASE)
    )


def test_private_names_of_torch_are_in_one_room() -> None:
    found = {
        file: private_names(text)
        for file, text in sources().items()
        if room_of(file) != MAY_USE_PRIVATE_NAMES
    }
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from torch._ops import OpOverload", ["torch._ops.OpOverload"]),
        ("def f():\n    return torch.utils._pytree", ["torch.utils._pytree"]),
        ("torch.ops.aten._softmax(x)", []),
        ("from torch.fx import Graph", []),
    ],
)
def test_private_names_are_found(source: str, names: list[str]) -> None:
    assert private_names(source) == names


def test_files_are_named_for_what_they_do() -> None:
    assert [file for file in sources() if Path(file).name in SAYS_NOTHING] == []


def test_the_map_of_the_house_names_what_is_there() -> None:
    """Every room with its files by name; where a file is one of many alike (a model, a rule, a
    kernel), its room is enough. And nothing that is not there."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py|(?:cost_models|planner|runtime)/(?:\w+/)*)`", text))
    alike = {"planner/models", "planner/rules", "planner/kernels"}
    files = [Path(file) for file in sources() if not Path(file).name.startswith("__")]
    rooms = {f"{room}/" for room in ROOMS if not room.endswith(".py")}
    assert rooms - named == set()
    assert [
        str(f)
        for f in files
        if f.name not in named and str(f) not in named and str(f.parent) not in alike
    ] == []
    there = (
        {Path(file).name for file in sources()}
        | {str(f) for f in files}
        | rooms
        | {f"{hall}/" for hall in HALLS}
    )
    assert [name for name in named if name not in there and not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("file", "source", "faults"),
    [
        ("cost_models/x.py", "def f():\n    from planner.graph.graph import Graph", 1),
        ("planner/graph/x.py", "from cost_models.units import GIB", 0),
        ("planner/graph/x.py", "from planner.search.search import search", 1),
        ("planner/cli/x.py", "def f():\n    from runtime.launcher import launch", 0),
        ("planner/cli/x.py", "from runtime.launcher import launch", 1),
        ("planner/search/x.py", "def f():\n    import runtime.launcher", 1),
        ("planner/search/x.py", "import torch, cost_models", 0),
    ],
)
def test_the_rule_itself(file: str, source: str, faults: int) -> None:
    there = dict.fromkeys(sources(), "") | {file: source}
    assert len(up({name: text for name, text in there.items() if room_of(name)})) == faults


def test_a_circle_is_found() -> None:
    there = {
        "planner/graph/a.py": "from planner.graph import b",
        "planner/graph/b.py": "def f():\n    from planner.graph.a import x",
    }
    assert circles(there) == [["planner/graph/a.py", "planner/graph/b.py"]]
