#!/usr/bin/env bash
# torch 2.13.0 (CPU): the backward of layer_norm with weight and bias in bfloat16 adds up their gradients over all rows in bfloat16. With
# 4,096 rows of gradients between 0 and 1 the sum stalls at 256, where the next bfloat16 is 2 away: the bias's gradient is 88 % too small.
# A plain sum(0) of the same tensor adds up in float32 and is right to one rounding. So in pure bfloat16 on a CPU the gradients of norms
# depend on how the batch is split over processes or microbatches; with float32 parameters (autocast) they do not.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PY'
import torch

torch.manual_seed(0)
off = {}
for rows in (64, 4096):
    weight = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(64, dtype=torch.bfloat16, requires_grad=True)
    x, upstream = torch.randn(rows, 64).bfloat16(), torch.rand(rows, 64).bfloat16()
    torch.nn.functional.layer_norm(x, (64,), weight, bias).backward(upstream)
    exact = upstream.double().sum(0)
    off[rows] = float((bias.grad.double() - exact).abs().max() / exact.max())
    plain = float((upstream.sum(0).double() - exact).abs().max() / exact.max())
    print(torch.__version__, rows, "rows: bias gradient off by", round(off[rows], 4), "plain sum by", round(plain, 4))
    assert plain < 0.005, "this has changed"
assert off[64] < 0.05 and off[4096] > 0.5, "this has changed"
PY
