"""What pins say of the modes of ops: which run again in backward, and which are kept.

Model, pins -> modes by node. Of the pins that match an op, the last decides; before all pins, what
the model itself runs under `torch.utils.checkpoint`. `recompute` on a layer is what Megatron calls
full recompute: only what the layer reads is kept. `selective` is what torchtitan calls selective by
ops, which includes Megatron's core attention: in layers, products with parameters, convolutions,
recurrent layers and fused attention are kept, and all else runs again, unless it would need more
memory for what it reads than its result takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from cost_models.errors import BadValue, NoPlan
from planner.graph.graph import Node
from planner.strategy.pins import MODE_PINS, RECOMPUTE, Pin
from planner.strategy.strategies import AGAIN, ONCE
from planner.strategy.traced_model import Model

__all__ = ["check_mode_pins", "modes_under", "pinned_again"]

#: Kinds of op that `selective` keeps; products only if they are with a parameter.
_DEAR = ("conv", "attention", "lstm", "embedding")


def pinned_again(model: Model, pins: tuple[Pin, ...]) -> dict[int, bool]:
    """For every op of forward on whose mode a pin decides: whether it is to run again, not kept.
    What the model runs inside of a `torch.utils.checkpoint` is pinned by that, before all pins."""
    again: dict[int, bool] = {}
    if not model.has_checkpoints and not any(pin.choice in MODE_PINS for pin in pins):
        return again
    for node in model.graph.nodes:
        if not model.may_have_mode(node):
            continue
        pin = _last(node, pins)
        choice = node.checkpoint if pin is None else pin.choice
        # What no block owns, such as the head and the loss, is needed as soon as backward begins: a
        # pin on all modules leaves it alone.
        meant = pin is None or pin.pattern != "*" or bool(model.blocks[node.index])
        if not choice:
            if _looks(model, node, again):
                again[node.index] = True
        elif choice == "selective":
            again[node.index] = meant and _is_cheap(model, node) and _saves(model, node, again)
        else:
            again[node.index] = meant and choice == "recompute"
    return again


def modes_under(model: Model, pins: tuple[Pin, ...]) -> dict[int, str]:
    """The modes of ops under pins, if all on which no pin decides are kept: of ops that are to run
    again, those that backward needs do, and those that it does not need run once. Kept ones are
    left out."""
    again = pinned_again(model, pins)
    wanted = {value for value, phase in model.uses if phase == "backward"}
    modes: dict[int, str] = {}
    for index in sorted((n for n, yes in again.items() if yes), reverse=True):
        node = model.graph.nodes[index]
        read = wanted.intersection(v for v in node.results if v is not None)
        if read - model.crossing:
            modes[index] = AGAIN
            wanted.update(model.roots[value].value for value in node.operands)
        elif not read:
            modes[index] = ONCE
    return modes


def check_mode_pins(model: Model, pins: tuple[Pin, ...]) -> None:
    """Raises BadValue for pins that contradict each other, NoPlan for one that changes nothing."""
    of_modes = [pin for pin in pins if pin.choice in MODE_PINS]
    for first, second in itertools.combinations(of_modes, 2):
        if first.pattern == second.pattern:
            what = "are the same" if first == second else "contradict each other"
            raise BadValue(f"{_shown(first)} and {_shown(second)} {what}: leave one of them out")
    if not of_modes:
        return
    nodes = [n for n in model.graph.nodes if model.may_have_mode(n)]
    modes = modes_under(model, pins)
    for pin in of_modes:
        decided = [n for n in nodes if _last(n, pins) == pin]
        if not decided:
            raise NoPlan(f"{_shown(pin)}: {_overruled(pin, pins, nodes)}")
        if pin.choice != "keep" and not any(modes.get(n.index) == AGAIN for n in decided):
            raise NoPlan(
                f"{_shown(pin)}: nothing that it matches is held for backward and could be freed: "
                "pin a layer, or a module that computes something that backward reads"
            )


def _shown(pin: Pin) -> str:
    names = [f"--recompute {name}" for name, choice in RECOMPUTE.items() if choice == pin.choice]
    return f"{names[0] if pin.pattern == '*' else '--pin'} '{pin.pattern}={pin.choice}'"


def _overruled(pin: Pin, pins: tuple[Pin, ...], nodes: list[Node]) -> str:
    """Why a pin decides on no op."""
    deciding = {_last(n, pins) for n in nodes if pin.matches(n.path)}
    others = " and ".join(_shown(other) for other in pins if other in deciding)
    if others:
        return f"{others} after it decides on all that it matches: leave it out, or give it last"
    return "it matches no op of forward that computes a tensor: pin a layer or a module in one"


def _last(node: Node, pins: tuple[Pin, ...]) -> Pin | None:
    """The last of the pins on modes that match a node, which decides; None if none does."""
    return next(
        (pin for pin in reversed(pins) if pin.choice in MODE_PINS and pin.matches(node.path)), None
    )


def _looks(model: Model, node: Node, again: Mapping[int, bool]) -> bool:
    """Whether a node returns a view of the result of an op that is to run again: kept, it would
    hold the memory of that result."""
    if model.dims.ops[node.index].signature.kind != "view" or not node.operands:
        return False
    writer = model.graph.values[model.roots[node.operands[0]].value].writer
    return writer is not None and again.get(writer, False)


def _is_cheap(model: Model, node: Node) -> bool:
    kind = model.dims.ops[node.index].signature.kind
    if kind != "gemm":
        return kind not in _DEAR
    return not any(model.roots[value].value in model.formats for value in node.operands)


def _saves(model: Model, node: Node, again: Mapping[int, bool]) -> bool:
    """Whether running a node again takes less memory for operands that would be kept for it alone
    than its results take."""
    more = {
        value
        for value in (model.roots[v].value for v in node.operands)
        if not _is_there(model, value, again)
    }
    held = sum(map(model.whole_bytes, more))
    return held < sum(model.whole_bytes(value) for value in node.results if value is not None)


def _is_there(model: Model, value: int, again: Mapping[int, bool]) -> bool:
    """Whether backward can read a value at no further cost of memory."""
    writer = model.graph.values[value].writer
    return (
        writer is None
        or value in model.formats
        or again.get(writer, False)
        or (value, "backward") in model.uses
    )
