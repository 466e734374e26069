"""Recompute: the ops of forward that may run again in backward, and the readings of their operands.

Model -> the modes that each class of ops may have, and all readings of values, those of second runs
included. An op runs again on demand: before the first op of backward that reads its results, or
that runs again itself and reads them. The values that one layer leaves to another are not made
again (`Model.crossing`), so a second run never leaves its layer; unless it may `across` layers.

An approximation: an op whose results backward reads is assumed to run again just before that
reading, even if another op that runs again needs it earlier. Within a layer that is a few ops
earlier; a chain of second runs across layers may hold all that it makes from the start of backward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

from planner.graph.graph import Node
from planner.strategy.strategies import ACROSS, AGAIN, KEPT, ONCE, SECOND, Strategy
from planner.strategy.traced_model import Model, Use, UseGroups, Uses

__all__ = ["Readings", "Recompute", "readings_in", "second_runs"]

#: A class of ops that keeps less than this share of all that is kept from forward to backward has
#: no choice. In what all such classes hold together, a plan that fits may be missed.
_MATTERS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Readings:
    """All readings of root values by (root value, phase), those of second runs included, and the
    readings that are alike. `runs_at[n]` is the node of backward before which forward's node n runs
    again, if it does."""

    uses: Uses
    groups: UseGroups
    runs_at: dict[int, int]

    @cached_property
    def by_value(self) -> dict[int, list[Use]]:
        """The readings of each root value in all phases."""
        found: dict[int, list[Use]] = defaultdict(list)
        for (value, _), uses in self.uses.items():
            found[value] += uses
        return dict(found)

    def time(self, use: Use) -> int | None:
        """When a value is read: the number of the node of that moment; None for the update."""
        return self.runs_at[use.node] if use.again and use.node is not None else use.node


def readings_in(
    model: Model, again: frozenset[int] = frozenset(), *, across: bool = False
) -> Readings:
    """The readings of a model in which the ops of some classes may run again."""
    if again:
        return Recompute(model, across=across).readings(again)
    return Readings(uses=model.uses, groups=model.use_groups, runs_at={})


def second_runs(model: Model, strategies: dict[int, Strategy]) -> Readings:
    """The readings under given strategies, by node: those of the ops that run again in addition."""
    again = (n for n, strategy in strategies.items() if strategy.mode in SECOND)
    across = any(strategy.mode == ACROSS for strategy in strategies.values())
    return readings_in(model, frozenset(model.ties.node_class[n] for n in again), across=across)


class Recompute:
    """What may run again in a model's backward; found once for all meshes. `across`: also what one
    layer leaves to another."""

    def __init__(self, model: Model, *, across: bool = False) -> None:
        self.model, self.across = model, across
        #: Root value -> the nodes that read it if they run again.
        self.read_again: dict[int, list[int]] = defaultdict(list)
        #: Node -> the node of backward before which it would run again.
        self.runs_at: dict[int, int] = {}
        self._known: dict[frozenset[int], Readings] = {}
        self._find()

    # ------------------------------------------------------------------------------- what may run

    def _find(self) -> None:
        """Walks forward from its end: the ops whose results backward reads, and those that an op
        needs that may run again."""
        for node in reversed(self.model.graph.nodes):
            if not self._has_choice(node):
                continue
            times = self._direct(node) or [
                self.runs_at[reader]
                for v in node.results
                for reader in self.read_again.get(-1 if v is None else v, ())
            ]
            self.runs_at[node.index] = min(times)
            if node.index not in self._barred:
                for value in dict.fromkeys(self._operands(node)):
                    self.read_again[value].append(node.index)

    @cached_property
    def _barred(self) -> frozenset[int]:
        """The ops that never run again: those that leave a value to another layer, those that cast
        a parameter (`Choices.recast`), and those that would need a value which nothing keeps."""
        model, found = self.model, set[int]()
        for node in model.graph.nodes:
            if (
                (not self.across and not model.crossing.isdisjoint(node.results))
                or model.casts_parameter(node)
                or any(self._is_lost(value, found) for value in self._operands(node))
            ):
                found.add(node.index)
        return frozenset(found)

    def _is_lost(self, value: int, barred: AbstractSet[int]) -> bool:
        """Whether a value can neither be made again nor is kept for a second run: backward reads
        other results of its op, so `kept` means those, and the op is barred."""
        writer = self.model.graph.values[value].writer
        if writer is None or writer not in barred or value in self.model.formats:
            return False
        node = self.model.graph.nodes[writer]
        return bool(self._direct(node)) and (value, "backward") not in self.model.uses

    def _operands(self, node: Node) -> list[int]:
        return [self.model.roots[value].value for value in node.operands]

    def _direct(self, node: Node) -> list[int]:
        """The nodes of backward that read a node's results."""
        return [
            use.node
            for value in node.results
            for use in self.model.uses.get((-1 if value is None else value, "backward"), ())
            if use.node is not None
        ]

    def _has_choice(self, node: Node) -> bool:
        """Whether an op of forward may be worth running again: backward reads enough of it, or
        second runs read what backward does not."""
        if not self.model.may_have_mode(node):
            return False
        number = self.model.ties.node_class[node.index]
        return self._class_bytes[number] > self._least_bytes or any(
            self.read_again.get(v) and (v, "backward") not in self.model.uses
            for v in node.results
            if v is not None
        )

    @cached_property
    def _class_bytes(self) -> list[int]:
        """The bytes that each class of ops keeps from forward to backward."""
        return [sum(map(self._kept_bytes, members)) for members in self.model.ties.nodes_of]

    def _kept_bytes(self, index: int) -> int:
        node = self.model.graph.nodes[index]
        if not self.model.may_have_mode(node):
            return 0
        read = (v for v in node.results if v is not None and (v, "backward") in self.model.uses)
        return sum(map(self.model.whole_bytes, read))

    @cached_property
    def _least_bytes(self) -> float:
        return _MATTERS * sum(self._class_bytes)

    # -------------------------------------------------------------------------------------- modes

    @cached_property
    def modes(self) -> tuple[tuple[str, ...], ...]:
        """The modes that each class of ops may have. An op whose results backward reads is kept or
        runs again. One that only second runs read is run once, runs again or, if that holds less
        than what follows from it, is kept. The first mode is that of a step in which nothing runs
        again."""
        return tuple(map(self._modes_of, self.model.ties.nodes_of))

    def _modes_of(self, members: tuple[int, ...]) -> tuple[str, ...]:
        nodes = [self.model.graph.nodes[m] for m in members if m in self.runs_at]
        if not nodes:
            return (KEPT,)
        crosses = any(not self.model.crossing.isdisjoint(node.results) for node in nodes)
        again = () if any(node.index in self._barred for node in nodes) else (ACROSS,)
        if not crosses and again:
            again = (AGAIN,)
        if any(map(self._direct, nodes)):
            return (KEPT, *again)
        if self._is_looked_at(nodes[0]):
            return (KEPT, ONCE, *again)
        return (ONCE, *again, *((KEPT,) if self._worth_keeping(nodes[0]) else ()))

    def modes_left(
        self,
        members: tuple[int, ...],
        again: Mapping[int, bool],
        pinned: Mapping[int, str],
        *,
        free: bool,
    ) -> tuple[str, ...]:
        """The modes that pins leave to a class of ops: `again` says which ops they make run again,
        or keep; `pinned` in which modes. Ops on which no pin decides are kept, unless they are
        `free`."""
        modes = self.modes[self.model.ties.node_class[members[0]]]
        decided = [again.get(member) for member in members if member in self.runs_at]
        if decided and all(decided):
            return (pinned.get(members[0], KEPT),)
        if any(choice is not None for choice in decided):
            # Kept for second runs, even if that is not worth it: a pin may have them run.
            left = tuple(mode for mode in modes if mode not in SECOND)
            return left if KEPT in left else (*left, KEPT)
        return modes if free else (KEPT,)

    def _worth_keeping(self, node: Node) -> bool:
        """Whether keeping an op's results for second runs alone may pay: not if all that follows
        from them is one value which backward reads and which is no larger. Bytes are those of whole
        values: a value that follows may be split over fewer devices, and then this is a
        restriction."""
        if self._is_looked_at(node):
            return True
        targets = self._targets(node)
        if len(targets) != 1:
            return True
        return self.model.whole_bytes(next(iter(targets))) > sum(
            map(self.model.whole_bytes, self._read_results(node))
        )

    def _read_results(self, node: Node) -> list[int]:
        return [v for v in node.results if v is not None and self.read_again.get(v)]

    def _is_looked_at(self, node: Node) -> bool:
        """Whether an op that may be kept returns a view of one of a node's results: then these are
        kept too."""
        readers = (r for value in self._read_results(node) for r in self.read_again[value])
        views = (r for r in readers if self.model.dims.ops[r].signature.kind == "view")
        nodes = [self.model.graph.nodes[r] for r in views]
        return any(self._direct(view) or self._worth_keeping(view) for view in nodes)

    def _targets(self, node: Node) -> set[int]:
        """The values that backward reads and that second runs make from a node's results."""
        out, seen, pending = set[int](), set[int](), [node]
        while pending:
            for value in self._read_results(pending.pop()):
                for reader in set(self.read_again[value]) - seen:
                    seen.add(reader)
                    following = self.model.graph.nodes[reader]
                    direct = {v for v in following.results if (v, "backward") in self.model.uses}
                    out |= {v for v in direct if v is not None}
                    if not direct:
                        pending.append(following)
        return out

    # ----------------------------------------------------------------------------------- readings

    def readings(self, classes: frozenset[int]) -> Readings:
        """The readings if the ops of some classes may run again, found once for the same ones."""
        if classes not in self._known:
            self._known[classes] = self._readings(classes)
        return self._known[classes]

    def _readings(self, classes: frozenset[int]) -> Readings:
        if not classes:
            return readings_in(self.model)
        model = self.model
        uses = {key: list(found) for key, found in model.uses.items()}
        for node in model.graph.nodes:
            if node.index not in self.runs_at or model.ties.node_class[node.index] not in classes:
                continue
            for position, value in enumerate(node.operands):
                root = model.roots[value]
                if not model.graph.values[root.value].is_given:
                    uses.setdefault((root.value, "backward"), []).append(
                        Use(
                            root=root,
                            phase="backward",
                            node=node.index,
                            position=position,
                            again=True,
                        )
                    )
        runs_at = {n: at for n, at in self.runs_at.items() if model.ties.node_class[n] in classes}
        return Readings(uses=uses, groups=model.grouped(uses), runs_at=runs_at)
