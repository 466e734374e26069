"""The wheel holds all that the three packages need, and works where the repository is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cost_models", "planner", "runtime")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")


def files_of_the_tree() -> set[str]:
    """What a wheel must hold: the code, its types, and the hardware files."""
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".toml") or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves files where it runs. No network: setuptools is
    that of the environment."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "tests").mkdir()
    (tree / "tests" / "test_of_ours.py").write_text("")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tree / "dist"))
    subprocess.run([*PIP, "wheel", str(tree), *options], check=True, timeout=300)
    (built,) = (tree / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-index", "--no-compile", "--target", str(folder))
    subprocess.run([*PIP, "install", *options, str(wheel)], check=True, timeout=300)
    return folder


def ran(installed: Path, cwd: Path, *words: str) -> str:
    """What a command prints that finds the packages in the folder, far from the repository."""
    found = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        words, cwd=cwd, env=found, check=True, capture_output=True, text=True, timeout=300
    ).stdout


def test_a_wheel_holds_every_file_and_no_test(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == files_of_the_tree()


def test_what_is_installed_plans_on_its_own(installed: Path, tmp_path: Path) -> None:
    """The packages that run are those of the folder, though the repository is installed too."""
    imports = f"import {', '.join(PACKAGES)}; print({', '.join(f'{p}.__file__' for p in PACKAGES)})"
    files = ran(installed, tmp_path, sys.executable, "-c", imports).split()
    assert files == [str(installed / package / "__init__.py") for package in PACKAGES]
    command = (sys.executable, "-m", "planner", "--model", "mlp", "--gpus", "2", "--json")
    plan = json.loads(ran(installed, tmp_path, *command))
    assert (plan["model"], plan["num_devices"]) == ("mlp", 2)
    assert (tmp_path / "plans" / "mlp-2" / "plan.json").is_file()


def test_the_command_plan_is_installed(installed: Path, tmp_path: Path) -> None:
    found = json.loads(
        ran(installed, tmp_path, str(installed / "bin" / "plan"), "hardware", "--json")
    )
    shipped = {path.stem for path in (ROOT / "cost_models/hardware/clusters").glob("*.toml")}
    assert {cluster["name"] for cluster in found["hardware"]} == shipped
