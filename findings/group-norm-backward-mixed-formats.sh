#!/usr/bin/env bash
# torch 2.13.0 (CPU): aten.native_group_norm_backward takes a channels-last input beside a contiguous gradient (or the other way round),
# and returns wrong gradients of all three, without a word. Autograd's own formula makes the two alike before it calls the op, so that
# only those who run a traced graph meet it (a decomposition, a partitioner, a sharded program).
# Seen: off by more than 1 where the formats differ, by less than 1e-12 where both are channels-last.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch

torch.manual_seed(0)
x, upstream = (torch.randn(2, 8, 4, 4, dtype=torch.float64) for _ in range(2))
weight, last = torch.ones(8, dtype=torch.float64), torch.channels_last
_, mean, rstd = torch.ops.aten.native_group_norm(x, weight, None, 2, 8, 16, 4, 1e-5)


def gradients(x, upstream):
    return torch.ops.aten.native_group_norm_backward(upstream, x, mean, rstd, weight, 2, 8, 16, 4, [True, True, True])


right = gradients(x, upstream)
off = {}
for name, one, other in (
    ("input channels-last", x.to(memory_format=last), upstream),
    ("gradient channels-last", x, upstream.to(memory_format=last)),
    ("both channels-last", x.to(memory_format=last), upstream.to(memory_format=last)),
):
    off[name] = max(float((a - b).abs().max()) for a, b in zip(gradients(one, other), right))
    print(torch.__version__, name, "off by", off[name])
assert off["input channels-last"] > 1 and off["gradient channels-last"] > 1 and off["both channels-last"] < 1e-12, "this has changed"
PY
