"""Our canonical fused ops, so that a plan does not depend on the platform that it was traced on.

`shardwright::lstm`, `cross_entropy` and `attention` with their backwards are torch custom ops for tracing; the functions of
the same names here are what the executor calls, some with a process group over which their work is split.
"""

from planner.kernels.attention import attention, attention_backward
from planner.kernels.canonical import Canonical
from planner.kernels.cross_entropy import count_targets, cross_entropy, cross_entropy_backward
from planner.kernels.embedding import embedding_backward_shard, embedding_shard
from planner.kernels.lstm import lstm_backward, lstm_forward

__all__ = [
    "Canonical",
    "attention",
    "attention_backward",
    "count_targets",
    "cross_entropy",
    "cross_entropy_backward",
    "embedding_backward_shard",
    "embedding_shard",
    "lstm_backward",
    "lstm_forward",
]
