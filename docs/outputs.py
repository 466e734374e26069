"""Runs the commands of README.md and docs/*.md, and writes what they print under them.

    python docs/outputs.py                              every page; minutes, on a quiet machine
    python docs/outputs.py README.md docs/pins.md       these pages
    python docs/outputs.py docs/plans.md --only 405b    the blocks with this text, and those that
                                                        they need: give --folder

A fenced block whose first line starts with `$ ` is a command and its output; several may follow
each other. Two comments, on the line before a block, say more:

    <!-- file: my_model.py -->   the block is this file of the page's folder, in which its commands
                                 run
    <!-- show: [Mesh], wte -->   of the output only: the section with this title, and lines that
                                 begin so; `...` for what is left out
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
WIDTH = 110
_BLOCK = re.compile(
    r"(?:^<!-- (file|show): ([^\n]*) -->\n)?^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page, from `start` to `end` of its text; `kind` and `argument` are those
    of the comment before it."""

    kind: str
    argument: str
    text: str
    start: int
    end: int

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that the block runs; empty for one that is no terminal."""
        if not self.text.startswith("$ "):
            return ()
        return tuple(
            line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")
        )


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page's text."""
    return [
        Block(m[1] or "", m[2] or "", m[3], m.start(3), m.end(3)) for m in _BLOCK.finditer(page)
    ]


def shown(output: str, wanted: str) -> str:
    """The lines of an output that a `show` comment names, with the rule under a header; `[]` is
    what precedes the first section.

    Between them `...` stands for lines that are left out.
    """
    names = wanted.split(", ")
    lines = output.splitlines()
    out: list[str] = []
    section, kept = "", False
    for number, line in enumerate(lines):
        if number and not lines[number - 1]:
            section = line
        if not line:
            kept = f"[{lines[number + 1]}]" in names
        elif not (kept and line.startswith("──")):
            kept = f"[{section}]" in names or any(
                line.startswith(name) for name in names if not name.startswith("[")
            )
        if kept:
            out.append(line)
        elif line and out and out[-1] != "...":
            out.append("...")
    return "\n".join(out[:-1] if out[-1:] == ["..."] else out).strip("\n")


def run(command: str, folder: Path) -> str:
    """What a command prints in `folder`, without trailing spaces, long lines wrapped. Raises
    RuntimeError at a traceback."""
    words = shlex.split(command, comments=True)
    programs = {"plan": [sys.executable, "-m", "planner"], "python": [sys.executable]}
    words = [*programs.get(words[0], [words[0]]), *words[1:]]
    env = {
        **os.environ,
        "COLUMNS": str(WIDTH),
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
    }
    done = subprocess.run(
        words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode not in (0, 1, 2, 3) or "Traceback (most recent call last)" in done.stdout:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout}")
    printed = done.stdout.replace(f"{folder}/", "").replace(env["XDG_CACHE_HOME"], "~/.cache")
    lines = [line.rstrip() for line in printed.splitlines()]
    wrapped = [
        textwrap.fill(line, WIDTH, break_on_hyphens=False) if len(line) > WIDTH + 10 else line
        for line in lines
    ]
    return "\n".join(wrapped).strip("\n")


def rewritten(page: str, folder: Path, only: str) -> str:
    """The page with the outputs of its commands as they are now; of those whose block contains `only`."""
    out, at = [], 0
    for block in blocks(page):
        text = block.text
        if block.kind == "file":
            (folder / block.argument).write_text(text)
        elif block.commands and only in text:
            parts = []
            for command in block.commands:
                print(f"  $ {command}", flush=True)
                output = run(command, folder)
                parts.append(
                    f"$ {command}\n"
                    + (shown(output, block.argument) if block.kind == "show" else output)
                )
            text = "\n".join(part.rstrip("\n") for part in parts) + "\n"
        out += [page[at : block.start], text]
        at = block.end
    return "".join([*out, page[at:]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", default=PAGES)
    parser.add_argument("--only", default="", help="run the blocks that contain this text")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the commands run, kept for the next time (default: a temporary folder)",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outputs-") as temporary:
        for name in args.pages:
            print(name, flush=True)
            folder = (args.folder or Path(temporary)) / Path(name).stem
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "examples").exists():
                (folder / "examples").symlink_to(ROOT / "examples")
            path = ROOT / name
            path.write_text(rewritten(path.read_text(), folder.resolve(), args.only))


if __name__ == "__main__":
    main()
