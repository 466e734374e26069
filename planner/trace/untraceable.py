"""The one-line reason why a step could not be traced, in the terms of the model's author, with the
line of their code that was running."""

from __future__ import annotations

import traceback

from planner.state.source_line import from_frames
from planner.trace.causes import cause_of
from planner.trace.paths import IN_MODULE

__all__ = ["explain", "place_of"]

#: Errors of fake tensors in the terms of the model's author, by the name of their (private) class.
_REASONS = {
    "DataDependentOutputException": "the step depends on the value of a tensor (.item(), int(x), "
    "`if x:`): use torch.where",
    "DynamicOutputShapeException": "the shape of a tensor depends on values (nonzero, unique, "
    "x[mask]): use torch.where",
    "DataDependentOutputError": "the step depends on the value of a tensor",
    "BY_NAME": "named dims are not supported: give dims by number",
}

#: Attributes that only tensors with named dims are asked for, and fake tensors lack.
_BY_NAME = ("align_as", "align_to", "names", "refine_names", "rename", "rename_")


def explain(error: Exception, name: str) -> str:
    """One line: what went wrong, and the last line of the user's own code that was running."""
    kind = type(error).__name__
    if kind == "AttributeError" and "FakeTensor" in str(error) and error.name in _BY_NAME:  # type: ignore[attr-defined]
        kind = "BY_NAME"
    said = (str(error).strip() or "no message").splitlines()[0]
    reason = cause_of(error, said) or _REASONS.get(kind) or _twice(said) or f"{kind}: {said}"
    return f"model {name!r} cannot be traced as one static graph{place_of(error)}: {reason}"


#: The beginning of torch's message that an op of ours has no second derivative.
_NO_SECOND = "Trying to backward through shardwright."
#: The functions that become those ops, and how to write them in ops that have one.
_WRITTEN_OUT = {
    "cross_entropy": "F.cross_entropy: use F.nll_loss(F.log_softmax(x, 1), y)",
    "attention": "F.scaled_dot_product_attention: use products and a softmax",
    "batch_norm": "batch norm in training: use a layer norm, or write it out",
    "lstm": "nn.LSTM: use nn.LSTMCell in a loop",
    "recurrent": "nn.GRU or nn.RNN: use their cells in a loop",
}


def _twice(said: str) -> str:
    """The reason if a gradient of a gradient (`create_graph=True`) reaches an op of ours; empty if
    torch said something else."""
    if not said.startswith(_NO_SECOND):
        return ""
    op = (
        said.removeprefix(_NO_SECOND)
        .partition(".")[0]
        .partition("_backward")[0]
        .removeprefix("masked_")
    )
    what = _WRITTEN_OUT.get(op, f"{op}: write it in tensor ops")
    return f"a gradient of a gradient (create_graph=True) is supported, but not through {what}"


def place_of(error: Exception) -> str:
    """The place of an error: ` at FILE:LINE (CODE) in module 'PATH'`, as far as it is known."""
    line = from_frames(traceback.extract_tb(error.__traceback__))
    return (f" at {line}" if line else "") + _module(error)


def _module(error: Exception) -> str:
    """The error's note that names the module that was running; empty if there is none."""
    return next(
        (note for note in getattr(error, "__notes__", ()) if note.startswith(IN_MODULE)), ""
    )
