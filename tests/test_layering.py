"""Dependencies point one way: cost_models <- planner <- runtime; and files are named for what they do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"cost_models": {"torch", "planner", "runtime"}, "planner": {"runtime"}, "runtime": set[str]()}
MAY_REACH_INTO_RUNTIME_LAZILY = "planner/cli/main.py"
SAYS_NOTHING = {"utils.py", "util.py", "common.py", "base.py", "helpers.py", "misc.py"}


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(top-level name, whether inside a function) of every absolute import in `source`."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], lazy
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return walk(ast.parse(source), False)


def broken(package: str, file: str, source: str) -> list[str]:
    """The imports of `source` that point the wrong way."""
    return [
        name
        for name, lazy in imports(source)
        if name in FORBIDDEN[package] and not (lazy and name == "runtime" and file == MAY_REACH_INTO_RUNTIME_LAZILY)
    ]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(f.relative_to(ROOT)): broken(package, str(f.relative_to(ROOT)), f.read_text()) for f in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_files_are_named_for_what_they_do() -> None:
    assert [file for package in FORBIDDEN for file in (ROOT / package).rglob("*.py") if file.name in SAYS_NOTHING] == []


def test_the_map_of_the_house_names_every_file() -> None:
    """By its name, or by a pattern such as `cli*.py`; what lies in a room of its own (`planner/rules/`) is named with the room."""
    patterns = [
        name for quoted in re.findall(r"`([^`]+)`", (ROOT / "ARCHITECTURE.md").read_text()) for name in quoted.split(", ")
    ]
    files = [file.name for package in FORBIDDEN for file in (ROOT / package).glob("*.py") if not file.name.startswith("__")]
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize(
    ("package", "file", "source", "names"),
    [
        ("cost_models", "cost_models/x.py", "import torch.nn", ["torch"]),
        ("cost_models", "cost_models/x.py", "def f():\n    from planner.graph.graph import Graph", ["planner"]),
        ("planner", "planner/cli/main.py", "def f():\n    from runtime import launch", []),
        ("planner", "planner/cli/main.py", "from runtime import launch", ["runtime"]),
        ("planner", "planner/search/search.py", "def f():\n    import runtime.launch", ["runtime"]),
        ("planner", "planner/search/search.py", "import torch, cost_models", []),
    ],
)
def test_the_rule_itself(package: str, file: str, source: str, names: list[str]) -> None:
    assert broken(package, file, source) == names
