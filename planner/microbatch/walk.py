"""What every value of a step is to its microbatches: a piece of the batch, a partial sum, or the
same in each.

Splitting the batch into microbatches is data parallelism whose shards run one after another. So
one walk over the graph follows the batch through the rules of its ops, on an axis of as many
shards as there are microbatches. A sum that an op needs whole is there before the first forward if
it depends on the batch alone, else after the last backward; any other message between microbatches
is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from planner.dims.subdims import OpDims, SubDims
from planner.graph.graph import Graph, Node
from planner.graph.layout import PARTIAL_SUM, REPLICATE
from planner.microbatch.possible import samples_of
from planner.microbatch.refused import across
from planner.strategy.strategies import WHOLE, Option, placed_by

__all__ = ["LATE", "OWN", "Seen", "Walked", "walk"]

#: Placements beside those of a layout: whole, but only after the last microbatch; and another
#: tensor in every microbatch, which is no piece of a whole one: a microbatch's own statistics.
LATE = -11
OWN = -12


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a value is to the microbatches: `where` is a placement (of its flat sub-dims), LATE or
    OWN. `alone`: it depends on nothing but the batch. A piece that no batch tensor is behind has
    the nodes `makers`, which could as well make it whole. If it is LATE, node `needs` is the first
    that needed a whole sum."""

    where: int = REPLICATE
    alone: bool = True
    makers: frozenset[int] | None = frozenset()
    needs: int | None = None


@dataclass(slots=True, kw_only=True)
class Walked:
    """The result: what every value is; for every node the leaf that is split, or None (also if
    each microbatch has statistics of its own); and the operands, as (node, position), that read
    another form of their value: a microbatch's piece, at a sub-dim, of one that is there whole
    (`cut`), or the whole sum of a partial one (`summed`). `totals` are the sums that are needed
    before the first forward."""

    values: dict[int, Seen] = field(default_factory=dict)
    leaves: dict[int, int | None] = field(default_factory=dict)
    own: set[int] = field(default_factory=set)
    cut: dict[tuple[int, int], int] = field(default_factory=dict)
    summed: set[tuple[int, int]] = field(default_factory=set)
    totals: set[int] = field(default_factory=set)


class _MakeWhole(Exception):
    """An op needs a value whole that these nodes made in pieces."""

    def __init__(self, makers: frozenset[int]) -> None:
        super().__init__(makers)
        self.makers = makers


def walk(graph: Graph, dims: SubDims, allowed: Callable[[str], bool]) -> Walked:
    """The walk over a whole step's graph. `allowed` says of a module's path whether it may take
    statistics over each microbatch. Raises CannotSplit."""
    whole: frozenset[int] = frozenset()
    while True:
        try:
            return _Walk(graph, dims, allowed, whole).walked()
        except _MakeWhole as error:
            assert error.makers - whole
            whole |= error.makers


class _Walk:
    def __init__(
        self, graph: Graph, dims: SubDims, allowed: Callable[[str], bool], whole: frozenset[int]
    ) -> None:
        self.graph, self.dims, self.allowed, self.whole = graph, dims, allowed, whole
        samples = samples_of(graph, dims)
        self.atoms = frozenset(atom for atom, _ in samples.values())
        self.out = Walked()
        changed = {buffer for buffer, _ in graph.updates}
        for value in graph.values:
            if value.writer is None:
                self.out.values[value.id] = Seen(
                    where=0 if value.id in samples else REPLICATE,
                    alone=value.kind != "parameter" and value.id not in changed,
                    makers=None if value.id in samples else frozenset(),
                )

    def walked(self) -> Walked:
        """The walk over all nodes."""
        for node in self.graph.nodes:
            self._node(node)
        return self.out

    def _node(self, node: Node) -> None:
        op = self.dims.ops[node.index]
        seen = [self.out.values[v] for v in node.operands]
        if any(s.where >= 0 for s in seen):
            self._place(node, op, Option("split", self._leaf(node, op, seen)), seen)
            return
        option = self._unsplit(node, op, seen)
        if option is None:
            self._late(node, seen)
        else:
            self._place(node, op, option, seen)

    # ------------------------------------------------------------------------------ which option

    def _leaf(self, node: Node, op: OpDims, seen: list[Seen]) -> int:
        """The leaf at which a node is split that reads pieces. Raises CannotSplit if it must have
        one of them whole."""
        leaves = {
            op.operands[position][s.where]
            if s.where < len(op.operands[position])
            else -1  # dims that do not nest
            for position, s in enumerate(seen)
            if s.where >= 0
        }
        leaf = next(iter(leaves))
        if len(leaves) > 1 or leaf in op.fixed or leaf < 0:
            self._needs_whole(node, seen)
        if op.letter[leaf] in op.signature.inner and not self.allowed(node.path):
            raise across(self.graph, node, statistics=op.signature.kind == "norm")
        for s in seen:
            if s.where == LATE:
                assert s.needs is not None
                raise across(self.graph, self.graph.nodes[s.needs], statistics=False)
        return leaf

    def _needs_whole(self, node: Node, seen: list[Seen]) -> None:
        makers = [s.makers for s in seen if s.where >= 0 and s.makers]
        if makers:
            raise _MakeWhole(frozenset[int]().union(*makers))
        raise across(self.graph, node, statistics=False)

    def _unsplit(self, node: Node, op: OpDims, seen: list[Seen]) -> Option | None:
        """The option of a node that reads no pieces; None if it must wait for whole sums."""
        if any(s.where == LATE for s in seen):
            return None
        partial = {p for p, s in enumerate(seen) if s.where == PARTIAL_SUM}
        for some in (partial, {p for p in partial if not seen[p].alone}):
            if some in op.signature.linear:
                return Option("linear", op.signature.linear.index(frozenset(some)))
            if not some:
                leaf = self._made_in_pieces(node, op)
                return WHOLE if leaf is None else Option("split", leaf)
        return None

    def _made_in_pieces(self, node: Node, op: OpDims) -> int | None:
        """The leaf at which a node makes pieces of a tensor with one row for each sample, from
        operands without rows (zeros, random numbers, a parameter repeated); None if there is none,
        or the choice is not clear."""
        if node.index in self.whole:
            return None
        read = {leaf for operand in op.operands for leaf in operand}
        made = {
            leaf
            for value, result in zip(node.results, op.results, strict=True)
            if value is not None
            for leaf in result
        }
        leaves = [
            leaf
            for leaf in made - read - op.fixed
            if op.atoms[leaf] in self.atoms and op.letter[leaf] not in op.signature.inner
        ]
        return leaves[0] if len(leaves) == 1 else None

    # -------------------------------------------------------------------------- what results are

    def _place(self, node: Node, op: OpDims, option: Option, seen: list[Seen]) -> None:
        """Records how a node is split, which forms of its operands it reads, and what its results
        are."""
        leaf, operands, results = placed_by(op, option)
        late = False
        for position, (s, due) in enumerate(zip(seen, operands, strict=True)):
            late |= not self._read(node, position, s, due)
        if late:
            raise across(self.graph, node, statistics=False)
        own = leaf >= 0 and op.letter[leaf] in op.signature.inner
        if own:
            self.out.own.add(node.index)
        self.out.leaves[node.index] = leaf if leaf >= 0 else None
        alone = all(s.alone for s in seen) and not any(
            (node.index, p) in self.out.summed for p in range(len(seen))
        )
        makers = self._makers(node, seen, leaf)
        for value, where in zip(node.results, results, strict=True):
            if value is not None:
                self.out.values[value] = Seen(
                    where=_result(node, where, own, any(s.where == OWN for s in seen)),
                    alone=alone,
                    makers=makers,
                )

    def _makers(self, node: Node, seen: list[Seen], leaf: int) -> frozenset[int] | None:
        if any(s.where >= 0 and s.makers is None for s in seen):
            return None
        found = frozenset[int]().union(*(s.makers or () for s in seen if s.where >= 0))
        return found or frozenset({node.index} if leaf >= 0 else ())

    def _read(self, node: Node, position: int, s: Seen, due: int) -> bool:
        """Records the form in which an operand is read; False if only the end of the step has
        it."""
        if s.where == due or (s.where == OWN and due == REPLICATE):
            return True
        if s.where == PARTIAL_SUM:
            if not s.alone:
                return False
            self.out.totals.add(node.operands[position])
            self.out.summed.add((node.index, position))
        if due >= 0 and s.where != OWN:
            self.out.cut[node.index, position] = due
        return s.where != OWN or due == REPLICATE

    def _late(self, node: Node, seen: list[Seen]) -> None:
        """Records a node that runs once, when all sums are whole."""
        needs = next((s.needs for s in seen if s.where == LATE), node.index)
        if any(s.where == OWN for s in seen):
            raise across(self.graph, node, statistics=False)
        for position, s in enumerate(seen):
            if s.where == PARTIAL_SUM:
                self.out.summed.add((node.index, position))
        self.out.leaves[node.index] = None
        for value in node.results:
            if value is not None:
                self.out.values[value] = Seen(where=LATE, alone=False, needs=needs)


def _result(node: Node, where: int, own: bool, reads_own: bool) -> int:
    """What a result is that has placement `where` by its rule. If it is whole by messages between
    microbatches (`own`), it is another in each microbatch without them; or, in backward, a term of
    a gradient."""
    if where != REPLICATE or not (own or reads_own):
        return where
    return PARTIAL_SUM if own and node.phase == "backward" else OWN
