"""The command line as a person meets it: every verb, its JSON, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from planner.cli.main import cli
from planner.cli.output import StepBar
from planner.plans.plan_file import read_plan
from planner.plans.replay import program_of
from planner.program.text import program_text
from runtime.verdict import Apart
from runtime.verify import Verification
from runtime.worker import RunResult

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp"),
    # torch warns about its own call when it compiles.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]
TINY = ("--set", "inputs=16", "--set", "hidden=32", "--set", "outputs=8")

MY_MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Branches(Net):
    def forward(self, x):
        if x.sum() > 0:
            x = x + 1
        return super().forward(x)


class Centred(Net):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0)


def make(batch=32, net=Net):
    return net(), (torch.randn(batch, 16), torch.randn(batch, 4)), nn.functional.mse_loss


def branches():
    return make(net=Branches)


def centred():
    return make(net=Centred)


def compiled():
    model, *rest = make()
    return torch.compile(model), *rest
"""


def plan(*words: str) -> Result:
    """`plan WORDS` in this process."""
    result = CliRunner().invoke(cli, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(*words: str, again: bool = True) -> str:
    """The one line that `plan WORDS` prints on stderr; under `--json`, if run `again`, the same
    stands alone on stdout."""
    result = plan(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("plan: error: ")
    assert result.stderr.count("\n") == 1
    if not again:
        return result.stderr.removeprefix("plan: error: ").rstrip("\n")
    other = plan("--json", *words)
    record = json.loads(other.stdout)
    assert (other.exit_code, other.stderr, list(record), set(record["error"])) == (
        2,
        "",
        ["error"],
        {"kind", "message"},
    )
    message = str(record["error"]["message"])
    assert result.stderr == f"plan: error: {message}\n"
    return f"{record['error']['kind']}: {message}"


def succeeds(*words: str) -> Any:
    """The object that `plan WORDS --json` prints."""
    result = plan(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a model of the user's own."""
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a plan of a small `mlp` for two CPU ranks, and what `--json` said of it."""
    folder = tmp_path_factory.mktemp("plans") / "mlp"
    words = (
        "--model",
        "mlp",
        "--gpus",
        "2",
        "--hardware",
        "cpu",
        "--precision",
        "fp64",
        "--batch",
        "8",
        *TINY,
    )
    return folder, succeeds(*words, "--out", str(folder))


def altered(planned: tuple[Path, Any], to: Path, change: dict[str, Any]) -> str:
    """A copy of the plan's file with some keys changed."""
    body = json.loads((planned[0] / "plan.json").read_text())
    to.write_text(json.dumps(body | change))
    return str(to)


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model lsmt --gpus 8", "UnknownName: unknown model 'lsmt': did you mean 'lstm'?"),
        (
            "--model mlp --hardware dgx-h10",
            "UnknownName: unknown hardware 'dgx-h10': did you mean 'dgx-h100'?",
        ),
        (
            "--model mlp --set hiden=3",
            "UnknownName: unknown mlp option 'hiden': did you mean 'hidden'?",
        ),
        ("--model mlp --set hidden=x", "BadValue: --set hidden=x: hidden must be a whole number"),
        ("--model mlp --set hidden", "BadValue: --set hidden: write --set NAME=VALUE"),
        ("--model mlp --set hidden=1 --set hidden=2", "BadValue: --set hidden is given twice"),
        (
            "--model mlp --precision fp23",
            "UnknownName: unknown precision 'fp23': did you mean 'fp32'?",
        ),
        (
            "--model mlp --memory-headroom 5",
            "BadValue: --memory-headroom 5: give a share from 0 up to",
        ),
        (
            "--model mlp --memory-headroom -3%",
            "BadValue: --memory-headroom -3%: give a share from 0 up to",
        ),
        ("--model mlp --gpus 0", "BadValue: --gpus 0: give a whole number of at least 1"),
        ("--model mlp --gpus -3", "BadValue: --gpus -3: give a whole number of at least 1"),
        ("--model mlp --gpus 2.5", "BadValue: --gpus 2.5: give a whole number of at least 1"),
        ("--model mlp --gpus two", "BadValue: --gpus two: give a whole number of at least 1"),
        ("--model mlp --gpus 20000", "BadValue: 'dgx-h100' has at most 16384 devices"),
        (
            "--model mlp --gpus 32 --nodes 2",
            "BadValue: 2 nodes of 'dgx-h100' have 16 devices, but 32 were asked for",
        ),
        ("--model mlp --batch 0", "BadValue: --batch 0: give a whole number of at least 1"),
        (
            "--model mlp --batch 7 --gpus 8",
            "NoPlan: a batch of 7 has fewer samples than 8 devices, and shares no factor with them: use --batch 8",
        ),
        (
            "--model mlp --batch 8 --global-batch 16",
            "BadValue: --batch 8 and --global-batch 16 are the same option: give one of them",
        ),
        (
            "--model mlp --gpus 2 --global-batch 8 --microbatches 3",
            "BadValue: --microbatches 3: 8 samples are not cut into 3 equal parts; use --microbatches 2 or 4",
        ),
        (
            "--model mlp --gpus 4 --batch 12 --microbatches 6 --mesh dp=4",
            "NoPlan: a microbatch of 2 has fewer samples than 4 data-parallel devices: use --batch 24 or "
            "--microbatches 3",
        ),
        (
            "--model resnet --set depth=10 --gpus 2 --batch 4 --microbatches 2",
            "NoPlan: batch_norm in stem.1 takes statistics over all samples of a batch, which no microbatch has",
        ),
        (
            "--model mlp --gpus 2 --per-microbatch layer",
            "UnknownName: unknown module for --per-microbatch 'layer': did you mean 'layers.*'?",
        ),
        (
            "--model my_model.py:centred --gpus 2 --microbatches 2",
            "NoPlan: sub in the model needs all samples of a batch at once, which no microbatch has: compute it "
            "for each sample; or use --microbatches 1 (at /",
        ),
        (
            "--model mlp --mesh dp=3 --gpus 8",
            "BadValue: --mesh 'dp=3' has 3 devices and --gpus is 8",
        ),
        ("--model mlp --mesh dp", "BadValue: --mesh 'dp': 'dp' is not NAME=SIZE"),
        (
            "--model mlp --pin layers=tensr",
            "UnknownName: unknown pin 'tensr': did you mean 'tensor'?",
        ),
        (
            "--model mlp --gpus 2 --pin nothing=tensor",
            "UnknownName: --pin 'nothing' matches nothing in the model",
        ),
        (
            "--model mlp --gpus 2 --recompute all",
            "UnknownName: unknown recompute 'all': known: chosen, full, none, selective",
        ),
        (
            "--model gpt --gpus 1 --pin h.*=keep --pin h.*=recompute",
            "BadValue: --pin 'h.*=keep' and --pin 'h.*=recompute' contradict each other: leave one",
        ),
        (
            "--model gpt --gpus 1 --pin h.*.mlp.proj=recompute",
            "NoPlan: --pin 'h.*.mlp.proj=recompute': nothing that it matches is held for backward",
        ),
        ("--modle mlp", "UnknownName: unknown option --modle: did you mean --model?"),
        (
            "--model mlp --hidden 128",
            "UnknownName: unknown option --hidden: the sizes of mlp are set by --set: --set "
            "hidden=128; plan",
        ),
        (
            "--model gpt2 --mlp-width=8",
            "UnknownName: unknown option --mlp-width: plan --help lists all",
        ),
        (
            "--model my_model.py",
            "UnknownName: model 'my_model.py' names no function: write my_model.py:make or my_model.py:branches",
        ),
        ("--model none.py", "UnknownName: model 'none.py': no such file in "),
        (
            "--model my_model.py:compiled",
            "BadValue: my_model.py:compiled: the model is compiled (torch.compile): give it uncompiled",
        ),
        (
            "--model hf:gpt3",
            "UnknownName: unknown Hugging Face model type 'gpt3': did you mean 'gpt",
        ),
        ("--model mlp --optimizer lion", "UnknownName: unknown optimizer 'lion'"),
        ("--model mlp --momentum 0.9", "BadValue: optimizer 'adam' takes no momentum"),
        ("--model mlp --betas 0.9", "BadValue: betas (0.9,): give two numbers"),
        ("--model mlp --betas a,b", "BadValue: --betas a,b: give two numbers"),
        ("--model mlp --lr -1", "BadValue: learning rate -1.0: give a number of at least 0"),
        ("--model", "BadValue: option '--model' requires an argument"),
        ("--gpus 4", "BadValue: --model is missing"),
        ("--lr 0", "BadValue: --model is missing"),
        ("simulat x", "UnknownName: unknown verb 'simulat': did you mean 'simulate'?"),
        ("run", "BadValue: missing argument 'PLAN'; see plan run --help"),
        ("run nothing", "BadPlan: no plan file nothing"),
        ("--model mlp run nothing", "BadValue: --model comes before 'run'"),
        ("--set a=1 run nothing", "BadValue: --set comes before 'run'"),
        ("--per-microbatch x run nothing", "BadValue: --per-microbatch comes before 'run'"),
        ("--compile run nothing", "BadValue: --compile comes before 'run'"),
        ("hardware dgx", "UnknownName: unknown hardware 'dgx'"),
        (
            "--model my_model.py:branches --gpus 2",
            "NotTraceable: model 'my_model.py:branches' cannot be traced",
        ),
        (
            "--model my_model.py:mak",
            "UnknownName: unknown function in my_model.py 'mak': did you mean 'make'?",
        ),
        (
            "--model mlp --gpus 1 --hardware p3.16xlarge --set hidden=40000",
            "DoesNotFit: 'mlp' does not fit 1 x v100",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(here: Path, words: str, message: str) -> None:
    before = set(here.iterdir())
    assert fails(*shlex.split(words)).startswith(message)
    assert {path for path in here.iterdir() if path.name != "__pycache__"} == before


def test_the_line_that_cannot_be_traced_is_named(here: Path) -> None:
    line = MY_MODEL.splitlines().index("        if x.sum() > 0:") + 1
    assert f"my_model.py:{line} (if x.sum() > 0:)" in fails(
        "--model", "my_model.py:branches", "--gpus", "2"
    )


def test_what_does_not_fit_says_what_would(here: Path) -> None:
    message = fails(
        "--model", "mlp", "--gpus", "1", "--hardware", "p3.16xlarge", "--set", "hidden=40000"
    )
    assert re.search(
        r"needs [\d.]+ GiB per device, of 14.0 GiB allowed \(5 % of 14.8 GiB is kept free: --memory-headroom\), "
        r"[\d.]+ [GM]iB too much, at \S+; largest: (\w+ [\d.]+ [GMK]iB(, )?){3}; ",
        message,
    )


def test_many_names_are_not_all_listed(here: Path) -> None:
    assert len(fails("--model", "hf:gpt3")) < 400


@pytest.mark.usefixtures("spawned_ranks")  # for the environment that they are given
def test_cuda_where_there_is_none(
    planned: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    message = fails("run", str(planned[0]), "--device", "cuda", "--steps", "1", again=False)
    assert (
        message
        == "--device cuda: torch finds no CUDA device here; leave --device out, or run on a "
        "machine that has one"
    )


@pytest.mark.parametrize("table", ["sources", "provenance"])
def test_a_number_where_a_text_belongs(here: Path, table: str) -> None:
    text = (
        (ROOT / "cost_models/hardware/clusters/dgx-h100.toml")
        .read_text()
        .replace("[sources]", "[source_s]", 1)
    )
    (here / "mine.toml").write_text(text.split("[source_s]")[0] + f"[{table}]\nintra = 5\n")
    for words in (("hardware", "mine.toml"), ("--model", "mlp", "--hardware", "mine.toml")):
        assert (
            fails(*words)
            == f"BadHardware: mine.toml [{table}]: intra must be a string, got 5: put it in quotes"
        )


def test_plan_files_that_are_no_good(
    planned: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncated = tmp_path / "truncated.json"
    truncated.write_text((planned[0] / "plan.json").read_text()[:2000])
    assert fails("report", str(truncated)).startswith(
        f"BadPlan: {truncated}: not a complete plan file"
    )
    other = altered(planned, tmp_path / "version.json", {"version": 99})
    assert (
        fails("simulate", other)
        == f"BadPlan: {other}: a plan of version 99, but this program reads version 2; plan again"
    )
    # The plan's own hash seed, so that no other order of a set is tried.
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    other = altered(planned, tmp_path / "hash.json", {"graph_hash": "0" * 64, "hash_seed": "0"})
    assert fails("simulate", other).startswith(
        "BadPlan: the plan was made for another graph of 'mlp' (hash 000000000000, now "
    )
    assert fails("run", other, "--steps", "1").startswith(
        "BadPlan: the plan was made for another graph of 'mlp' (hash 000000000000, "
    )
    other = altered(planned, tmp_path / "format.json", {"format": "something"})
    assert (
        fails("explain", other)
        == f"BadPlan: {other}: not a plan file (no format 'shardwright-plan')"
    )


@pytest.mark.parametrize(
    ("line", "to", "message"),
    [
        ("efficiency = 0.81", "", "[intra]: missing key 'efficiency', needed:"),
        ("efficiency = 0.81", "efficiency = -1", "[intra]: efficiency must be positive, got -1"),
        (
            "efficiency = 0.81",
            "efficiency = 0.81\nspeed = 1",
            "[intra]: unknown key 'speed', known:",
        ),
        ("[intra]", "[intra", "not a TOML file"),
    ],
)
def test_hardware_files_that_are_no_good(here: Path, line: str, to: str, message: str) -> None:
    text = (ROOT / "cost_models/hardware/clusters/dgx-h100.toml").read_text()
    assert line in text
    (here / "mine.toml").write_text(text.replace(line, to, 1))
    found = fails("--model", "mlp", "--hardware", "mine.toml")
    assert found.startswith("BadHardware: mine.toml")
    assert message in found
    assert "BadHardware: no.toml: cannot be read" in fails(
        "--model", "mlp", "--hardware", "no.toml"
    )


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_file_in_the_way_of_the_output_is_found_before_planning(
    here: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "taken").write_text("mine")
    monkeypatch.setattr(
        "planner.search.search.search", lambda *_, **__: pytest.fail("planned first")
    )
    assert fails("--model", "gpt2-xl", "--gpus", "64", "--out", out).startswith(
        f"BadValue: --out {out}: taken is a file"
    )
    assert (here / "taken").read_text() == "mine"


def test_an_output_folder_without_permission(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "locked").mkdir(mode=0o500)
    # A user who may write everywhere (root) sees the folder as any other user would.
    if os.access(here / "locked", os.W_OK):
        allowed = os.access
        monkeypatch.setattr(
            os,
            "access",
            lambda path, mode: (
                allowed(path, mode) and not (mode & os.W_OK and Path(path).name == "locked")
            ),
        )
    assert "locked cannot be written to" in fails("--model", "mlp", "--out", "locked")


def test_a_folder_where_a_file_is_to_go_leaves_all_as_it_was(here: Path) -> None:
    (here / "out" / "plan.json").mkdir(parents=True)
    assert "plan.json is a folder" in fails("--model", "mlp", "--gpus", "1", *TINY, "--out", "out")
    assert [path.name for path in (here / "out").iterdir()] == ["plan.json"]


def test_ctrl_c_is_one_line(here: Path) -> None:
    (here / "mine.py").write_text("""
import pathlib
def model():
    pathlib.Path("begun").touch()
    while True:
        sum(range(10_000))
""")
    command = [sys.executable, "-m", "planner", "--model", "mine.py:model", "--gpus", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (here / "begun").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "plan: interrupted\n")
    assert not (here / "plans").exists()


@pytest.mark.parametrize(
    "what",
    [
        "def __del__(self): press()",
        "def __init__(self): weakref.finalize(self, press).atexit = False",
    ],
)
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_ctrl_c_in_code_that_lets_no_exception_out(here: Path, what: str, words: list[str]) -> None:
    code = f"""
import signal, weakref
press = lambda: signal.raise_signal(signal.SIGINT)
class Met:
    {what}
def model():
    Met()
"""
    (here / "mine.py").write_text(code)
    command = [sys.executable, "-m", "planner", "--model", "mine.py:model", "--gpus", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = (
        '{"error": {"kind": "Interrupted", "message": "interrupted"}}\n'
        if words
        else "plan: interrupted\n"
    )
    assert (done.returncode, done.stdout + done.stderr) == (130, told)


# --------------------------------------------------------------------------------------- what works


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 7, 64])
def test_every_number_of_devices_gives_a_plan(here: Path, gpus: int) -> None:
    found = succeeds("--model", "mlp", "--gpus", str(gpus), *TINY)
    sizes = 1
    for size in found["mesh"].values():
        sizes *= size
    assert (found["num_devices"], sizes, found["fits"]) == (gpus, gpus, True)
    assert 0 < found["solver"]["bound"] <= found["step_time_s"]


def test_a_plan_and_its_files(planned: tuple[Path, Any]) -> None:
    folder, found = planned
    assert sorted(path.name for path in folder.iterdir()) == [
        "memory.png",
        "plan.json",
        "report.md",
        "timeline.json",
        "timeline.png",
    ]
    assert found["files"] == {
        name: str(folder / file)
        for name, file in (
            ("plan", "plan.json"),
            ("report", "report.md"),
            ("timeline", "timeline.json"),
        )
    }
    parts = ("compute_time_s", "exposed_communication_time_s", "idle_time_s")
    assert sum(found[part] for part in parts) == pytest.approx(found["step_time_s"], rel=1e-9)
    held = dict(found["memory_bytes"])
    assert held.pop("total") == sum(held.values())
    assert found["samples_per_s"] == pytest.approx(8 / found["step_time_s"])
    events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    assert max(e["ts"] + e["dur"] for e in events if e["ph"] == "X") == pytest.approx(
        found["step_time_s"] * 1e6
    )


def test_the_first_line_says_the_precision(here: Path) -> None:
    words = ("--model", "mlp", "--gpus", "1", *TINY)
    assert (
        "parameters in float32, products in bfloat16 (bf16-mixed), optimizer"
        in plan(*words).stdout.splitlines()[1]
    )
    assert (
        "parameters in float32, optimizer"
        in plan(*words, "--precision", "fp32").stdout.splitlines()[1]
    )


def test_report_says_again_what_plan_said(planned: tuple[Path, Any]) -> None:
    folder, found = planned
    assert succeeds("report", str(folder)) == found
    assert succeeds("report", str(folder / "plan.json")) == found
    assert "mlp on 2 devices of cpu" in plan("report", str(folder)).stdout


def test_simulate_agrees_with_the_plan_and_differs_elsewhere(
    planned: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, found = planned
    again = succeeds("simulate", str(folder), "--out", str(tmp_path / "own"))
    assert again == {key: found[key] for key in again}
    other = succeeds(
        "simulate", str(folder), "--hardware", "dgx-h100", "--out", str(tmp_path / "other")
    )
    assert other["step_time_s"] != again["step_time_s"]
    assert (tmp_path / "other" / "timeline.json").is_file()


def test_a_run_says_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    with StepBar("starting", 10, say=True) as bar:
        bar.event({"step": 3, "loss": 0.25, "time_s": 0.002, "losses": {}})
        bar.event({"step": 4, "loss": 0.25, "time_s": 0.002, "losses": {"near": 0.05, "far": 0.2}})
    with StepBar("starting", 10, say=False) as bar:
        bar.event({"step": 5, "loss": 0.25, "time_s": 0.002, "losses": {}})
    several = "step  4  loss 0.250000 (near 0.050000, far 0.200000)  2.00 ms\n"
    assert capsys.readouterr() == (f"step  3  loss 0.250000  2.00 ms\n{several}", "")


def test_no_torch_for_help_and_hardware() -> None:
    code = (
        "import sys; from planner.cli.main import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: print('LOADED', [m for m in ('torch', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    for words in (["--help"], ["run", "--help"], ["hardware"], ["--model", "x", "--gpus", "0"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.splitlines()[-1] == "LOADED []", words


def test_python_dash_m_is_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "planner", "hardware"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "dgx-h100" in done.stdout


# ------------------------------------------------------------------------------------- docs/json.md


def documented(verb: str) -> set[str]:
    """The keys that docs/json.md lists for a verb."""
    text = (ROOT / "docs" / "json.md").read_text()
    part = next(
        p
        for p in text.split("\n## ")[1:]
        if f"plan {verb}".strip() in p.splitlines()[0].split(", ")
    )
    return set(re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE))


def keys(value: Any, at: str = "") -> Iterator[str]:
    """The paths of all leaves; `[]` is any item of a list."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from keys(item, f"{at}.{name}" if at else name)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, f"{at}[]")
    else:
        yield at


def stands_for(documented_key: str, key: str) -> bool:
    pattern = re.escape(documented_key).replace(r"\[\]", r"(\[\])?")
    return re.fullmatch(re.sub(r"\b[A-Z]{3,}\b", r"[^.]+", pattern), key) is not None


def check_keys(verb: str, record: Any) -> None:
    found, listed = set(keys(record)), documented(verb)
    assert {key for key in found if not any(stands_for(d, key) for d in listed)} == set()
    missing = {d for d in listed if not any(stands_for(d, key) for key in found)}
    assert {d for d in missing if not d.startswith(MAY_BE_EMPTY)} == set()


MAY_BE_EMPTY = (
    "constants",
    "take_no_part",
    "extrapolated_from",
    "left_out",
    "late",
    "replicated_ops",
    "discovered_ops",
    "ops_without_rule",
    "verify",
    "inter",
    "losses_by_name",
    "per_microbatch",
    "recomputed",
    "checkpoints",
    "ops[].again",
    "pipeline.",
    "files.schedule",
    "ops[].stage",
    "kept[].stage",
    "parameters[].stage",
)


@pytest.mark.usefixtures("spawned_ranks")
def test_json_is_as_documented(planned: tuple[Path, Any], tmp_path: Path) -> None:
    folder, found = planned
    check_keys("", found)
    check_keys("simulate", succeeds("simulate", str(folder), "--out", str(tmp_path)))
    check_keys("explain", succeeds("explain", str(folder)))
    check_keys("explain --program", succeeds("explain", str(folder), "--program"))
    check_keys("models", succeeds("models"))
    check_keys("run", succeeds("run", str(folder), "--steps", "1", "--verify"))
    for record in succeeds("hardware")["hardware"]:
        check_keys("hardware", record)
    one = succeeds("hardware", "dgx-h100", "--gpus", "16", "--out", str(tmp_path))
    assert Path(one.pop("files")["picture"]).is_file()
    check_keys("hardware", one)


def test_json_of_unlike_nodes_is_as_documented(tmp_path: Path) -> None:
    (listed,) = succeeds("hardware")["mixed"]
    found = succeeds("hardware", "a100-v100", "--out", str(tmp_path))
    pictures = found.pop("files")
    assert found == listed and all(Path(path).is_file() for path in pictures.values())
    check_keys("hardware MIXED", found)
    few = succeeds("hardware", "a100-v100", "--gpus", "17", "--out", str(tmp_path))
    assert [group["num_devices"] for group in few["groups"]] == [16, 1]
    assert "of unlike kinds" in fails("--model", "mlp", "--hardware", "a100-v100")
    assert "of unlike kinds" in fails("hardware", "a100-v100", "--nodes", "2")


def test_json_says_what_runs_again_and_in_how_many_microbatches(tmp_path: Path) -> None:
    sizes = ("layers=2", "width=16", "heads=2", "vocab=16", "positions=8", "seq=8")
    given = [word for size in sizes for word in ("--set", size)]
    asked = ("--recompute", "full", "--microbatches", "2", "--batch", "4", "--out", str(tmp_path))
    found = succeeds("--model", "gpt", "--gpus", "1", "--hardware", "cpu", *given, *asked)
    listed, there = documented(""), set(keys(found))
    assert [key for key in there if not any(stands_for(d, key) for d in listed)] == []
    again = {d for d in listed if d.startswith("recomputed.")}
    assert {d for d in again if not any(stands_for(d, key) for key in there)} == set()
    assert found["microbatches"] == 2 and found["recomputed"]["time_s"] > 0
    assert found == succeeds("report", str(tmp_path))


def test_the_program_is_printed_as_the_plan_is_lowered(planned: tuple[Path, Any]) -> None:
    folder, _ = planned
    text = program_text(program_of(read_plan(folder / "plan.json")))
    assert plan("explain", str(folder), "--program").stdout == text
    assert succeeds("explain", str(folder), "--program")["program"] == text.splitlines()


@pytest.mark.parametrize(
    ("verdict", "code"), [("equal", 0), ("equal to rounding", 0), ("WRONG", 1), ("no proof", 3)]
)
def test_the_exit_code_is_the_verdict(
    planned: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, verdict: str, code: int
) -> None:
    off = Apart(
        what="gradient",
        name="layers.0.weight",
        index=(1, 2),
        ours=0.5,
        theirs=0.25,
        error=1.0 if code == 1 else 0.0,
    )
    verification = Verification(
        verdict=verdict,
        worst=(off,),
        limit=1e-9,
        loss_error=0.0,
        gradient_error=off.error,
        parameter_error=0.0,
        worst_gradient=off.name,
        worst_parameter="",
    )
    result = RunResult(
        num_ranks=2,
        backend="gloo",
        losses=(1.0,),
        step_times_s=(1.0,),
        peak_memory_bytes=1,
        verification=verification,
    )
    monkeypatch.setattr("runtime.launcher.launch", lambda *_, **__: [result])
    found = plan("run", str(planned[0]), "--verify")
    assert found.exit_code == code
    assert (
        "gradient layers.0.weight[1, 2] is 0.5, but 0.25 in one process"
        in " ".join(found.stdout.split())
    ) == (code == 1)
    told = plan("run", str(planned[0]), "--verify", "--json")
    assert told.exit_code == code and json.loads(told.stdout)["verdict"] == verdict


def test_several_losses_have_names(tmp_path: Path) -> None:
    model = f"{ROOT / 'tests' / 'step_models.py'}:nested"
    succeeds(
        "--model", model, "--gpus", "2", "--hardware", "cpu", "--batch", "8", "--out", str(tmp_path)
    )
    found = succeeds("run", str(tmp_path), "--steps", "2")
    check_keys("run", found)
    several = found["losses_by_name"]
    assert {name: len(losses) for name, losses in several.items()} == {"words": 2, "value": 2}
    assert [sum(step) for step in zip(*several.values(), strict=True)] == pytest.approx(
        found["losses"], rel=1e-6
    )
    assert several["words"][1] < several["words"][0]


# -------------------------------------------------------------------------------------- plan --help


@pytest.mark.slow
def test_the_examples_of_help_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    examples = [
        re.split(r"  +", line.strip())[0]
        for line in plan("--help").stdout.splitlines()
        if line.startswith("    plan ")
    ]
    assert len(examples) == 10
    assert plan("--model", "lstm", "--gpus", "8").exit_code == 0
    for example in examples:
        words = shlex.split(example)[1:]
        if words[0] in ("calibrate", "compare"):
            record = succeeds(
                *words,
                *(["--quick", "--ranks", "2"] if words == ["calibrate"] else ["--steps", "3"]),
            )
            assert all(Path(path).is_file() for path in record.pop("files", {}).values())
            check_keys(words[0], record)
        else:
            result = plan(*words)
            assert (result.exit_code, result.stderr) == (0, ""), example
