"""What an error means that torch raises while tracing, where its own words do not say what to
do."""

from __future__ import annotations

import traceback

__all__ = ["cause_of"]

#: Part of what torch says, and what to do.
_SAID = {
    "can't be used with nn.DataParallel": "nn.DataParallel splits the batch, as a plan does: give the module inside, model.module",
    "not supported on ScriptModules": "a scripted module hides its modules: give the one that torch.jit.script was called on",
}
#: Of errors for want of a value: the file that asks for it.
_FROM = {
    "torch/nn/utils/rnn.py": "the shape of a packed sequence depends on values: pad the batch to one length, and mask the loss",
    "torch/nn/modules/batchnorm.py": "batch norm with momentum=None reads how many batches it has seen: give it a momentum",
}
#: What fake tensors raise where a value decides: their classes are private.
_NEEDS_VALUES = ("DataDependentOutputException", "DynamicOutputShapeException")


def cause_of(error: Exception, said: str) -> str:
    """What is wrong and what to do; empty where torch's own words, `said`, are all that is
    known."""
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
