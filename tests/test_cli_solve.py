"""`plan solve`: what it prints and writes, every kind of degenerate problem, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from planner.cli.main import cli


def problem_file(folder: Path, **changes: Any) -> str:
    """Two nodes, an edge, memory that binds; a key of nodes, edges or the problem replaced."""
    problem: dict[str, Any] = {
        "name": "two",
        "usage_limit": 9,
        "nodes": {
            "intervals": [[0, 10], [5, 20]],
            "costs": [[1, 2], [3, 4, 5]],
            "usages": [[8, 2], [4, 3, 0]],
        },
        "edges": {"nodes": [[0, 1]], "costs": [[0, 1, 2, 3, 4, 5]]},
    }
    for key, value in changes.items():
        section, _, name = key.partition("_")
        if section in ("nodes", "edges"):
            problem[section][name] = value
        elif value is None:
            del problem[key]
        else:
            problem[key] = value
    path = folder / "problem.json"
    path.write_text(json.dumps({"problem": problem}))
    return str(path)


def plan(*words: str) -> Result:
    result = CliRunner().invoke(cli, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def solved(file: str, *more: str) -> dict[str, Any]:
    result = plan("solve", file, "--json", *more)
    assert (result.exit_code, result.stderr) == (0, ""), result.stdout
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_what_it_prints_and_writes(tmp_path: Path) -> None:
    file, out = problem_file(tmp_path), tmp_path / "choice.json"
    found = solved(file, "--out", str(out))
    # 1 + 5 + 2; all other choices that fit cost more, and (0, 0) holds 12.
    assert json.loads(out.read_text()) == [0, 2]
    assert found.pop("time_s") > 0
    assert found == {"cost": 8, "bound": 8, "gap": 0.0, "status": "optimal", "peak": 8, "limit": 9}
    text = (
        (Path(__file__).parents[1] / "docs" / "json.md")
        .read_text()
        .partition("## plan solve\n")[2]
        .partition("\n## ")[0]
    )
    assert set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)) == {*found, "time_s"}
    said = plan("solve", file).stdout
    assert re.search(r"^cost +8$", said, re.MULTILINE) and re.search(
        r"peak +8 \(88.89 % of the limit of 9\)", said
    )


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"usage_limit": None}, 4),
        (
            {
                "nodes_intervals": [],
                "nodes_costs": [],
                "nodes_usages": [],
                "edges_nodes": [],
                "edges_costs": [],
            },
            0,
        ),
        ({"edges_nodes": [[0, 0]], "edges_costs": [[5, 0, 0, 1]], "usage_limit": 30}, 6),
        (
            {
                "edges_nodes": [[0, 1], [1, 0]],
                "edges_costs": [[0, 1, 2, 3, 4, 5], [7, 0, 0, 0, 0, 0]],
                "usage_limit": 30,
            },
            6,
        ),
        ({"edges_costs": [[10**18] * 5 + [5]], "usage_limit": 30}, 12),
        ({"edges_nodes": [], "edges_costs": [], "nodes_costs": [[0, 0], [0, 0, 0]]}, 0),
        ({"nodes_intervals": [[3, 3], [7, 7]], "usage_limit": 0}, 4),
    ],
    ids=[
        "no limit",
        "empty",
        "self-edge",
        "parallel edges",
        "one pair left",
        "free",
        "nothing held",
    ],
)
def test_degenerate_problems_that_have_an_answer(
    tmp_path: Path, changes: dict[str, Any], cost: int
) -> None:
    found = solved(problem_file(tmp_path, **changes))
    assert (found["status"], found["cost"], found["bound"]) == ("optimal", cost, cost)
    assert found["limit"] is None or found["peak"] <= found["limit"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"usage_limit": 1},
            "DoesNotFit: no choice fits the limit of 1 bytes: the smallest possible peak is 2, "
            "at time 0; raise",
        ),
        (
            {"edges_costs": [[10**18] * 6]},
            "NoPlan: every choice contains a forbidden strategy or pair",
        ),
        (
            {"nodes_costs": [[1, 2], []], "edges_costs": [[]], "nodes_usages": [[8, 2], []]},
            "BadValue: .*node 1 has no strategy",
        ),
        ({"nodes_usages": [[8, -2], [4, 3, 0]]}, "BadValue: .*-2 is below 0"),
        ({"nodes_costs": [[1, float("nan")], [3, 4, 5]]}, "BadValue: .*nan: give whole numbers"),
        ({"nodes_costs": [[1, 2**64], [3, 4, 5]]}, "BadValue: .*beyond 2"),
        ({"edges_costs": [[1]]}, "BadValue: .*edge 0 has 1 costs"),
        ({"speed": 1}, "BadValue: .*unknown key 'speed' in problem"),
    ],
)
def test_degenerate_problems_that_have_none(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = problem_file(tmp_path, **changes)
    result = plan("solve", file)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    again = plan("solve", file, "--json")
    error = json.loads(again.stdout)["error"]
    assert (again.exit_code, again.stderr) == (2, "")
    assert result.stderr == f"plan: error: {error['message']}\n"
    assert re.match(message, f"{error['kind']}: {error['message']}"), error


@pytest.mark.parametrize(
    "words", [("--time-limit", "0"), ("--time-limit", "soon"), ("--out", "nowhere/choice.json")]
)
def test_options_out_of_range(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = plan("solve", problem_file(tmp_path), *words)
    assert result.exit_code == 2 and result.stderr.startswith(
        f"plan: error: {words[0]} {words[1]}: give"
    )


def large(folder: Path) -> str:
    """Forty nodes of six strategies, each at odds with twelve: more than can be proved in a
    minute."""
    rng = np.random.default_rng(0)
    pairs = [(i, (i + step) % 40) for i in range(40) for step in range(1, 7)]
    return problem_file(
        folder,
        usage_limit=4000,
        nodes_intervals=[[i, i + 9] for i in range(40)],
        nodes_usages=rng.integers(1, 900, (40, 6)).tolist(),
        nodes_costs=rng.integers(0, 900, (40, 6)).tolist(),
        edges_nodes=[list(p) for p in pairs],
        edges_costs=rng.integers(0, 900, (len(pairs), 36)).tolist(),
    )


@pytest.mark.slow
def test_ctrl_c_gives_the_best_so_far(tmp_path: Path) -> None:
    out = tmp_path / "choice.json"
    words = ["solve", large(tmp_path), "--time-limit", "300", "--out", str(out), "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "planner", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        time.sleep(15)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    found = json.loads(printed)
    assert process.returncode == 0 and found["status"] == "feasible"
    assert (
        found["peak"] <= 4000
        and 0 < found["bound"] < found["cost"]
        and len(json.loads(out.read_text())) == 40
    )


def test_the_time_limit_gives_the_best_so_far(tmp_path: Path) -> None:
    found = solved(large(tmp_path), "--time-limit", "6")
    assert found["status"] == "feasible"
    assert found["peak"] <= 4000 and 0 < found["bound"] < found["cost"]
