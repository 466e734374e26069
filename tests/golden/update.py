"""`python tests/golden/update.py [NAME...]` plans the golden cases (all, if none is named), says in
words what is different, and writes their files.

A refactor leaves them as they are; a change of costs, rules or lowering changes them, and the
difference is to be read before it is kept.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


def update(name: str) -> str:
    """Plans a case, writes its file if it differs, and returns what is different."""
    from golden_cases import CASES, planned
    from golden_record import path_of, record_of, text_of
    from golden_words import differences

    path = path_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        now = record_of(planned(CASES[name]))
    said = differences(json.loads(path.read_text()), now) if path.exists() else ["new"]
    if said:
        path.write_text(text_of(now))
    return "\n".join(f"{name}: {line}" for line in said or ["unchanged"])


def main(names: list[str]) -> None:
    from golden_cases import CASES

    for name in names or CASES:
        print(update(name), flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    main(sys.argv[1:])
