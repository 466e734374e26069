"""Splits of model graphs over accelerators and CPU cores, against the optima of the paper "Efficient
Algorithms for Device Placement of DNN Graph Operators" (NeurIPS 2020).

python benchmarks/dnn_partitioning.py [GRAPH.json ...] [--out FILE.json]

The graphs and optima are those of `partitioning/` in the folder that SHARDWRIGHT_DATA names. Every
row has the load of our split, worked out from the graph again; the bound; the optimum and the
seconds of the paper's programme, where known; ours, without and with reading the file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from planner.partition.dag import Dag, Device, Net
from planner.partition.split_dag import split_dag

__all__ = ["DATA", "read", "solved"]

DATA = (
    Path(os.environ.get("SHARDWRIGHT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    / "partitioning"
)
#: A node that takes less time is free.
_FREE = 1e-9


class _Groups:
    """Nodes that share a device, joined step by step."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self.nodes = {node["id"]: node for node in graph["nodes"]}
        self.edges = [(edge["sourceId"], edge["destId"]) for edge in graph["edges"]]
        self.of = {i: node.get("colorClass", f"node {i}") for i, node in self.nodes.items()}
        self.joined: dict[Any, Any] = {group: group for group in self.of.values()}
        forward = {self.of[i] for i, node in self.nodes.items() if not node["isBackwardNode"]}
        self.orphans = {*self.joined} - forward

    def group(self, node: int) -> Any:
        """The group of a node now."""
        return self._root(self.of[node])

    def _root(self, group: Any) -> Any:
        while self.joined[group] != group:
            group = self.joined[group]
        return group

    def join(self, group: Any, other: Any) -> None:
        """Makes one group of two."""
        self.joined[self._root(group)] = self._root(other)

    def arrows(self) -> set[tuple[Any, Any]]:
        """From group to group along edges of forward; nodes of backward alone come in the order of
        the forward that they would have."""
        arrows = set()
        for a, b in self.edges:
            first, second = self.group(a), self.group(b)
            backward = [bool(self.nodes[node]["isBackwardNode"]) for node in (a, b)]
            if first == second or backward[0] != backward[1]:
                continue
            if not backward[0]:
                arrows.add((first, second))
            elif self.of[a] in self.orphans or self.of[b] in self.orphans:
                arrows.add((second, first))
        return arrows

    def members(self) -> dict[Any, list[int]]:
        """The nodes of each group."""
        members = defaultdict(list)
        for node in self.nodes:
            members[self.group(node)].append(node)
        return dict(members)

    def join_leaves(self) -> None:
        """A group that takes no time and has edges to one other group joins it: no load grows. (The
        paper's programme does the same, which is exact unless the memory of a device binds.)"""
        members = self.members()
        near: dict[Any, set[Any]] = defaultdict(set)
        for a, b in self.edges:
            first, second = self.group(a), self.group(b)
            if first != second:
                near[first].add(second)
                near[second].add(first)
        waiting = [*members]
        while waiting:
            leaf = waiting.pop()
            if self._root(leaf) != leaf or len(near[leaf]) != 1:
                continue
            if any(self._seconds(node) > _FREE for node in members[leaf]):
                continue
            (other,) = near.pop(leaf)
            near[other].discard(leaf)
            members[other] += members.pop(leaf)
            self.join(leaf, other)
            waiting.append(other)

    def _seconds(self, node: int) -> float:
        return float(self.nodes[node]["fpgaLatency"]) + float(self.nodes[node]["cpuLatency"])


def _order(groups: set[Any], arrows: set[tuple[Any, Any]]) -> list[Any]:
    """The groups in order of the arrows; without those on a cycle or after one."""
    after, missing = defaultdict(list), dict.fromkeys(groups, 0)
    for first, second in arrows:
        after[first].append(second)
        missing[second] += 1
    order = [group for group, count in missing.items() if not count]
    for group in order:
        for later in after[group]:
            missing[later] -= 1
            if not missing[later]:
                order.append(later)
    return order


def read(graph: dict[str, Any]) -> tuple[Dag, list[list[int]]]:
    """The graph of groups to split, and the nodes of each group."""
    groups = _Groups(graph)
    while len(_order({*groups.members()}, groups.arrows())) < len(groups.members()):
        import networkx as nx

        for cycle in nx.strongly_connected_components(nx.DiGraph([*groups.arrows()])):
            first, *rest = cycle
            for other in rest:
                groups.join(other, first)
    groups.join_leaves()
    members, arrows = groups.members(), groups.arrows()
    order = _order({*members}, arrows)
    number = {group: index for index, group in enumerate(order)}
    before: list[set[int]] = [set() for _ in order]
    for first, second in arrows:
        before[number[second]].add(number[first])
    nodes = [[groups.nodes[node] for node in members[group]] for group in order]
    dag = Dag(
        before=tuple(map(frozenset, before)),
        nets=_nets(graph, {node: number[groups.group(node)] for node in groups.nodes}),
        devices=(
            Device(
                count=graph["maxFPGAs"],
                seconds=tuple(
                    sum(node["fpgaLatency"] for node in group)
                    if all(node["supportedOnFpga"] for node in group)
                    else float("inf")
                    for group in nodes
                ),
                limit=graph["maxSizePerFPGA"],
            ),
            Device(
                count=graph["maxCPUs"],
                seconds=tuple(sum(node["cpuLatency"] for node in group) for group in nodes),
                pays=False,
            ),
        ),
        nbytes=tuple(sum(node.get("size", 0.0) for node in group) for group in nodes),
    )
    return dag, [members[group] for group in order]


def _nets(graph: dict[str, Any], number: dict[int, int]) -> tuple[Net, ...]:
    """Each node with those that read it; nets of the same groups are one."""
    cost: dict[int, float] = {}
    units: dict[int, set[int]] = defaultdict(set)
    for edge in graph["edges"]:
        source = edge["sourceId"]
        cost[source] = edge["cost"]
        units[source] |= {number[source], number[edge["destId"]]}
    seconds: dict[frozenset[int], float] = defaultdict(float)
    for source, together in units.items():
        seconds[frozenset(together)] += cost[source]
    return tuple(Net(units, cost) for units, cost in seconds.items() if len(units) > 1 and cost)


def load_in(graph: dict[str, Any], nodes: set[int], on_cpu: bool) -> float:
    """The load of a device from the edges of the file, for the check."""
    if on_cpu:
        return float(sum(n["cpuLatency"] for n in graph["nodes"] if n["id"] in nodes))
    sent = {
        edge["sourceId"]: edge["cost"]
        for edge in graph["edges"]
        if (edge["sourceId"] in nodes) != (edge["destId"] in nodes)
    }
    own = [node for node in graph["nodes"] if node["id"] in nodes]
    assert sum(node.get("size", 0.0) for node in own) <= graph["maxSizePerFPGA"]
    return float(sum(node["fpgaLatency"] for node in own) + sum(sent.values()))


def solved(path: Path) -> dict[str, Any]:
    """The split of a graph: its load and bound, parts, seconds without and with reading."""
    start = time.perf_counter()
    graph = json.loads(path.read_text(encoding="utf-8"))
    dag, nodes = read(graph)
    middle = time.perf_counter()
    split = split_dag(dag)
    end = time.perf_counter()
    if split is None:
        return {"graph": path.stem, "load": None}
    loads = [
        load_in(graph, {node for unit in part.units for node in nodes[unit]}, part.device == 1)
        for part in split.parts
    ]
    return {
        "graph": f"{path.parent.name}/{path.stem}",
        "load": max(loads),
        "bound": split.bound,
        "parts": len(split.parts),
        "solve_s": round(end - middle, 4),
        "seconds": round(end - start, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    known = {}
    if (DATA / "optima.csv").exists():
        with (DATA / "optima.csv").open(encoding="utf-8", newline="") as lines:
            known = {row["graph"]: row for row in csv.DictReader(lines)}
    print(
        f"{'':32s} {'load':>9s} {'bound':>9s} {'optimum':>9s} {'solve s':>8s} {'with read':>9s} paper s"
    )
    table = []
    for path in asked.graphs or sorted(DATA.glob("*/*.json")):
        row = solved(path)
        row |= {"optimum": None, "dp_seconds": None, **known.get(row["graph"], {})}
        table.append(row)
        print(
            f"{row['graph']:32s} {row['load']:9.4f} {row['bound']:9.4f} {row['optimum'] or '-':>9s} "
            f"{row['solve_s']:8.3f} {row['seconds']:9.3f} {row['dp_seconds'] or '-'}",
            flush=True,
        )
    if asked.out is not None:
        from provenance import write_results

        write_results(asked, rows=table)


if __name__ == "__main__":
    main()
