"""Which nodes become one fused op.

Graph -> groups of nodes. A node joins the ops of its own layer and phase whose results it reads,
and those that read the same tensor as it does. It does so only if the whole can run as one op, which
nothing outside needs half of, and if that op can still be split in the ways that matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from planner.dims.subdims import SubDims
from planner.fusion.again import computed_again
from planner.fusion.bodies import body_for
from planner.fusion.compose import composed
from planner.fusion.fusible import ALONE
from planner.fusion.keeps import keeps_its_choices
from planner.fusion.nodes import STEP, Members, Nodes
from planner.fusion.one_pass import is_one_pass
from planner.graph.fused import Body
from planner.graph.graph import Graph, Node

__all__ = ["Groups"]


class Groups:
    """The groups of a graph's nodes. `members[n]` is the group of node n, if that becomes a fused
    op; `again` has the nodes of forward that a group runs again, beside its members."""

    def __init__(self, graph: Graph, dims: SubDims) -> None:
        self.nodes = Nodes(graph, dims)
        self.again: dict[Members, Members] = {}
        self._of: dict[int, Members] = {}
        #: Value -> the fusible nodes that have read it so far.
        self._reading: dict[int, list[int]] = defaultdict(list)
        for index in self.nodes.order:
            if index in self.nodes.fusible:
                self._join(graph.nodes[index])
        self.again = computed_again(self.nodes, self._of)
        self.members = {
            n: g
            for n, g in self._of.items()
            if len(g) > 1 or g in self.again or graph.nodes[n].op in ALONE
        }

    def body(self, group: Members) -> tuple[Body, list[int], list[int]]:
        """The group's body, and the graph's values that are its operands and its results."""
        nodes = self.nodes.sorted(group | self.again.get(group, frozenset()))
        return body_for(self.nodes.graph, self.nodes.dims, nodes, self._needed(group))

    def _needed(self, members: Members) -> frozenset[int]:
        """The members' values that somebody outside reads."""
        return frozenset(
            value
            for member in members
            for value in self.nodes.graph.nodes[member].results
            if value is not None
            and any(
                reader not in members and member not in self._made_again_by(reader)
                for reader in self.nodes.readers.get(value, ())
            )
        )

    def _made_again_by(self, reader: int) -> Members:
        none: Members = frozenset()
        return none if reader == STEP else self.again.get(self._of.get(reader, none), none)

    def _join(self, node: Node) -> None:
        """Gives the node a group: the largest of those that it may join."""
        values = self.nodes.graph.values
        written = self._near(self.nodes.origin(value) for value in node.operands)
        beside = self._near(
            reader
            for value in node.operands
            if values[value].shape == node.result_shapes[0]
            for reader in self._reading[value]
        )
        tries = [(*written, *(g for g in beside if g not in written)), tuple(written)]
        tries += [(group,) for group in (*reversed(written), *beside)]
        own = frozenset({node.index})
        for groups in tries:
            joined = own.union(*groups)
            if groups and all(self._alike(node, g) for g in groups) and self._may_be_one(joined):
                own = joined
                break
        for member in own:
            self._of[member] = own
        for value in node.operands:
            self._reading[value].append(node.index)

    def _near(self, nodes: Iterable[int | None]) -> list[Members]:
        """The groups of some nodes, each once, in order."""
        found = (self._of[n] for n in nodes if n is not None and n in self._of)
        return list(dict.fromkeys(found))

    def _alike(self, node: Node, group: Members) -> bool:
        """Whether the node is of the group's layer, phase and section."""
        homes = self.nodes.homes
        return homes[next(iter(group))] == homes[node.index]

    def _may_be_one(self, members: Members) -> bool:
        if not self.nodes.is_closed(members):
            return False
        body, operands, results = self.body(members)
        return (
            bool(results)
            and is_one_pass(body)
            and keeps_its_choices(self.nodes, self.nodes.sorted(members), operands, composed(body))
        )
