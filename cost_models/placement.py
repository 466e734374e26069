"""How many devices on how many nodes: a request -> numbers within the cluster, spread evenly."""

from __future__ import annotations

from cost_models.errors import BadValue
from cost_models.machine import Cluster

__all__ = ["place"]


def place(cluster: Cluster, num_devices: int | None, num_nodes: int | None) -> tuple[int, int, int]:
    """(num_devices, num_nodes, node_width) for a request, of which either part may be None.

    Without devices: all of the nodes. Without nodes: as few as hold the devices, or a few more if
    then all use the same number, and each eight ninths of its switch or more: of 16,384 devices in
    domains of 72, 64 in each. The devices are spread evenly, `ceil(num_devices / num_nodes)` per
    node. Raises `BadValue` for less than one of either and for more than the cluster has.
    """
    per_node = cluster.devices_per_node
    for what, unit, value, most in (
        ("devices", "devices", num_devices, per_node * cluster.max_nodes),
        ("nodes", f"nodes of {per_node} devices", num_nodes, cluster.max_nodes),
    ):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise BadValue(
                f"the number of {what} must be a whole number of at least 1, got {value!r}"
            )
        if value is not None and value > most:
            raise BadValue(
                f"{cluster.name!r} has at most {most} {unit}, but {value} {what} were asked for"
            )
    devices = num_devices if num_devices is not None else per_node * (num_nodes or 1)
    nodes = num_nodes if num_nodes is not None else _fewest(cluster, devices)
    width = -(-devices // nodes)
    _check_spread(cluster, devices, nodes, width)
    return devices, nodes, width


def _fewest(cluster: Cluster, devices: int) -> int:
    """The nodes that a number of devices takes, if the user does not say."""
    per_node = cluster.devices_per_node
    fewest = -(-devices // per_node)
    most = fewest
    if cluster.intra.fabric == "switch":
        most = min(devices * 9 // (per_node * 8), cluster.max_nodes)
    return next((nodes for nodes in range(fewest, most + 1) if devices % nodes == 0), fewest)


def _check_spread(cluster: Cluster, devices: int, nodes: int, width: int) -> None:
    """Raises `BadValue` for more devices than the nodes hold, and for nodes without a device."""
    per_node = cluster.devices_per_node
    if width > per_node:
        held, needed = nodes * per_node, -(-devices // per_node)
        what = f"{nodes} nodes of {cluster.name!r} have {held} devices"
        raise BadValue(f"{what}, but {devices} were asked for: take {needed} nodes or more")
    reached = -(-devices // width)
    if reached != nodes:
        raise BadValue(
            f"{devices} devices, {width} per node, leave some of {nodes} nodes of "
            f"{cluster.name!r} empty: take {reached} nodes"
        )
