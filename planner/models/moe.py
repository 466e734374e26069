"""`moe`: a decoder of Mixtral's shape: Llama's attention, and in each layer experts of which every
token goes to the best few.

An expert takes a fixed number of tokens of each sample, its capacity, so that shapes do not depend
on the routing; tokens beyond it pass by on the residual stream, as in GShard and Switch. With
`capacity_percent=100 * experts / top_k` none does. Sources: Jiang et al. 2024, "Mixtral of
Experts", table 1; Lepikhin et al. 2020, "GShard", section 2.2, for the capacity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.models.gpt import next_token_loss
from planner.models.llama import Attention, RMSNorm, check_heads, rotary
from planner.models.spec import ModelSpec, Options, Parts, Preset, token_ids

__all__ = ["MoE", "SPEC"]

_INIT_STD = 0.02


class Experts(nn.Module):
    """SwiGLU networks side by side: (experts, tokens, width) to the same."""

    def __init__(self, experts: int, width: int, mlp: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, width, mlp))
        self.up = nn.Parameter(torch.empty(experts, width, mlp))
        self.down = nn.Parameter(torch.empty(experts, mlp, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(F.silu(torch.bmm(x, self.gate)) * torch.bmm(x, self.up), self.down)


class MixtureLayer(nn.Module):
    """Every token through its `top_k` experts, weighted by the router's softmax over those."""

    def __init__(
        self, width: int, mlp: int, experts: int, top_k: int, capacity_percent: int
    ) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.percent = experts, top_k, capacity_percent
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts(experts, width, mlp)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        scores, chosen = self.router(x).topk(self.top_k, -1)
        capacity = -(-seq * self.top_k * self.percent // (100 * self.num_experts))
        slot, kept = self._slots(chosen.reshape(batch, seq * self.top_k), capacity)
        weights = scores.softmax(-1).reshape(batch, seq * self.top_k) * kept
        into = self._tokens(slot, kept, capacity, seq)
        sent = x.gather(1, into[:, :, None].expand(batch, into.shape[1], width))
        sent = (
            sent.view(batch, self.num_experts, capacity, width)
            .transpose(0, 1)
            .reshape(self.num_experts, -1, width)
        )
        done = (
            self.experts(sent)
            .view(self.num_experts, batch, capacity, width)
            .transpose(0, 1)
            .reshape(batch, -1, width)
        )
        back = (
            done.gather(1, slot[:, :, None].expand(batch, slot.shape[1], width))
            * weights[:, :, None]
        )
        out: Tensor = back.view(batch, seq, self.top_k, width).sum(2)
        return out

    def _slots(self, chosen: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """For each choice (batch, seq x top_k), its place among all experts' slots, and whether the
        expert had room."""
        taken = (
            F.one_hot(chosen, self.num_experts).cumsum(1).gather(2, chosen[:, :, None]).squeeze(2)
            - 1
        )
        return chosen * capacity + taken.clamp(max=capacity - 1), taken < capacity

    def _tokens(self, slot: Tensor, kept: Tensor, capacity: int, seq: int) -> Tensor:
        """For each slot (batch, experts x capacity), the token in it; an empty one holds the first,
        which is never read back."""
        num_slots = self.num_experts * capacity
        token = torch.arange(seq * self.top_k, device=slot.device) // self.top_k
        empty = torch.zeros(slot.shape[0], num_slots + 1, dtype=slot.dtype, device=slot.device)
        return empty.scatter(1, torch.where(kept, slot, num_slots), token.expand(slot.shape))[
            :, :num_slots
        ]


class Block(nn.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        mlp: int,
        experts: int,
        top_k: int,
        percent: int,
    ) -> None:
        super().__init__()
        self.input_norm = RMSNorm(width)
        self.attn = Attention(width, heads, kv_heads)
        self.post_norm = RMSNorm(width)
        self.moe = MixtureLayer(width, mlp, experts, top_k, percent)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.input_norm(x), cos, sin)
        out: Tensor = x + self.moe(self.post_norm(x))
        return out


class MoE(nn.Module):
    """Logits (batch, seq, vocab) for token ids (batch, seq)."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, vocab = options["width"], options["vocab"]
        sizes = [
            options[key]
            for key in ("width", "heads", "kv_heads", "mlp", "experts", "top_k", "capacity_percent")
        ]
        self.head_dim, self.theta = width // options["heads"], float(options["rope_theta"])
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Block(*sizes) for _ in range(options["layers"]))
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_INIT_STD)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        cos, sin = rotary(ids.shape[1], self.head_dim, self.theta, x)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def _check(options: Options) -> None:
    check_heads(options)
    if options["top_k"] > options["experts"]:
        raise BadValue(
            f"top_k {options['top_k']} is more than the {options['experts']} experts: --set top_k={options['experts']}"
        )


def _build(options: Options) -> Parts:
    return (
        MoE(options),
        tuple(token_ids(options, options["batch"], options["seq"]) for _ in range(2)),
        next_token_loss,
    )


SPEC = ModelSpec(
    name="moe",
    description="Mixtral-shaped decoder: Llama's attention, experts with a fixed capacity; cross-entropy "
    "of the next token",
    options={
        "layers": 2,
        "width": 256,
        "heads": 8,
        "kv_heads": 4,
        "mlp": 512,
        "experts": 8,
        "top_k": 2,
        "capacity_percent": 125,
        "vocab": 8192,
        "seq": 128,
        "rope_theta": 10_000,
    },
    batch_per_device=8,
    build=_build,
    dim_names={
        "embed.weight": ("vocab", "embed"),
        "lm_head.weight": ("vocab", "embed"),
        "layers.*.attn.q_proj.weight": ("kv_heads,query_group,head_dim", "embed"),
        "layers.*.attn.[kv]_proj.weight": ("kv_heads,head_dim", "embed"),
        "layers.*.attn.o_proj.weight": ("embed", "kv_heads,query_group,head_dim"),
        "layers.*.moe.router.weight": ("experts", "embed"),
        "layers.*.moe.experts.down": ("experts", "mlp", "embed"),
        "layers.*.moe.experts.*": ("experts", "embed", "mlp"),
        "*norm.weight": ("embed",),
    },
    presets={
        "mixtral-8x7b": Preset(
            description="32 layers, 4096 wide, 8 experts of 14,336, the best 2: 46.7 billion parameters",
            options={
                "layers": 32,
                "width": 4096,
                "heads": 32,
                "kv_heads": 8,
                "mlp": 14_336,
                "experts": 8,
                "top_k": 2,
                "vocab": 32_000,
                "seq": 4096,
                "rope_theta": 1_000_000,
            },
            batch_per_device=1,
            source="Jiang et al. 2024, table 1; a capacity of 1.25 times the mean from Fedus et al. 2021, section 2.2",
        )
    },
    check=_check,
    sequence="seq",
)
