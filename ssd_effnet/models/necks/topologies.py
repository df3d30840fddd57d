"""Neck topologies as tables: FPN, PANet, BiFPN, NAS-FPN ...

A topology names maps; widths, convolutions and resampling are the executor's
(:class:`ssd_effnet.models.necks.graph.GraphNeck`). Levels are counted from the finest, 0, to the coarsest; the
maps that enter are called ``in0``, ``in1`` ... . Nodes of the way down are called ``td``, nodes of the way back up
``out``, each with its level.

Sources: FPN (Lin et al. 2017), PANet (Liu et al. 2018), NAS-FPN (Ghiasi et al. 2019); fully-connected FPN, simplified
PANet and BiFPN (Tan et al. 2020, EfficientDet, section 3 and figure 2), whose form all share: each node
convolves its sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ssd_effnet.registry import TOPOLOGIES

Merge = Literal["sum", "global_pool"]


@dataclass(frozen=True)
class Node:
    """One new map of a neck.

    Attributes:
        name: unique within the topology.
        level: whose size and width the map takes; 0 is the finest.
        inputs: names of input maps or of nodes above it in the table.
        merge: ``sum`` fuses all inputs by the executor's ``fusion``. ``global_pool`` is NAS-FPN's attention: the
            first input (the coarser one) plus the second times the sigmoid of the first's global maximum, plus any
            further inputs; nothing in it is weighted.
    """

    name: str
    level: int
    inputs: tuple[str, ...]
    merge: Merge = "sum"


@dataclass(frozen=True)
class Topology:
    """Table of nodes, in order of computation.

    Attributes:
        name: shown in pictures and messages.
        num_levels: number of input maps.
        nodes: the table.
        outputs: the output node of each level, finest first; a repeated neck feeds them to its next turn.
        returned: how many of the finest ``outputs`` the last turn returns; None: all.
    """

    name: str
    num_levels: int
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    returned: int | None = None

    def __post_init__(self) -> None:
        if self.num_levels < 2:
            raise ValueError(f"{self.name}: a neck joins two levels or more, got {self.num_levels}")
        known = set(self.input_names)
        for node in self.nodes:
            where = f"{self.name}: node {node.name!r}"
            if node.name in known:
                raise ValueError(f"{where}: the name is taken")
            if not 0 <= node.level < self.num_levels:
                raise ValueError(f"{where}: level {node.level} is not one of 0 to {self.num_levels - 1}")
            if unknown := [name for name in node.inputs if name not in known]:
                raise ValueError(f"{where}: input {unknown[0]!r} is neither an entering map nor a node above it")
            if len(node.inputs) < (2 if node.merge == "global_pool" else 1):
                raise ValueError(f"{where}: {node.merge} needs more inputs than {node.inputs}")
            known.add(node.name)
        levels = {node.name: node.level for node in self.nodes}
        if [levels.get(name) for name in self.outputs] != list(range(self.num_levels)):
            raise ValueError(f"{self.name}: outputs must be one node of each level, finest first, got {self.outputs}")
        if not 1 <= self.num_returned <= self.num_levels:
            raise ValueError(f"{self.name}: {self.returned} of {self.num_levels} levels cannot be returned")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the input maps, ``in0``, ``in1`` ..., finest first."""
        return tuple(f"in{level}" for level in range(self.num_levels))

    @property
    def num_returned(self) -> int:
        """Number of output maps."""
        return self.num_levels if self.returned is None else self.returned

    def needed_for(self, outputs: Iterable[str]) -> set[str]:
        """Names of the maps that ``outputs`` depend on."""
        needed = set(outputs)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return needed


@TOPOLOGIES.register("fpn")
def fpn(num_levels: int, outputs: int | None = None) -> Topology:
    """Top-down: each level adds the one above it.

    In EfficientDet's form (section 3.1): a node convolves its sum and passes the result down.
    """
    top = num_levels - 1
    nodes = [Node(f"td{top}", top, (f"in{top}",))]
    nodes += [Node(f"td{i}", i, (f"in{i}", f"td{i + 1}")) for i in reversed(range(top))]
    return Topology("fpn", num_levels, tuple(nodes), tuple(f"td{i}" for i in range(num_levels)), outputs)


@TOPOLOGIES.register("study_fpn")
def study_fpn(num_levels: int = 5, outputs: int = 3) -> Topology:
    """The study's top-down pyramid (steps 4 and 5); returns the finest levels.

    The study goes up to level 6, returns to level 2 and takes 2, 3, 4: five inputs, three outputs.
    """
    return replace(fpn(num_levels, outputs), name="study_fpn")


@TOPOLOGIES.register("panet")
def panet(num_levels: int) -> Topology:
    """Top-down, then bottom-up (Liu et al. 2018, figure 1; EfficientDet, figure 2b)."""
    down = fpn(num_levels)
    up = [Node("out0", 0, ("td0",))]
    up += [Node(f"out{i}", i, (f"td{i}", f"out{i - 1}")) for i in range(1, num_levels)]
    return Topology("panet", num_levels, (*down.nodes, *up), tuple(node.name for node in up))


@TOPOLOGIES.register("simplified_panet")
def simplified_panet(num_levels: int) -> Topology:
    """PANet without nodes of one input (EfficientDet, section 3.2 and figure 2e)."""
    full = panet(num_levels)
    instead = {node.name: node.inputs[0] for node in full.nodes if len(node.inputs) == 1}
    nodes = tuple(
        replace(node, inputs=tuple(instead.get(name, name) for name in node.inputs))
        for node in full.nodes
        if node.name not in instead
    )
    return Topology("simplified_panet", num_levels, nodes, tuple(instead.get(name, name) for name in full.outputs))


@TOPOLOGIES.register("bifpn")
def bifpn(num_levels: int) -> Topology:
    """Simplified PANet with an edge from input to output per level. EfficientDet, figure 2f.

    For five levels: down through levels 3, 2, 1 to 0, and back up through 1, 2, 3 to 4.
    """
    base = simplified_panet(num_levels)
    nodes = tuple(
        replace(node, inputs=(f"in{node.level}", *node.inputs))
        if node.name in base.outputs and f"in{node.level}" not in node.inputs
        else node
        for node in base.nodes
    )
    return replace(base, name="bifpn", nodes=nodes)


@TOPOLOGIES.register("fully_connected")
def fully_connected(num_levels: int) -> Topology:
    """Every level to every level. EfficientDet, figure 2d, first version of the paper."""
    everything = tuple(f"in{i}" for i in range(num_levels))
    nodes = tuple(Node(f"out{i}", i, everything) for i in range(num_levels))
    return Topology("fully_connected", num_levels, nodes, tuple(node.name for node in nodes))


@TOPOLOGIES.register("nas_fpn")
def nas_fpn(num_levels: int = 5) -> Topology:
    """NAS-FPN: seven searched merging cells for P3 to P7 (Ghiasi et al. 2019, figure 6).

    Wiring and order of the inputs as in the authors' code (tensorflow/tpu, ``nasfpn.py``): the coarser input of a
    global-pooling cell is the one pooled; an input map that no cell reads is added to the output of its level.
    """
    if num_levels != 5:
        raise ValueError(f"nas_fpn: the published graph was searched for 5 levels, got {num_levels}")
    nodes = (
        Node("gp1", 1, ("in3", "in1"), merge="global_pool"),
        Node("sum1", 1, ("in1", "gp1")),
        Node("out0", 0, ("in0", "sum1")),
        Node("out1", 1, ("sum1", "out0")),
        Node("out2", 2, ("out1", "out0", "in2"), merge="global_pool"),
        Node("out4", 4, ("out2", "sum1", "in4"), merge="global_pool"),
        Node("out3", 3, ("out4", "out2"), merge="global_pool"),
    )
    return Topology("nas_fpn", num_levels, nodes, tuple(f"out{i}" for i in range(num_levels)))
