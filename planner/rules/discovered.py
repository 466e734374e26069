"""Signatures of ops without a written rule: discovered and cached on disk, or replicated if
discovery finds nothing to split.

Call, dtypes -> Signature. A finding is kept by op, arguments, pattern of sizes, dtypes and torch's
version, in one small JSON file each under `$SHARDWRIGHT_CACHE` (default `~/.cache/shardwright`), so
that an op is run in shards once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import torch

from cost_models.atomic_write import write_atomically
from cost_models.errors import BadValue
from planner.graph.graph import Ref, map_refs
from planner.rules.discovery import SUM, Finding, FoundLetter, discover
from planner.rules.instance import replaced
from planner.rules.signature import Call, Letters, Local, LocalCall, Signature, unsplit

__all__ = ["cache_folder", "localized", "signature_of"]

#: Raised whenever a change of `discovery` changes its findings: older files are then not read.
_VERSION = 3


def signature_of(call: Call, dtypes: tuple[str, ...]) -> Signature:
    """The discovered signature of a call; if nothing was found, one in which nothing can be split
    (`source` says which)."""
    with torch.no_grad():
        finding = _cached(call, dtypes)
    return unsplit(call, source="replicated") if finding is None else _signature(call, finding)


def localized(signature: Signature, call: Call, local: Local) -> LocalCall:
    """The call on a shard: integer arguments that shrink with a letter become the local ones."""
    args = call.args
    for path, letter in signature.arguments:
        args = replaced(args, path, local.sizes[letter])
    return call.op, args, call.kwargs


def _signature(call: Call, finding: Finding) -> Signature:
    """The signature with the letters found; every other dim has a fixed letter of its own."""
    found = [letter for letter in finding.letters if _size(call, letter)]
    sizes = [_size(call, letter) for letter in found]
    operands: list[list[tuple[int, ...]]] = [[() for _ in shape] for shape in call.operands]
    results: list[list[tuple[int, ...]]] = [[() for _ in shape] for shape in call.results]
    for number, letter in enumerate(found):
        for operand, at in letter.operands:
            operands[operand][at] = (number,)
        for result, place in enumerate(letter.results):
            if place >= 0:
                results[result][place] = (number,)
    split = len(sizes)
    for shapes, tensors in ((call.operands, operands), (call.results, results)):
        for shape, dims in zip(shapes, tensors, strict=True):
            for d, size in enumerate(shape):
                rest = size // math.prod(sizes[n] for n in dims[d])
                if not dims[d] or rest > 1:
                    dims[d] += (len(sizes),)
                    sizes.append(rest)
    sums = [
        frozenset(n for n, x in enumerate(found) if x.results[r] == SUM)
        for r in range(len(results))
    ]
    return Signature(
        kind="elementwise",
        sizes=tuple(sizes),
        operands=tuple(map(_letters, operands)),
        results=tuple(map(_letters, results)),
        fixed=frozenset(range(split, len(sizes))),
        reduced=tuple(sums),
        linear=tuple(map(frozenset, finding.linear)),
        contiguous=frozenset(n for n, x in enumerate(found) if x.contiguous),
        source="discovered",
        arguments=tuple((path, n) for n, x in enumerate(found) for path in x.arguments),
    )


def _size(call: Call, letter: FoundLetter) -> int:
    """The size of a letter: that of its smallest dim. The others must be multiples of it: each
    element of the letter is a run of theirs (`pixel_shuffle`). 0 if they are not."""
    operands = [call.operands[operand][dim] for operand, dim in letter.operands]
    dims = [
        *operands,
        *(call.results[r][place] for r, place in enumerate(letter.results) if place >= 0),
    ]
    least = min(dims)
    if max(dims) == least or not least:  # an empty result has no pieces
        return least
    whole = all(size % least == 0 for size in dims) and letter.contiguous
    return least if whole and not (letter.arguments and max(operands) > least) else 0


def _letters(dims: list[tuple[int, ...]]) -> Letters:
    return tuple(dims)


# ---------------------------------------------------------------------------------------- the cache


def cache_folder() -> Path:
    """Where findings are kept."""
    given = os.environ.get("SHARDWRIGHT_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "shardwright") / "rules"


def _cached(call: Call, dtypes: tuple[str, ...]) -> Finding | None:
    path = cache_folder() / f"{_key(call, dtypes)}.json"
    kept = _read(path)
    if kept is not None:
        return kept[0]
    finding = discover(call, dtypes)
    _keep(path, call, finding)
    return finding


def _key(call: Call, dtypes: tuple[str, ...]) -> str:
    args, kwargs = map_refs((call.args, call.kwargs), lambda _: Ref(0))
    text = repr(
        (_VERSION, torch.__version__, call.op, args, kwargs, call.operands, call.results, dtypes)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> tuple[Finding | None] | None:
    """The finding in a file, in a tuple: `(None,)` means that nothing was found. None if there is
    no such file, or it is none of ours."""
    try:
        found = json.loads(path.read_text())["finding"]
        if found is None:
            return (None,)
        letters = tuple(
            FoundLetter(
                operands=tuple((o, d) for o, d in x["operands"]),
                results=tuple(x["results"]),
                contiguous=x["contiguous"],
                arguments=tuple(tuple(p) for p in x["arguments"]),
            )
            for x in found["letters"]
        )
        return (Finding(letters=letters, linear=tuple(tuple(group) for group in found["linear"])),)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, call: Call, finding: Finding | None) -> None:
    """Writes the finding. If the folder cannot be written, the op is discovered again next time."""
    letters = (
        []
        if finding is None
        else [
            {
                "operands": x.operands,
                "results": x.results,
                "contiguous": x.contiguous,
                "arguments": x.arguments,
            }
            for x in finding.letters
        ]
    )
    content = {
        "op": call.op,
        "finding": None if finding is None else {"letters": letters, "linear": finding.linear},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content))
    except (OSError, BadValue):
        return
