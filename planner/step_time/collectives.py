"""Time of collectives by topology: rings and trees over the fast links of nodes and the network between them.

A group of ``ranks`` has ``per_node`` of them in each node. A ring that crosses nodes leaves each by as many network
cards as it has ranks there, so one step moves at the lesser of a device's links and ``per_node`` network cards, as
NCCL's rings do. Rings: Patarasu and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002; trees: Sanders et al. 2009,
doi:10.1016/j.parco.2009.09.001. Sizes are bytes, rates bytes a second, times seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.quantities import Quantity, smallest


@dataclass(frozen=True, slots=True)
class Links:
    """What joins devices. Rates are of one device in one direction, with what is reached of them."""

    per_node: int
    intra: float
    inter: float | None
    """``None``: nothing joins nodes."""
    latency: float
    """Seconds of one step of a collective."""


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that exchange data, ``stride`` apart in the order in which devices are numbered."""

    ranks: int
    stride: int
    links: Links

    @property
    def per_node(self) -> int:
        """Ranks of the group in one node."""
        return max(1, min(self.ranks, self.links.per_node // self.stride))

    @property
    def nodes(self) -> int:
        """Nodes that it spans."""
        return -(-self.ranks // self.per_node)

    @property
    def bandwidth(self) -> float:
        """Of a ring, a rank and direction."""
        if self.nodes == 1:
            return self.links.intra
        if self.links.inter is None:
            raise ValueError("a group that spans nodes needs a network between them")
        return min(self.links.intra, self.per_node * self.links.inter)


def ring_pass(group: Group, size: Quantity) -> Quantity:
    """An all-gather to ``size`` bytes a rank, or a reduce-scatter of as many: ``(n − 1)/n`` of it passes each rank."""
    if group.ranks == 1:
        return 0.0
    steps = group.ranks - 1
    return steps / group.ranks * size / group.bandwidth + _ring_latency(group)


def _ring_latency(group: Group) -> float:
    # Rings of many nodes are pipelined in chunks: what is paid once is the way round, a step a rank in the node and a
    # step a node.
    return (group.per_node - 1 + group.nodes - 1) * group.links.latency


def all_reduce(group: Group, size: Quantity) -> Quantity:
    """A sum over all ranks of ``size`` bytes, by the faster of a ring and a tree."""
    if group.ranks == 1:
        return 0.0
    ring = 2 * ring_pass(group, size)
    tree = 2 * size / group.bandwidth + 2 * math.ceil(math.log2(group.ranks)) * group.links.latency
    return smallest(ring, tree)


def all_to_all(group: Group, size: Quantity, chosen: Quantity = 1) -> Quantity:
    """Every rank sends ``size`` bytes in equal parts to all.

    ``chosen``: copies of each row among them. What goes to several experts of one rank is sent once, and what goes to
    several ranks of one node crosses the network once and is spread within the node, as DeepEP and HybridEP do: of
    ``k`` copies over ``N`` ranks or nodes ``N (1 − (1 − 1/N)ᵏ)`` remain. All send at once, so that the latency is that
    of a tree.
    """
    if group.ranks == 1:
        return 0.0
    nodes, links = group.nodes, group.links
    met = group.ranks * (1 - (1 - 1 / group.ranks) ** chosen)
    within = (group.per_node - 1) / group.per_node * size / chosen * met / links.intra
    time = within + math.ceil(math.log2(group.ranks)) * links.latency
    if nodes > 1:
        if links.inter is None:
            raise ValueError("a group that spans nodes needs a network between them")
        reached = nodes * (1 - (1 - 1 / nodes) ** chosen)
        time = time + size / chosen * reached * (nodes - 1) / nodes / links.inter
    return time


def send(group: Group, size: Quantity) -> Quantity:
    """From each rank to the next of a group, all at once: the slowest hop decides."""
    if group.ranks == 1:
        return 0.0
    rate = group.links.inter if group.nodes > 1 else group.links.intra
    if rate is None:
        raise ValueError("a group that spans nodes needs a network between them")
    return size / rate + group.links.latency
