"""Executor of neck topologies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, Literal

import torch
from torch import nn

from ssd_effnet.models.layers import activation, initialise
from ssd_effnet.models.necks.resampling import PooledLevels, Size, lateral, resampler
from ssd_effnet.models.necks.topologies import Node, Topology
from ssd_effnet.registry import CONVOLUTIONS, FUSIONS
from ssd_effnet.structures import Level


class Fusion(nn.Module):
    """Weighted sum of maps (EfficientDet, section 3.3). One scalar per input, initially 1."""

    scalars: nn.Parameter | None

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        # With one input a normalised weight is 1 and gets no gradient.
        self.register_parameter("scalars", nn.Parameter(torch.ones(num_inputs)) if num_inputs > 1 else None)

    def weighted(self, scalars: torch.Tensor) -> torch.Tensor:
        """Factors of the inputs, ``(num_inputs,)``."""
        return scalars

    def weights(self) -> torch.Tensor | None:
        """``(num_inputs,)``; None for a plain sum."""
        return None if self.scalars is None else self.weighted(self.scalars)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = self.weights()
        terms = list(maps) if weights is None else [w * x for w, x in zip(weights, maps, strict=True)]
        return sum(terms[1:], terms[0])


FUSIONS["unbounded"] = Fusion


@FUSIONS.register("sum")
class PlainSum(Fusion):
    """Sum without learned weights."""

    def __init__(self) -> None:
        super().__init__(1)


@FUSIONS.register("softmax")
class SoftmaxFusion(Fusion):
    """Weights: softmax of the scalars."""

    def weighted(self, scalars: torch.Tensor) -> torch.Tensor:
        return scalars.softmax(0)


@FUSIONS.register("fast")
class FastFusion(Fusion):
    """``ReLU(w_i) / (eps + sum_j ReLU(w_j))``. ``eps`` keeps it finite when all scalars are negative."""

    def weighted(self, scalars: torch.Tensor) -> torch.Tensor:
        positive = scalars.relu()
        return positive / (1e-4 + positive.sum())


class GlobalPoolFusion(nn.Module):
    """NAS-FPN's global-pooling cell: the first map weights the second's channels.

    ``a, b, rest -> a + sigmoid(max over positions of a) * b + rest`` (Ghiasi et al. 2019, section 3.1; the maximum as
    in the authors' code).
    """

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        first, second, *rest = maps
        return sum(rest, first + first.amax(dim=(-2, -1), keepdim=True).sigmoid() * second)


class _GraphNode(nn.Module):
    """Resample each input, fuse, convolve; ``row`` is its row in the table."""

    def __init__(self, row: Node, edges: Sequence[nn.Module], fusion: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.row = row
        self.edges = nn.ModuleList(edges)
        self.fusion = fusion
        self.after = after

    def forward(self, maps: Sequence[torch.Tensor], size: Size) -> torch.Tensor:
        fused: torch.Tensor = self.after(self.fusion([edge(x, size) for edge, x in zip(self.edges, maps, strict=True)]))
        return fused


class GraphNeck(nn.Module):
    """Neck that runs a topology on input maps.

    With the defaults it is the study's step 4 given :func:`study_fpn`; with ``upsample="transposed"`` its step 5. As in
    EfficientDet: ``channels``, ``fusion="fast"``, ``convolution="separable"``, ``activation="silu"``,
    ``upsample="nearest"``, ``extra_levels=2`` and, where its code is followed rather than its text,
    ``activation_first=True``.

    Args:
        levels_in: levels of the input maps, finest first.
        topology: the table; its ``num_levels`` counts ``levels_in`` and ``extra_levels``.
        channels: width of all output maps; None: each level keeps its own.
        upsample, downsample, fusion: entries of their registries.
        convolution: after the fusion: ``none`` or one of ``CONVOLUTIONS``.
        activation: after the convolution, or after the fusion where there is none.
        activation_first: activation, convolution, batch norm (published code of EfficientDet and NAS-FPN).
        repeats: repetitions of the graph, each with its own weights.
        project: where the width of an input map becomes ``channels`` (1x1 convolution, batch norm). ``edge``: on each
            edge that leaves it, with weights of its own (EfficientDet), unless a strided or transposed convolution on
            that edge changes the width itself. ``level``: once, before the graph (FPN, NAS-FPN).
        extra_levels: coarser levels to make from the last one first, see :class:`PooledLevels`.
        arguments: of the entries, by name.

    Attributes:
        levels: levels of the output maps, finest first.
    """

    def __init__(
        self,
        levels_in: Sequence[Level],
        topology: Topology,
        *,
        channels: int | None = None,
        upsample: str = "bilinear",
        downsample: str = "max_pool",
        fusion: str = "sum",
        convolution: str = "none",
        activation: str = "none",
        activation_first: bool = False,
        repeats: int = 1,
        project: Literal["edge", "level"] = "edge",
        extra_levels: int = 0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        levels = list(levels_in)
        if not levels or any(a.stride > b.stride for a, b in pairwise(levels)):
            raise ValueError(f"{topology.name}: levels must be given, finest first, got {levels}")
        if len(levels) + extra_levels != topology.num_levels:
            extra = f" and {extra_levels} extra" if extra_levels else ""
            raise ValueError(
                f"{topology.name}: the topology joins {topology.num_levels} levels, got {len(levels)}{extra}: "
                f"{', '.join(level.name for level in levels)}"
            )
        own = arguments or {}
        self.topology = topology

        # From the last turn back: an unused node would have parameters without a gradient.
        wanted = set(topology.outputs[: topology.num_returned])
        turns: list[set[str]] = []
        for _ in range(repeats):
            turns.insert(0, topology.needed_for(wanted))
            pairs = zip(topology.outputs, topology.input_names, strict=True)
            wanted = {output for output, entering in pairs if entering in turns[0]}

        if unread := [name for name in topology.input_names if name not in turns[0]]:
            raise ValueError(
                f"{topology.name}: with {repeats} turns its first outputs do not depend on {', '.join(unread)}"
            )
        self.extra = PooledLevels(levels[-1], extra_levels, channels) if extra_levels else None
        if self.extra is not None:
            levels += self.extra.levels
        widths = [level if channels is None else replace(level, channels=channels) for level in levels]
        self.projections = nn.ModuleList()
        if project == "level":
            for level, width in zip(levels, widths, strict=True):
                self.projections.append(lateral(level.channels, width.channels))
            levels = widths

        self.turns = nn.ModuleList()
        for needed in turns:
            maps = dict(zip(topology.input_names, levels, strict=True))
            nodes = nn.ModuleDict()
            for node in topology.nodes:
                if node.name not in needed:
                    continue
                target = maps[node.name] = widths[node.level]
                edges = [resampler(maps[s], target, upsample, downsample, own) for s in node.inputs]
                merge: nn.Module = GlobalPoolFusion()
                if node.merge == "sum":
                    merge = FUSIONS.make(fusion, own, num_inputs=len(node.inputs))
                after = _after_fusion(convolution, target.channels, activation, activation_first, own)
                nodes[node.name] = _GraphNode(node, edges, merge, after)
            self.turns.append(nodes)
            levels = widths
        self.levels = widths[: topology.num_returned]
        initialise(self)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One ``(N, channels, H, W)`` map per level of :attr:`levels`. Inputs are ``(N, C, H, W)``; sizes stay."""
        entering = list(maps)
        if self.extra is not None:
            entering += self.extra(entering[-1])
        sizes: list[Size] = [(x.shape[-2], x.shape[-1]) for x in entering]
        if self.projections:
            entering = [project(x) for project, x in zip(self.projections, entering, strict=True)]
        for nodes in self._nodes:
            known = dict(zip(self.topology.input_names, entering, strict=True))
            for node in nodes:
                known[node.row.name] = node([known[s] for s in node.row.inputs], sizes[node.row.level])
            # An output that the next turn does not read is not computed; its input map takes the place.
            entering = [known.get(name, x) for name, x in zip(self.topology.outputs, entering, strict=True)]
        return entering[: self.topology.num_returned]

    @property
    def node_names(self) -> list[str]:
        """Nodes in the order of computation. With several turns ``<turn>.<node>``, turns counted from 0."""
        of_turns = enumerate(self._nodes)
        return [f"{k}.{n.row.name}" if len(self.turns) > 1 else n.row.name for k, nodes in of_turns for n in nodes]

    def fusion_weights(self) -> dict[str, dict[str, float]]:
        """Fusion weights ``{node: {input: weight}}``, empty without learned weights."""
        table: dict[str, dict[str, float]] = {}
        for name, node in zip(self.node_names, chain(*self._nodes), strict=True):
            weights = node.fusion.weights() if isinstance(node.fusion, Fusion) else None
            if weights is not None:
                table[name] = dict(zip(node.row.inputs, weights.detach().tolist(), strict=True))
        return table

    @property
    def _nodes(self) -> list[list[_GraphNode]]:
        """Nodes of each turn, in the order of the table."""
        return [list(turn.values()) for turn in self.turns]  # type: ignore[operator]


def _after_fusion(
    kind: str, channels: int, activation_name: str, activation_first: bool, own: Mapping[str, Any]
) -> nn.Module:
    act = activation(activation_name)
    if isinstance(act, nn.ReLU | nn.ReLU6 | nn.SiLU):
        # With one input, an in-place activation would overwrite another node's map.
        act.inplace = False
    if kind == "none":
        return act
    last = "none" if activation_first else activation_name
    # batch norm follows and has a bias
    convolution: nn.Module = CONVOLUTIONS.make(
        kind, own, in_channels=channels, out_channels=channels, activation=last, bias=False
    )
    return nn.Sequential(act, convolution) if activation_first and activation_name != "none" else convolution
