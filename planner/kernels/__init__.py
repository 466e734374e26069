"""Our canonical fused ops. They keep a plan independent of the platform that it was traced on.

The ops `shardwright::lstm`, `recurrent`, `cross_entropy`, `attention`, `masked_attention`,
`masked_lstm`, `masked_recurrent`, `batch_norm`, `rms_norm` and their backwards are torch custom ops
for tracing; the functions of the same names here are what the executor calls, some with a process
group over which their work is split.
"""

from planner.kernels.attention import attention, attention_backward
from planner.kernels.batch_norm import batch_norm, batch_norm_backward
from planner.kernels.canonical import Canonical
from planner.kernels.clip import clipped, square_sum
from planner.kernels.constant import constant
from planner.kernels.cross_entropy import count_targets, cross_entropy, cross_entropy_backward
from planner.kernels.dropout import (
    drop_by,
    drop_hashes,
    dropout,
    dropout_backward,
    key_of_microbatch,
    step_key,
)
from planner.kernels.embedding import embedding_backward_shard, embedding_shard
from planner.kernels.in_range import checked_ids
from planner.kernels.lstm import lstm_backward, lstm_forward
from planner.kernels.masked_attention import masked_attention, masked_attention_backward
from planner.kernels.masked_recurrent import (
    masked_lstm,
    masked_lstm_backward,
    masked_recurrent,
    masked_recurrent_backward,
)
from planner.kernels.microbatch import accumulate, piece
from planner.kernels.noise import uniform
from planner.kernels.precision import precision
from planner.kernels.random import Random
from planner.kernels.ready import ready
from planner.kernels.recurrent import recurrent_backward, recurrent_forward
from planner.kernels.rms_norm import rms_norm, rms_norm_backward
from planner.kernels.stages import receive, send, sum_of_stages

__all__ = [
    "Canonical",
    "Random",
    "accumulate",
    "attention",
    "attention_backward",
    "constant",
    "batch_norm",
    "clipped",
    "batch_norm_backward",
    "checked_ids",
    "count_targets",
    "cross_entropy",
    "cross_entropy_backward",
    "drop_by",
    "drop_hashes",
    "dropout",
    "dropout_backward",
    "embedding_backward_shard",
    "embedding_shard",
    "key_of_microbatch",
    "lstm_backward",
    "lstm_forward",
    "masked_attention",
    "masked_attention_backward",
    "masked_lstm",
    "masked_lstm_backward",
    "masked_recurrent",
    "masked_recurrent_backward",
    "recurrent_backward",
    "recurrent_forward",
    "piece",
    "precision",
    "rms_norm",
    "rms_norm_backward",
    "ready",
    "square_sum",
    "step_key",
    "uniform",
    "receive",
    "send",
    "sum_of_stages",
]
