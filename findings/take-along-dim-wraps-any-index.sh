#!/usr/bin/env bash
# torch 2.13.0 (CPU): torch.take_along_dim takes an index modulo the size of the dimension, however far outside it is. Its documentation
# names numpy.take_along_axis, which raises IndexError from the size on; torch.gather, which it calls, raises RuntimeError. So a wrong
# index gives another element, and training goes on.
# Seen, of three elements 10, 20, 30: index 3 gives 10, 7 gives 20, -4 gives 30.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy
import torch

values = torch.tensor([10.0, 20.0, 30.0])


def outcome(take, index):
    try:
        return float(take(index)[0])
    except (IndexError, RuntimeError) as error:
        return type(error).__name__


for index in (2, 3, 7, -1, -4):
    seen = {
        "take_along_dim": outcome(lambda i: torch.take_along_dim(values, torch.tensor([i]), 0), index),
        "gather": outcome(lambda i: torch.gather(values, 0, torch.tensor([i])), index),
        "numpy.take_along_axis": outcome(lambda i: numpy.take_along_axis(values.numpy(), numpy.array([i]), 0), index),
    }
    print(torch.__version__, index, seen)
    assert seen["take_along_dim"] == float(values[index % 3]), "this has changed"
    if index in (3, 7, -4):
        assert seen["gather"] == "RuntimeError" and seen["numpy.take_along_axis"] == "IndexError", "this has changed"
PY
