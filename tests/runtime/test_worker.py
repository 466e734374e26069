"""A plan's file on real ranks, and the errors of a process that cannot take part."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from cost_models.cluster import load_cluster
from planner.plans.plan_file import write_plan
from planner.search.search import search
from planner.workload.ask import Ask
from runtime.launcher import launch
from runtime.worker import RunRequest


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of a small `mlp` for two CPU ranks, in float64."""
    settings = {"inputs": "16", "hidden": "32", "layers": "2", "outputs": "8"}
    ask = Ask(model="mlp", batch=8, seq=None, settings=settings, dtype="float64", num_devices=2)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        found = search(ask, load_cluster("cpu", num_devices=2))
    write_plan(found.plan, path)
    return path


def run_module(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime", *arguments]
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_launched_plan_verifies(plan: Path) -> None:
    events: list[dict[str, float]] = []
    request = RunRequest(plan=str(plan), num_steps=3, verify=True)
    result, nothing = launch("runtime.worker:run", 2, request, on_event=events.append)
    assert nothing is None
    report = json.loads(json.dumps(result.as_json()))
    assert [event["loss"] for event in events] == report["losses"]
    assert [event["step"] for event in events] == [1, 2, 3]
    assert (
        max(report["verify"][key] for key in ("loss_error", "gradient_error", "parameter_error"))
        < 1e-9
    )
    assert (report["num_ranks"], report["backend"], len(report["step_times_s"])) == (2, "gloo", 3)
    assert report["peak_memory_bytes"] > 0


def test_too_few_processes(plan: Path) -> None:
    done = run_module(str(plan))
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: the plan needs 2 processes but 1 were started: start it with --nproc-per-node 2\n"
    )


def test_port_in_use(plan: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_module(
            str(plan), RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
        )
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == f"error: the port of 127.0.0.1:{port} is in use: choose another with --master-port"
    )
    assert "Traceback" not in done.stderr
