"""Golden plans: what is chosen for the four models on 8 devices. `python tests/golden/update.py` writes them anew.

A refactor leaves them as they are; a change of costs or rules changes them, and the difference is to be read before it is kept.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

MODELS = ("lstm", "mlp", "cnn", "gpt")
HERE = Path(__file__).parent


def golden(model: str) -> dict[str, Any]:
    """The mesh, the step time and every choice of the plan of `model` on one DGX H100, as JSON holds them; no timings."""
    from cost_models.cluster import load_cluster
    from planner.ask import Ask
    from planner.plan_file import plan_text
    from planner.search import search

    ask = Ask(model=model, batch=None, seq=None, settings={}, dtype="float32", num_devices=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP's, of its own version 4
        body = json.loads(plan_text(search(ask, load_cluster("dgx-h100", num_devices=8)).plan))
    return {
        "mesh": dict(zip(body["mesh"]["names"], body["mesh"]["sizes"], strict=True)),
        "step_time_s": float(f"{body['summary']['step_time_s']:.9e}"),
        "options": [None if options is None else " ".join(options) for options in body["options"]],
        "parameters": [" ".join(options) for options in body["parameters"]],
        "hubs": [{**hub, "values": len(hub["values"])} for hub in body["hubs"]],
    }


def text(record: dict[str, Any]) -> str:
    """A line a key, so that a difference is read key by key."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()) + "\n}\n"


def main() -> None:
    for model in MODELS:
        path = HERE / f"{model}.json"
        before = path.read_text() if path.exists() else ""
        after = text(golden(model))
        path.write_text(after)
        print(f"{path.name}: {'unchanged' if before == after else 'written'}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    main()
