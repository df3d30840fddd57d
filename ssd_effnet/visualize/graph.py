"""Draws a graph of feature maps as SVG: one row per level, one column per step.

Callers give rows, nodes and arrows, so that a neck and a whole detector look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

_ROW = 76
_BOX_WIDTH, _BOX_HEIGHT = 78, 34
_GAP, _GAP_PER_ROW = 26, 14
_LEFT, _TOP = 190, 62
_FILL = {"input": "#dbe7f5", "node": "#f3f3f3", "attention": "#fbe3c8", "output": "#d9efd8"}


@dataclass(frozen=True)
class PictureNode:
    """A box.

    Attributes:
        name: unique; edges refer to it.
        row: 0 is drawn lowest.
        label: what is written; the name where it is None.
        kind: its colour: ``input``, ``node``, ``attention`` or ``output``.
    """

    name: str
    row: int
    label: str | None = None
    kind: str = "node"


def graph_svg(title: str, rows: Sequence[str], nodes: Sequence[PictureNode], edges: Sequence[tuple[str, str]]) -> str:
    """Draw the graph.

    A node stands one column right of the latest of those it reads, or further where its row is taken there.

    Args:
        title: written above.
        rows: label of each row, lowest first; fine levels lie low, as the papers draw pyramids.
        nodes: each after the nodes that it reads.
        edges: arrows as (from, to).

    Returns:
        An SVG document. Boxes are ``<g class="node">``, arrows ``<path class="edge">``.

    Raises:
        ValueError: for an edge from or to a node that is not there, or that points backwards in ``nodes``, a name used
            twice, an unknown kind or row.
    """
    columns = _columns(rows, nodes, edges)
    row_of = {node.name: node.row for node in nodes}
    # Steep arrows in a narrow gap cannot be told apart.
    steepest = max((abs(row_of[a] - row_of[b]) for a, b in edges if columns[b] - columns[a] == 1), default=0)
    step = _BOX_WIDTH + _GAP + _GAP_PER_ROW * steepest**2
    taken = {(node.row, columns[node.name]) for node in nodes}
    place = {node.name: (_LEFT + columns[node.name] * step, _TOP + (len(rows) - 1 - node.row) * _ROW) for node in nodes}
    width = _LEFT + max(columns.values(), default=0) * step + _BOX_WIDTH + _GAP
    height = _TOP + len(rows) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="14" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for row, label in enumerate(rows):
        y = _TOP + (len(rows) - 1 - row) * _ROW + _BOX_HEIGHT // 2
        parts.append(f'<line x1="{_LEFT - 20}" y1="{y}" x2="{width}" y2="{y}" stroke="#eee"/>')
        parts.append(f'<text class="row" x="14" y="{y + 4}">{escape(label)}</text>')
    for source, target in edges:
        between = range(columns[source] + 1, columns[target])
        if row_of[source] == row_of[target]:
            bent = any((row_of[source], column) in taken for column in between)
        else:
            bent = bool(between)
        path = _arrow(place[source], place[target], bent)
        parts.append(
            f'<path class="edge" data-from={quoteattr(source)} data-to={quoteattr(target)} d="{path}" fill="none" '
            f'stroke="#555" stroke-width="1.2" marker-end="url(#arrow)"/>'
        )
    for node in nodes:
        x, y = place[node.name]
        parts.append(
            f'<g class="node"><rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" '
            f'fill="{_FILL[node.kind]}" stroke="#555"/><text x="{x + _BOX_WIDTH // 2}" y="{y + _BOX_HEIGHT // 2 + 4}" '
            f'text-anchor="middle">{escape(node.name if node.label is None else node.label)}</text></g>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _columns(rows: Sequence[str], nodes: Sequence[PictureNode], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Column of each node: right of all that it reads, and alone in its row there."""
    order = {node.name: i for i, node in enumerate(nodes)}
    if len(order) < len(nodes):
        raise ValueError("graph picture: a node name is used twice")
    for source, target in edges:
        if source not in order or target not in order:
            raise ValueError(f"graph picture: edge {source!r} -> {target!r} joins a node that is not there")
        if order[source] >= order[target]:
            raise ValueError(f"graph picture: edge {source!r} -> {target!r} points backwards")
    columns: dict[str, int] = {}
    taken: set[tuple[int, int]] = set()
    for node in nodes:
        if not 0 <= node.row < len(rows):
            raise ValueError(f"graph picture: node {node.name!r} is in row {node.row} of {len(rows)}")
        if node.kind not in _FILL:
            raise ValueError(f"graph picture: kind {node.kind!r} is unknown; known: {', '.join(_FILL)}")
        column = max((columns[source] + 1 for source, target in edges if target == node.name), default=0)
        while (node.row, column) in taken:
            column += 1
        taken.add((node.row, column))
        columns[node.name] = column
    return columns


def _arrow(source: tuple[int, int], target: tuple[int, int], bent: bool) -> str:
    """From the right side of one box to the left side of another; ``bent`` goes round what stands between them."""
    x1, y1 = source[0] + _BOX_WIDTH, source[1] + _BOX_HEIGHT // 2
    x2, y2 = target[0], target[1] + _BOX_HEIGHT // 2
    if not bent:
        return f"M{x1} {y1}L{x2} {y2}"
    if y1 == y2:
        lift = y1 - _ROW // 2 - 8
        return f"M{x1} {y1 - 6}C{x1 + 40} {lift} {x2 - 40} {lift} {x2} {y2 - 6}"
    middle = (x1 + x2) // 2
    return f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"
