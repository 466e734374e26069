#!/usr/bin/env bash
# torch 2.13.0 (CPU): the gradient of batch norm of an input [N, C] is wrong, without a word, where the weight is a strided view: the
# channels-last path of native_batch_norm_backward, which [N, C] takes, reads the weight by address. Inputs of more dims are right.
# Seen: gradients off by about 7 for (6, 4), by 0 for (6, 4, 3) and (2, 4, 3, 3).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F

off = {}
for shape in ((6, 4), (6, 4, 3), (2, 4, 3, 3)):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight, upstream = torch.rand(8, dtype=torch.float64)[::2], torch.randn(shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((F.batch_norm(x, None, None, w, None, training=True) * upstream).sum(), x)[0]
        for w in (weight, weight.contiguous())
    ]
    off[shape] = float((gradients[0] - gradients[1]).abs().max())
    print(torch.__version__, shape, "off by", off[shape])
assert off[6, 4] > 0.1 and off[6, 4, 3] < 1e-12 and off[2, 4, 3, 3] < 1e-12, "this has changed"
PY
