"""The built-in models, one file each. To add one, write its `SPEC` and name it here."""

from __future__ import annotations

from planner.models import (
    bert,
    cnn,
    dlrm,
    gpt,
    llama,
    lstm,
    mlp,
    moe,
    resnet,
    rnn,
    seq2seq_lstm,
    t5,
    unet,
    vit,
)
from planner.models.spec import ModelSpec, Preset

__all__ = ["MODELS", "ModelSpec", "Preset"]

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        lstm.SPEC,
        rnn.RNN,
        rnn.GRU,
        seq2seq_lstm.SPEC,
        mlp.SPEC,
        dlrm.SPEC,
        cnn.SPEC,
        resnet.SPEC,
        unet.SPEC,
        vit.SPEC,
        gpt.SPEC,
        llama.SPEC,
        moe.SPEC,
        bert.SPEC,
        t5.SPEC,
    )
}
