"""The strategies that a mesh and the pins leave to classes of tied ops and of tied parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from functools import cache

from cost_models.errors import NoPlan
from planner.dims.subdims import OpDims
from planner.graph.graph import Node, Parameter
from planner.graph.layout import is_partial
from planner.strategy.strategies import (
    Option,
    ParameterStrategy,
    Strategy,
    op_strategies,
    options_of,
    parameter_strategies,
)
from planner.strategy.traced_model import Model, Pins

__all__ = ["AllowedStrategies"]


class AllowedStrategies:
    """Strategies of a model's ops and parameters on a mesh of `sizes`. Raises NoPlan if the pins
    leave none."""

    def __init__(self, model: Model, sizes: tuple[int, ...], pins: Pins) -> None:
        self.model, self.sizes, self.pins = model, sizes, pins
        self._known: dict[Hashable, tuple[Strategy, ...]] = {}

    def of_ops(self, nodes: list[Node]) -> tuple[Strategy, ...]:
        """The strategies that all of some tied nodes may choose."""
        first, dims = nodes[0], self.model.dims.ops[nodes[0].index]
        distinct = {self.pins.alike(node): node for node in nodes}.values()

        @cache
        def allowed(axis: int, option: Option) -> bool:
            return all(self.pins.op(node, axis, option) for node in distinct)

        found = self._splits(dims, allowed)
        given = self._given(first)
        found = tuple(
            s
            for s in found
            if not any(map(is_partial, itertools.chain.from_iterable(s.operands[i] for i in given)))
        )
        if not found:
            raise NoPlan(
                f"no strategy is left for {first.op} in {first.path or 'the model'!r} under these pins: "
                f"{self._what_would_fit(dims, allowed)}loosen one"
            )
        return found

    def of_parameters(self, tied: Sequence[Parameter]) -> tuple[ParameterStrategy, ...]:
        """The ways to store and update that all of some tied parameters may choose."""
        shapes = self.model.dims.shapes
        # Otherwise one layout would mean different pieces of the parameter and its gradient.
        nests = all(shapes[p.value] == shapes[p.gradient] for p in tied)

        @cache
        def allowed(axis: int, option: Option) -> bool:
            return (nests or option.kind == "whole") and all(
                self.pins.parameter(p, axis, option) for p in tied
            )

        flat = self.model.dims.flat(tied[0].value)
        found = parameter_strategies(flat, self.sizes, allowed)
        if not found:
            raise NoPlan(
                f"no way to store parameter {tied[0].name!r} is left under these pins: loosen one"
            )
        return found

    def _splits(self, dims: OpDims, allowed: Callable[[int, Option], bool]) -> tuple[Strategy, ...]:
        """The strategies of an op; computed once for ops with the same leaves."""
        options, signature = options_of(dims), dims.signature
        left = tuple(
            tuple(o for o in options if allowed(axis, o)) for axis in range(len(self.sizes))
        )
        key = (
            dims.sizes,
            dims.letter,
            dims.operands,
            dims.results,
            signature.linear,
            signature.reduced,
            left,
        )
        if key not in self._known:
            self._known[key] = op_strategies(
                dims, self.sizes, lambda axis, option: option in left[axis]
            )
        return self._known[key]

    def _what_would_fit(self, dims: OpDims, allowed: Callable[[int, Option], bool]) -> str:
        """The splits that are too fine: `8 heads cannot be split over 16 devices, at most over
        8: take smaller axes, or `."""
        words, told = dict(dims.signature.names), {}
        for axis, count in enumerate(self.sizes):
            for option in options_of(dims):
                if (
                    option.kind == "split"
                    and dims.sizes[option.number] < count
                    and allowed(axis, option)
                ):
                    size, word = dims.sizes[option.number], words.get(dims.letter[option.number])
                    what = f"a dim of {size}" if word is None else f"{size} {word}"
                    told[f"{what} cannot be split over {count} devices, at most over {size}"] = True
        return f"{', '.join(told)}: take smaller axes, or " if told else ""

    def _given(self, node: Node) -> list[int]:
        """The operands that come from outside the step, or are parameters in another format: they
        are whole or split, never partial sums."""
        model = self.model
        values = [model.roots[value].value for value in node.operands]
        return [
            i
            for i, value in enumerate(values)
            if value in model.formats or model.graph.values[value].is_given
        ]
