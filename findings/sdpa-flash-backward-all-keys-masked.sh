#!/usr/bin/env bash
# torch 2.13.0 (CPU): the backward of scaled_dot_product_attention's flash kernel is wrong for a query all of whose keys have a large
# finite bias, as Keras writes masks (-2.37e38 in float32). Forward is right: weights of 1/n. Backward takes exp(score - logsumexp), and
# in a logsumexp of -2.37e38 the log(n) is lost: each weight counts as 1, and gradients are n times too large. The math kernel is right.
# Seen: gradient of `value` 0.25 by the math kernel, 1.0 by flash, for four keys.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.manual_seed(0)
q, k, v = (torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3))
bias = torch.zeros(1, 1, 4, 4)
bias[..., 3, :] = -2.37e38  # the last query sees no key
seen = {}
for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        (gradient,) = torch.autograd.grad(out[..., 3, :].sum(), v)
    seen[backend.name] = (out.detach(), gradient[0, 0, :, 0].tolist())
    print(torch.__version__, backend.name, "gradient of value:", seen[backend.name][1])
assert torch.allclose(seen["MATH"][0], seen["FLASH_ATTENTION"][0], atol=1e-6), "the forwards differ: this has changed"
assert seen["MATH"][1] == [0.25] * 4 and seen["FLASH_ATTENTION"][1] == [1.0] * 4, "this has changed"
PY
