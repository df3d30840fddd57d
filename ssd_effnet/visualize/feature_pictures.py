"""Draws the pictures of the feature page."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from data_kaist.structures import DetectionTable
from data_kaist.transforms import Sample
from ssd_effnet.drawing import Marking, as_rgb, beside, draw, with_caption
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.visualize.features import AnchorMatches, Evidence, FeatureMap, Seen
from ssd_effnet.visualize.heatmaps import fitted, grid, heat, labelled, over, scale_bar, stacked

_CELL = 300  # width of one map
_WIDE = 640  # width of a picture that stands alone
_SHOWN_SCORE = 0.3
LISTED = 12
"""Detections, the surest ones, that are drawn together and told one by one."""
_STRONGEST = 4
_IN_A_ROW = 4
# Okabe and Ito's, as in the drawing module; a level beyond the last begins anew
_LEVEL_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((213, 94, 0), (204, 121, 167), (0, 114, 178), (255, 255, 255)),
)


def background_of(sample: Sample, part: str = "") -> np.ndarray:
    """Background of a heat map: the visible image, or LWIR for the LWIR stream."""
    picture = sample.lwir if sample.visible is None or part.startswith("lwir") else sample.visible
    assert picture is not None
    return as_rgb(picture)


def _truth(sample: Sample) -> list[Marking]:
    return [
        Marking("ignored", sample.boxes_xyxy[sample.ignore]),
        Marking("truth", sample.boxes_xyxy[~sample.ignore]),
    ]


def image_picture(sample: Sample, detections: DetectionTable, truth: bool) -> np.ndarray:
    """The input with its known objects and the numbered, higher-scoring detections."""
    listed = np.arange(min(LISTED, len(detections)))
    shown = listed[(detections.scores[listed] >= _SHOWN_SCORE) | (listed == 0)][::-1]  # the surest is drawn last
    of_shown = detections.rows(shown)
    texts = [f"#{row + 1} {text}" for row, text in zip(shown, of_shown.texts(), strict=True)]
    markings = [*(_truth(sample) if truth else []), Marking("detection", of_shown.boxes_xyxy, texts)]
    pair = [as_rgb(x) for x in (sample.visible, sample.lwir) if x is not None]
    zoom = max(1.0, _WIDE / pair[0].shape[1])
    drawn = beside([draw(image, markings, zoom=zoom) for image in pair])
    (height, width), (h, w) = sample.original_size, sample.size
    caption = f"{sample.name}: {width}x{height} pixels, entering as {w}x{h}. #1 is the surest detection."
    kinds = [m.kind for m in markings if len(m.boxes_xyxy)]
    return with_caption(labelled(drawn, [caption]), "", kinds)


def _map_words(m: FeatureMap) -> str:
    height, width = m.size
    return f"{m.part} {m.level.name}: {m.level.channels} channels, {height}x{width}, stride {m.level.stride}"


def _energy_cell(m: FeatureMap, background: np.ndarray) -> np.ndarray:
    energy = m.energy()
    picture = over(background, heat(energy, (background.shape[0], background.shape[1])))
    return labelled(picture, [_map_words(m), f"mean |value| {_range(energy)}"])


def levels_picture(seen: Seen, sample: Sample) -> np.ndarray:
    """Mean energy of each map: rows are levels, columns parts, extra levels below."""
    small = {part: fitted(background_of(sample, part), _CELL) for part in seen.parts}
    made = {part: [m for m in seen.of_part(part) if m.handed_on_from is None] for part in seen.parts}
    known: set[str] = set()
    columns: list[str] = []
    adding: list[str] = []
    for part in seen.parts:
        new = {m.level.name for m in made[part]}
        (adding if known and not new & known else columns).append(part)
        known |= new
    names = list(dict.fromkeys(m.level.name for part in columns for m in seen.of_part(part)))
    rows: list[list[np.ndarray | None]] = []
    for name in names:
        row: list[np.ndarray | None] = []
        for part in columns:
            m = next((m for m in seen.of_part(part) if m.level.name == name), None)
            if m is not None and m.handed_on_from is not None:
                blank = np.full((small[part].shape[0] // 3, _CELL, 3), 235, np.uint8)
                row.append(labelled(blank, [f"{part} {name}: as the {m.handed_on_from} made it"]))
            else:
                row.append(None if m is None else _energy_cell(m, small[part]))
        rows.append(row)
    handed_on = []
    for part in adding:
        cells = [_energy_cell(m, small[part]) for m in made[part]]
        rows += [list(cells[i : i + _IN_A_ROW]) for i in range(0, len(cells), _IN_A_ROW)]
        if old := [m for m in seen.of_part(part) if m.handed_on_from is not None]:
            named = ", ".join(f"{m.level.name} as the {m.handed_on_from} made it" for m in old)
            handed_on.append(f"The {part} hand{'' if part == 'extras' else 's'} on {named}.")
    picture = grid(rows)
    words = (
        "Energy: the mean over channels of the absolute value, enlarged over the image, each position one rectangle. "
        "Each map has its own scale, stated above it. Rows are levels, columns the parts in the order of the image; "
        "levels that a part adds stand below."
    )
    strip = np.zeros((0, max(picture.shape[1], _WIDE), 3), np.uint8)
    return stacked([labelled(strip, [words, *handed_on]), scale_bar(_WIDE), picture])


def channels_picture(maps: Sequence[FeatureMap], sample: Sample) -> np.ndarray:
    """One row per map of a part: its energy and its most varying channels."""
    small = fitted(background_of(sample, maps[0].part), _CELL)
    rows: list[list[np.ndarray | None]] = []
    for m in maps:
        row: list[np.ndarray | None] = [_energy_cell(m, small)]
        values = m.values
        for channel in m.liveliest(_STRONGEST):
            picture = heat(values[channel], (small.shape[0], small.shape[1]))
            row.append(labelled(picture, [f"channel {channel} of {m.level.name}", _range(values[channel])]))
        rows.append(row)
    picture = grid(rows)
    words = (
        "Left the energy over the image, then the channels with the largest standard deviation over the image, each "
        "with its own scale from its least to its largest value."
    )
    return stacked(
        [labelled(np.zeros((0, max(picture.shape[1], _WIDE), 3), np.uint8), [words]), scale_bar(_WIDE), picture]
    )


def fusion_picture(neck: GraphNeck) -> np.ndarray:
    """Bars of the learned fusion weights of each node."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = neck.fusion_weights()
    level_of = dict(zip(neck.topology.input_names, neck.levels_in, strict=True))
    level_of |= {node.name: neck.levels_in[node.level] for node in neck.topology.nodes}
    bars = [
        (node, source, weight, i == 0)
        for node, inputs in table.items()
        for i, (source, weight) in enumerate(inputs.items())
    ]
    figure = Figure(figsize=(8, 0.9 + 0.26 * len(bars) + 0.1 * len(table)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    y, places, labels = 0.0, [], []
    order = {node: i for i, node in enumerate(table)}
    for node, source, weight, first in bars:
        y += 1.4 if first else 1.0
        colour = np.array(_LEVEL_COLOURS[order[node] % 2 * 5 + 1]) / 255
        axes.barh(y, weight, height=0.8, color=colour)
        axes.text(max(weight, 0), y, f" {weight:.3f}", va="center", fontsize=9)
        places.append(y)
        to = f"{node} ({level_of[node.rpartition('.')[2]].name})  " if first else ""
        labels.append(f"{to}<- {source} ({level_of[source].name})")
    axes.set_yticks(places, labels, fontsize=9)
    axes.set_ylim(y + 1, 0.4)  # the first node on top
    axes.axvline(0, color="black", linewidth=0.8)
    least, most = min(0.0, *(b[2] for b in bars)), max(b[2] for b in bars)
    axes.set_xlim(least * 1.15, max(most, 0.1) * 1.15)
    axes.set_xlabel("what the node multiplies this input by")
    axes.set_title("node (its level) <- input (its level)", fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def anchors_picture(seen: Seen, matches: AnchorMatches, sample: Sample) -> np.ndarray:
    """The whole frame, the counts, then each object with its positive anchors by level."""
    background, levels = background_of(sample), [m.level for m in seen.head_maps]
    ignored = sample.boxes_xyxy[sample.ignore]
    numbers = [f"{i}" for i in range(1, len(matches.boxes_xyxy) + 1)]
    markings = [Marking("ignored", ignored), Marking("truth", matches.boxes_xyxy, numbers)]
    frame = draw(background, markings, zoom=max(1.0, _WIDE / background.shape[1]))
    positive = int((matches.object_of_anchor >= 0).sum())
    least = matches.iou_threshold
    rule = "by the loss's own rule" if least is None else f"IoU from {least:g}, and the best one of each object"
    words = (
        f"{positive} of {len(matches.anchors_xyxy):,} anchors have an object ({rule}). "
        f"{int(matches.ignored.sum())} are ignored."
    )
    kinds = ["truth", *(["ignored"] if len(ignored) else [])]
    parts = [with_caption(labelled(frame, [words]), "", kinds), _counts_picture(seen, matches)]
    cells: list[np.ndarray | None] = []
    for row, box in enumerate(matches.boxes_xyxy):
        own = matches.of_object(row)
        cell = _object_cell(background, box, matches.anchors_xyxy[own], matches.level_of_anchor[own])
        here = ", ".join(f"{levels[k].name} {n}" for k, n in enumerate(matches.counts[row]) if n)
        best = f"best IoU {matches.best_iou[row]:.2f}"
        if least is not None and matches.best_iou[row] < least:
            best += f", below {least:g}"
        size = f"object {row + 1}, {box[2] - box[0]:.0f}x{box[3] - box[1]:.0f} pixels"
        cells.append(labelled(cell, [size, f"{best}; {here or 'no anchor'}"]))
    if cells:
        parts.append(grid([cells[i : i + _IN_A_ROW] for i in range(0, len(cells), _IN_A_ROW)]))
    return stacked(parts)


def _object_cell(background: np.ndarray, box: np.ndarray, anchors: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """An object enlarged, with its anchors in the colour of their level."""
    around = np.concatenate((box[None], anchors))
    x1, y1 = np.floor(around[:, :2].min(axis=0)).astype(int) - 4
    x2, y2 = np.ceil(around[:, 2:].max(axis=0)).astype(int) + 4
    height, width = background.shape[:2]
    above, below, before, behind = (int(max(m, 0)) for m in (-y1, y2 - height, -x1, x2 - width))
    padded = np.pad(background, ((above, below), (before, behind), (0, 0)), constant_values=60)
    left, top = x1 + before, y1 + above
    part = padded[top : top + y2 - y1, left : left + x2 - x1]
    zoom = _CELL / max(part.shape[:2])
    canvas = draw(part, [Marking("truth", box[None] - [x1, y1, x1, y1])], zoom=zoom)
    for anchor, level in sorted(zip(anchors, levels, strict=True), key=lambda pair: -pair[1]):
        a, b, c, d = (int(v) for v in np.rint((anchor - [x1, y1, x1, y1]) * zoom))
        cv2.rectangle(canvas, (a, b), (c, d), _LEVEL_COLOURS[int(level) % len(_LEVEL_COLOURS)], 1, cv2.LINE_AA)
    framed = np.full((_CELL, _CELL, 3), 255, np.uint8)
    framed[: canvas.shape[0], : canvas.shape[1]] = canvas[:_CELL, :_CELL]
    return framed


def _counts_picture(seen: Seen, matches: AnchorMatches) -> np.ndarray:
    """Positive anchors by object (rows) and level (columns)."""
    maps, anchors = seen.head_maps, matches.anchors_xyxy
    heights = anchors[:, 3] - anchors[:, 1]
    head = ["", *(m.level.name for m in maps), "all"]
    spans = ["anchor height"]
    for k in range(len(maps)):
        own = heights[matches.level_of_anchor == k]
        spans.append(f"{own.min():.0f}-{own.max():.0f}")
    rows = [head, [*spans, ""]]
    for i, counts in enumerate(matches.counts):
        rows.append([f"object {i + 1}", *(str(n) if n else "-" for n in counts), str(counts.sum())])
    if matches.ignored.any():
        rows.append(["ignored", *(str(n) if n else "-" for n in matches.ignored_counts), str(matches.ignored.sum())])
    first, wide, line = 110, 84, 20
    canvas = np.full((line * len(rows) + 8, first + wide * (len(head) - 1), 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, text in enumerate(row):
            x = 3 if c == 0 else first + wide * (c - 1)
            if r == 0 and 0 < c <= len(maps):
                colour = _LEVEL_COLOURS[(c - 1) % len(_LEVEL_COLOURS)]
                cv2.rectangle(canvas, (x, 5), (x + 11, 16), colour, -1)
                cv2.rectangle(canvas, (x, 5), (x + 11, 16), (0, 0, 0), 1)
                x += 15
            cv2.putText(
                canvas,
                text[: 10 if c else 14],
                (x, line * r + 15),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.42,
                (0, 0, 0),
                1,
                cv2.LINE_AA,
            )
    return canvas


def detection_picture(
    seen: Seen, chosen: DetectionTable, used: Sequence[Evidence], sample: Sample, truth: bool
) -> np.ndarray:
    """The detection with its anchor, Grad-CAM, then its evidence in each map."""
    background = background_of(sample)
    _, place, (cx, cy, w, h) = seen.anchor_of(chosen)
    level = seen.head_maps[place]
    width = 2 * _CELL
    zoom = width / background.shape[1]
    box = Marking("detection", chosen.boxes_xyxy, chosen.texts())
    big = fitted(background, width)

    def boxed(picture: np.ndarray, scale: float) -> np.ndarray:
        return draw(picture, [Marking(box.kind, box.boxes_xyxy * scale, box.texts)])

    plain = draw(background, [*(_truth(sample) if truth else []), box], zoom=zoom)
    corners = np.rint(np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * zoom).astype(int)
    cv2.rectangle(plain, tuple(map(int, corners[:2])), tuple(map(int, corners[2:])), (240, 228, 66), 1, cv2.LINE_AA)
    words = [
        f"score {chosen.scores[0]:.3f}, from the level {level.level.name} (stride {level.level.stride})",
        f"anchor of {w:.0f}x{h:.0f} pixels, width x height, thin yellow line",
    ]
    first: list[np.ndarray | None] = [labelled(plain, words)]
    of_level = next((u for u in used if u.map.tensor is level.tensor), None)
    if of_level is not None:
        size = (big.shape[0], big.shape[1])
        cam = boxed(over(big, heat(of_level.grad_cam, size, low=0)), zoom)
        said = _range(of_level.grad_cam, low=0) if of_level.grad_cam.any() else "nowhere above 0; see the maps below"
        first.append(labelled(cam, [f"Grad-CAM at {_map_words(of_level.map)}", said]))
    rows: list[list[np.ndarray | None]] = []
    small = fitted(background, _CELL)
    for part in dict.fromkeys(u.map.part for u in used):
        row: list[np.ndarray | None] = []
        for u in used:
            if u.map.part != part:
                continue
            picture = boxed(over(small, heat(u.at_place, (small.shape[0], small.shape[1]), low=0)), zoom / 2)
            row.append(labelled(picture, [_map_words(u.map), f"gradient x value {_range(u.at_place, low=0)}"]))
        rows += [row[i : i + _IN_A_ROW] for i in range(0, len(row), _IN_A_ROW)]
    lower = grid(rows) if rows else np.zeros((0, 1, 3), np.uint8)
    upper = grid([first])
    most = max(upper.shape[1], lower.shape[1], _WIDE)
    text = [
        "Grad-CAM (Selvaraju et al. 2017) of the logit of this score: channels weighted by their mean gradient, so "
        "that it lights up wherever the map holds what made the score, also at other objects or at the border, where "
        "this anchor never looked.",
    ]
    more = [
        "Below: gradient x value at each position (HiResCAM), of every map on which the score depends: what this very "
        "anchor used. Only what speaks for the class is shown; 0 is darkest, each map has its own scale.",
    ]
    nothing = np.zeros((0, most, 3), np.uint8)
    return stacked([labelled(nothing, text), scale_bar(_WIDE, "0"), upper, labelled(nothing, more), lower])


def _range(values: np.ndarray, low: float | None = None) -> str:
    return f"{float(values.min()) if low is None else low:.3g} .. {float(values.max()):.3g}"
