"""Draws the pictures of the feature page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_kaist.structures import DetectionTable
from data_kaist.transforms import Sample
from ssd_effnet.drawing import KINDS, Marking, as_rgb, beside, draw, with_caption
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.visualize.features import AnchorMatches, Evidence, FeatureMap, Seen
from ssd_effnet.visualize.panels import Panel, panels

_WIDE = 640  # width of a picture that stands alone
_SHOWN_SCORE = 0.3
LISTED = 12
"""Detections, the surest ones, that are drawn together and told one by one."""
_STRONGEST = 4
_IN_A_ROW = 4
_YELLOW = (240, 228, 66)
# Okabe and Ito's, as in the drawing module; a level beyond the last begins anew
_LEVEL_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), _YELLOW),
    *((213, 94, 0), (204, 121, 167), (0, 114, 178), (255, 255, 255)),
)


def level_colour(level: int) -> tuple[int, int, int]:
    """RGB of a level's anchors."""
    return _LEVEL_COLOURS[level % len(_LEVEL_COLOURS)]


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
    return with_caption(drawn, caption, [m.kind for m in markings if len(m.boxes_xyxy)])


def _map_words(m: FeatureMap) -> str:
    height, width = m.size
    return f"{m.part} {m.level.name}: {m.level.channels} channels, {height}x{width}, stride {m.level.stride}"


def _energy(m: FeatureMap, sample: Sample) -> Panel:
    energy = m.energy()
    return Panel([_map_words(m), f"mean |value| {_value_range(energy)}"], background_of(sample, m.part), energy)


def levels_picture(seen: Seen, sample: Sample) -> np.ndarray:
    """Mean energy of each map: rows are levels, columns parts; maps that a part hands on are not drawn again."""
    names = list(dict.fromkeys(m.level.name for m in seen.maps))
    rows: list[list[Panel | None]] = []
    for name in names:
        of_level = {m.part: m for m in seen.maps if m.level.name == name and m.handed_on_from is None}
        rows.append([_energy(of_level[part], sample) if part in of_level else None for part in seen.parts])
    words = (
        "Energy: the mean over channels of the absolute value, enlarged over the image, each position one rectangle. "
        "Each map has its own scale from dark to bright, stated above it. Rows are levels, columns the parts in the "
        "order of the image; a part that hands a level on as it is has no map there."
    )
    return panels(rows, [words])


def channels_picture(maps: Sequence[FeatureMap], sample: Sample) -> np.ndarray:
    """One row per map of a part: its energy and its most varying channels."""
    rows: list[list[Panel | None]] = []
    for m in maps:
        row: list[Panel | None] = [_energy(m, sample)]
        values, background = m.values, background_of(sample, m.part)
        for channel in m.liveliest(_STRONGEST):
            lines = [f"channel {channel} of {m.level.name}", _value_range(values[channel])]
            row.append(Panel(lines, background, values[channel], strength=1))
        rows.append(row)
    words = (
        "Left the energy over the image, then the channels with the largest standard deviation over the image, each "
        "with its own scale from its least to its largest value."
    )
    return panels(rows, [words])


def fusion_picture(neck: GraphNeck) -> np.ndarray:
    """Bars of the learned fusion weights of each node."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    level_of = dict(zip(neck.topology.input_names, neck.levels_in, strict=True))
    level_of |= {node.name: neck.levels_in[node.level] for node in neck.topology.nodes}
    labels, weights, colours = [], [], []
    for i, (node, inputs) in enumerate(neck.fusion_weights().items()):
        to = f"{node} ({level_of[node.rpartition('.')[2]].name})  "
        for k, (source, weight) in enumerate(inputs.items()):
            labels.append(f"{'' if k else to}<- {source} ({level_of[source].name})")
            weights.append(weight)
            colours.append(np.array(_LEVEL_COLOURS[i % 2 * 5 + 1]) / 255)
    figure = Figure(figsize=(8, 0.9 + 0.28 * len(weights)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(range(len(weights)), weights, color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    axes.set_yticks(range(len(weights)), labels, fontsize=9)
    axes.set_ylim(len(weights) - 0.4, -0.6)  # the first node on top
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel("what the node multiplies this input by")
    axes.set_title("node (its level) <- input (its level)", fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def anchors_picture(seen: Seen, matches: AnchorMatches, sample: Sample) -> np.ndarray:
    """The whole frame, then each object with its positive anchors in the colours of their levels."""
    background, levels = background_of(sample), [m.level for m in seen.head_maps]
    ignored, colour = sample.boxes_xyxy[sample.ignore], KINDS["truth"].colour
    numbers = [f"{i}" for i in range(1, len(matches.boxes_xyxy) + 1)]
    markings = [Marking("ignored", ignored), Marking("truth", matches.boxes_xyxy, numbers)]
    positive, least = int((matches.object_of_anchor >= 0).sum()), matches.iou_threshold
    rule = "by the loss's own rule" if least is None else f"IoU from {least:g}, and the best one of each object"
    words = (
        f"{positive} of {len(matches.anchors_xyxy):,} anchors have an object ({rule}). "
        f"{int(matches.ignored.sum())} are ignored."
    )
    cells: list[Panel | None] = []
    for row, box in enumerate(matches.boxes_xyxy):
        own = matches.of_object(row)
        here = ", ".join(f"{levels[k].name} {n}" for k, n in enumerate(matches.counts[row]) if n)
        best = f"best IoU {matches.best_iou[row]:.2f}"
        if least is not None and matches.best_iou[row] < least:
            best += f", below {least:g}"
        size = f"object {row + 1}, {box[2] - box[0]:.0f}x{box[3] - box[1]:.0f} pixels"
        around = np.concatenate((box[None], matches.anchors_xyxy[own]))
        corner = around[:, :2].min(axis=0) - 4
        side = (around[:, 2:].max(axis=0) - corner).max() + 4
        anchors = [(matches.anchors_xyxy[a], level_colour(int(matches.level_of_anchor[a]))) for a in own[::-1]]
        view = np.concatenate((corner, corner + side))
        lines = [size, f"{best}; {here or 'no anchor'}"]
        cells.append(Panel(lines, background, boxes=[(box, colour), *anchors], view=view))
    frame = draw(background, markings, zoom=max(1.0, _WIDE / background.shape[1]))
    frame_row: list[Panel | None] = [Panel([words], frame, columns=2)]
    rows = [frame_row, *(cells[i : i + _IN_A_ROW] for i in range(0, len(cells), _IN_A_ROW))]
    return with_caption(panels(rows), "", ["truth", *(["ignored"] if len(ignored) else [])])


def detection_picture(
    seen: Seen, chosen: DetectionTable, used: Sequence[Evidence], sample: Sample, truth: bool
) -> np.ndarray:
    """The detection with its anchor, Grad-CAM, then its evidence in each map."""
    _, place, (cx, cy, w, h) = seen.anchor_of(chosen)
    background, level = background_of(sample), seen.head_maps[place]
    box = [(chosen.boxes_xyxy[0], KINDS["detection"].colour)]
    anchor = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    lines = [
        f"score {chosen.scores[0]:.3f}, from the level {level.level.name} (stride {level.level.stride})",
        f"anchor of {w:.0f}x{h:.0f} pixels, width x height, thin yellow line",
    ]
    first = [
        Panel(lines, draw(background, _truth(sample) if truth else []), boxes=[*box, (anchor, _YELLOW)], columns=2)
    ]
    of_level = next((u for u in used if u.map.tensor is level.tensor), None)
    if of_level is not None:
        cam = of_level.grad_cam
        said = _value_range(cam, low=0) if cam.any() else "nowhere above 0; see the maps below"
        lines = [f"Grad-CAM at {_map_words(of_level.map)}", said]
        first.append(Panel(lines, background, cam, low=0, boxes=box, columns=2))
    rows: list[Sequence[Panel]] = [first]
    for part in dict.fromkeys(u.map.part for u in used):
        row = [
            Panel(
                [_map_words(u.map), f"gradient x value {_value_range(u.at_place, low=0)}"],
                *(background, u.at_place),
                low=0,
                boxes=box,
            )
            for u in used
            if u.map.part == part
        ]
        rows += [row[i : i + _IN_A_ROW] for i in range(0, len(row), _IN_A_ROW)]
    words = [
        "Grad-CAM (Selvaraju et al. 2017) of the logit of this score: channels weighted by their mean gradient, so "
        "that it lights up wherever the map holds what made the score, also at other objects or at the border, where "
        "this anchor never looked.",
        "Below: gradient x value at each position (HiResCAM), of every map on which the score depends: what this very "
        "anchor used. Only what speaks for the class is shown; 0 is darkest, each map has its own scale.",
    ]
    return panels(rows, words)


def _value_range(values: np.ndarray, low: float | None = None) -> str:
    return f"{float(values.min()) if low is None else low:.3g} .. {float(values.max()):.3g}"
