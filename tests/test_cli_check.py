"""`--check` and the texts of graphs and problems, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cost_models.errors import FailedCheck
from planner.cli.main import cli
from planner.graph.checking import checking
from planner.lowering import order
from planner.plans.plan_file import read_plan
from planner.plans.replay import program_of, traced_of
from planner.report.graph_text import graph_text
from runtime import alike

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]
TINY = (
    "--set",
    "inputs=8",
    "--set",
    "hidden=8",
    "--set",
    "layers=1",
    "--set",
    "outputs=4",
    "--batch",
    "8",
    "--hardware",
    "cpu",
)


def plan(*words: str) -> Result:
    result = CliRunner().invoke(cli, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that was checked."""
    out = tmp_path_factory.mktemp("checked")
    result = plan(
        "--model",
        "mlp",
        *TINY,
        "--gpus",
        "2",
        "--pin",
        "*=ddp",
        "--pin",
        "*=data",
        "--check",
        "--out",
        str(out),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("checked: recording 1, reading 1, tracing 1, sub-dims 1, ")
    assert result.stderr.endswith(", all ranks 1; no faults\n")
    return out


def test_a_fault_of_ours_is_one_line_with_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = order.bucketed
    monkeypatch.setattr(order, "bucketed", lambda *args: buckets(*args)[1:])
    words = ("--model", "mlp", *TINY, "--gpus", "1", "--check", "--out", str(tmp_path / "out"))
    result = plan(*words)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (4, "", 1)
    assert result.stderr.startswith("plan: error: after buckets: values [")
    assert (
        "are written no more: this is a bug in shardwright, not in the model or the command"
        in result.stderr
    )
    assert not (tmp_path / "out").exists()
    told = json.loads(plan(*words, "--json").stdout)["error"]
    assert told["kind"] == "FailedCheck" and told["message"].startswith("after buckets: ")


def test_a_graph_is_printed_of_a_plan_and_of_a_model(planned: Path) -> None:
    text = graph_text(traced_of(read_plan(planned / "plan.json")).graph)
    assert plan("explain", str(planned), "--graph").stdout == text
    assert json.loads(plan("explain", str(planned), "--graph", "--json").stdout) == {
        "graph": text.splitlines()
    }
    of_model = plan("explain", "mlp", "--graph").stdout
    assert of_model.startswith("step      forward ") and of_model != text
    assert len(plan("explain", "mlp", "--graph", "--whole").stdout) > len(of_model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mlp", "--whole"), "--whole applies to --graph only: add --graph"),
        (
            ("mlp", "--graph", "--program"),
            "--program and --graph cannot be combined: give one of them",
        ),
        (
            ("plans/nowhere", "--graph"),
            "no plan file plans/nowhere: make one with plan --model NAME --gpus N",
        ),
        (("nowhere", "--graph"), "unknown model 'nowhere': "),
    ],
)
def test_what_has_no_text_is_one_line(words: tuple[str, ...], message: str) -> None:
    result = plan("explain", *words)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_a_problem_is_printed_with_its_solution(tmp_path: Path) -> None:
    problem = {
        "name": "two",
        "usage_limit": 9,
        "nodes": {
            "intervals": [[0, 10], [5, 20]],
            "costs": [[1, 2], [3, 4, 5]],
            "usages": [[8, 2], [4, 3, 0]],
        },
        "edges": {"nodes": [[0, 1]], "costs": [[0, 1, 2, 3, 4, 5]]},
    }
    (tmp_path / "problem.json").write_text(json.dumps({"problem": problem}))
    shown = plan("solve", str(tmp_path / "problem.json"), "--show", "--check").stdout
    assert "\n2 nodes, 1 edges of 6 pairs, 2 usages over 3 times, a limit of 9 bytes\n" in shown
    assert "\n  0: [1] 2\n      bytes [8] 2 from 0 to 10\n" in shown
    told = json.loads(plan("solve", str(tmp_path / "problem.json"), "--show", "--json").stdout)
    assert "\n".join(told["problem"]) in shown


def test_ranks_compare_their_programs(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In ranks, and what they would say if one lowered another program."""
    result = plan("run", str(planned), "--steps", "1", "--check")
    assert result.exit_code == 0, result.stderr
    program = program_of(read_plan(planned / "plan.json"))

    def gather(into: list[object], mine: object) -> None:
        into[:] = [mine, {0: ()}]

    monkeypatch.setattr(alike.dist, "all_gather_object", gather)
    monkeypatch.setattr(alike.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(alike.dist, "get_world_size", lambda: 2)
    with (
        checking(),
        pytest.raises(FailedCheck, match=r"^after all ranks: rank 1 has 0 collectives, rank 0 "),
    ):
        alike.check_meetings(program)
