#!/usr/bin/env bash
# torch 2.13.0: pickling a module drops the gradient hooks of its parameters without a word (a parameter's reduction writes an empty dict
# of hooks), while hooks of the module itself are kept. A plain tensor with such a hook warns when it is pickled. A hook that freezes
# rows of a table is so lost on the way to another process (spawn, torch.save of a whole module, copy.deepcopy).
# Seen: gradient of row 0 is 0 before and 1 after; no warning.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/masks.py" <<'PY'
import torch


def only_row_1(gradient):
    return gradient * torch.tensor([[0.0], [1.0]])
PY
cd "$folder" && venv/bin/python - <<'PY'
import copy
import pickle
import warnings

import torch
from masks import only_row_1

table = torch.nn.Embedding(2, 3)
table.weight.register_hook(only_row_1)


def row_0(module):
    module.zero_grad()
    module(torch.tensor([0, 1])).sum().backward()
    return float(module.weight.grad[0, 0])


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    copies = {"pickle": pickle.loads(pickle.dumps(table)), "deepcopy": copy.deepcopy(table)}
found = {name: row_0(module) for name, module in copies.items()}
print(torch.__version__, "gradient of row 0:", row_0(table), found, "warnings:", len(told))
assert row_0(table) == 0.0 and found == {"pickle": 1.0, "deepcopy": 1.0} and not told, "this has changed"
PY
