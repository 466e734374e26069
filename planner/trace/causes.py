"""Explanations of errors that torch raises while tracing, if its own message does not say what to
do."""

from __future__ import annotations

import traceback

__all__ = ["cause_of"]

#: Part of torch's message -> what to do.
_SAID = {
    "can't be used with nn.DataParallel": "nn.DataParallel splits the batch, as a plan does: give "
    "the module inside, model.module",
    "not supported on ScriptModules": "a scripted module hides its modules: give the one that "
    "torch.jit.script was called on",
}
#: For errors about a missing value: the file that asks for it -> what to do.
_FROM = {
    "torch/nn/utils/rnn.py": "the shape of a packed sequence depends on values: pad the batch to "
    "one length, and mask the loss",
    "torch/nn/modules/batchnorm.py": "batch norm with momentum=None reads how many batches it has "
    "seen: give it a momentum",
}
#: Names of the (private) classes of errors of fake tensors whose value is asked for.
_NEEDS_VALUES = ("DataDependentOutputException", "DynamicOutputShapeException")


def cause_of(error: Exception, said: str) -> str:
    """What is wrong and what to do; empty if nothing is known beyond torch's own message,
    `said`."""
    for part, cause in _SAID.items():
        if part in said:
            return cause
    if type(error).__name__ not in _NEEDS_VALUES:
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for file, cause in _FROM.items():
            if frame.filename.replace("\\", "/").endswith(file):
                return cause
    return ""
