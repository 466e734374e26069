#!/usr/bin/env bash
# torch 2.13.0 (CPU): a hook on a parameter's AccumulateGrad node (how reducers such as DDP's learn that a gradient is there) is gone
# after the parameter is cast by `p.data = p.data.to(dtype)`, which is what `module.double()` does: the parameter stays the same object
# and gets a new node, without a word. Hooks by `register_hook` and `register_post_accumulate_grad_hook` stay.
# Seen: before the cast all three run, after it the two others alone.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch

module = torch.nn.Linear(3, 1, bias=False)
ran = []
node = torch.autograd.graph.get_gradient_edge(module.weight).node
node.register_hook(lambda *_: ran.append("node"))
module.weight.register_hook(lambda g: ran.append("gradient"))
module.weight.register_post_accumulate_grad_hook(lambda p: ran.append("accumulated"))


def seen(dtype):
    ran.clear()
    module(torch.ones(2, 3, dtype=dtype)).sum().backward()
    module.weight.grad = None
    return sorted(ran)


before, same = seen(torch.float32), module.weight
after = (module.double(), seen(torch.float64))[1]
print(torch.__version__, "before the cast:", before, "after it:", after, "same parameter:", same is module.weight)
assert before == ["accumulated", "gradient", "node"] and after == ["accumulated", "gradient"] and same is module.weight, "this has changed"
PY
