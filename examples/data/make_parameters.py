"""Makes `parameters.tsv`, what functions say of their parameters, from the documentation strings of
three Python packages under the BSD licence.

    python examples/data/make_parameters.py [FOLDER]

Without an argument the packages are fetched with `pip download`. Each function or class becomes one
line: its name, then for each of its parameters the name, what it is (its type, as the documentation
has it) and the description, with tabs between all. Left out are sections of more than 100 words and
marks, and those that stand elsewhere already, word for word.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("numpy==2.4.6", "pandas==3.1.1", "networkx==3.6.1")
LONGEST = 100
OUT = Path(__file__).with_name("parameters.tsv")

_SECTION = re.compile(
    r"^Parameters\n-{4,}\n(.*?)(?=^\S[^\n]*\n-{4,}\n|\Z)", re.DOTALL | re.MULTILINE
)
_HEADING = re.compile(r"^(\w+) ?: ?(\S.*)\n((?:(?: .*)?\n)*)", re.MULTILINE)


def sources(folder: Path) -> Iterator[str]:
    """The text of every module of the packages in a folder, tests left out."""
    for package in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(package) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".py") and "/tests/" not in name:
                    yield archive.read(name).decode("utf-8")


def documented(source: str) -> Iterator[tuple[str, str]]:
    """The name and the section on parameters of every function and class that has one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            section = _SECTION.search((ast.get_docstring(node) or "") + "\n")
            if section:
                yield node.name, section[1] + "\n"


def lines(folder: Path) -> list[str]:
    """All functions, in the order of a digest of what they say."""
    found: dict[str, str] = {}
    for source in sources(folder):
        for function, section in documented(source):
            fields = [
                " ".join(field.split())
                for heading in _HEADING.findall(section)
                for field in heading
            ]
            said = "\t".join(fields)
            if fields and len(re.findall(r"\w+|[^\w\s]", said)) <= LONGEST and said.isascii():
                found.setdefault(said.lower(), f"{function}\t{said}\n")
    return [
        found[said]
        for said in sorted(found, key=lambda said: hashlib.sha256(said.encode()).hexdigest())
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as fetched:
        if len(sys.argv) == 1:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--no-deps", *PACKAGES],
                cwd=fetched,
                check=True,
            )
        made = lines(Path(sys.argv[1] if len(sys.argv) > 1 else fetched))
    OUT.write_text("".join(made), encoding="ascii")
    print(f"{OUT}: {len(made)} functions, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
