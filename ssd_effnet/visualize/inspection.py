"""Prints a data set's objects by split, daytime and occlusion. It also writes a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from data_kaist.annotations import doubt_of_boxes, other_labels, training_ignore
from data_kaist.classes import PEOPLE, Classes
from data_kaist.dataset import DetectionDataset, doubts_of, read_pair
from data_kaist.errors import DataError, EmptySplitError, ImageError, SplitError
from data_kaist.images import Reading
from data_kaist.layouts import DataSource, Frame, Modality, Skipped, spread
from data_kaist.splits import STUDY_VALIDATION
from data_kaist.statistics import channel_statistics, count_objects, height_quantiles
from data_kaist.transforms import Compose
from ssd_effnet.build import build_classes
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.drawing import Marking, beside, draw
from ssd_effnet.evaluation.average_precision import AP_NAMES
from ssd_effnet.visualize.anchor_coverage import COVERED, anchor_coverage, cover, fit_anchors, write_fitted
from ssd_effnet.visualize.panels import Panel, save_panels

Kind = Literal["kaist", "coco"]

KAIST_SPLITS = ("train-all-02", "test-all-20", STUDY_VALIDATION)


def inspect(
    root: Path,
    *,
    kind: Kind | None = None,
    splits: list[str] | None = None,
    annotations: str = "xml",
    images: str = "",
    modality: Modality | None = None,
    sheet: Path | None = None,
    pictures: int = 8,
    stats: bool = False,
    on_bad_frame: Literal["stop", "skip"] = "stop",
    reading: Reading = Reading(orientation="ignore"),  # noqa: B008 - frozen
    anchors: Sequence[str] | None = None,
) -> None:
    """Print tables of a data set and write a sheet of pictures.

    Arguments are the options of ``ssd-effnet inspect``, where None is the default; ``reading`` is how image files
    become pixels.
    """
    experiment = load_experiment(anchors[0], anchors[1:]) if anchors else None
    classes = build_classes(experiment) if experiment else PEOPLE
    least = experiment.data.min_height if experiment else 12
    root, kind, named = _what(root, kind or ("kaist" if annotations != "xml" and root.is_dir() else None), splits)
    if kind == "coco" and annotations != "xml":
        raise SplitError(f"{root}: --annotations {annotations} is of KAIST, not of a COCO file")
    source = DataSource(kind, root, images=images, reading=reading, classes=classes)
    source = source.annotated(annotations) if kind == "kaist" else source
    if sheet and sheet.suffix not in (".png", ".jpg"):
        raise ImageError(f"{sheet}: a sheet's name ends in .png or .jpg")
    console = Console(markup=False, emoji=False, highlight=False)  # a bracket in a file's name is no markup

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, soft_wrap=True)

    def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        say(title, "bold")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for column in ("", *columns):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table, "")

    def left_out(split: str, skipped: Skipped) -> None:
        for _, reason in skipped:
            say(f"skipped: {reason}", "yellow")
        if skipped:
            say(f"{split}: bad frames skipped: {len(skipped):,}", "yellow")

    by_split: dict[str, list[Frame]] = {}
    for split in named:
        skipped: Skipped = []
        try:
            frames = source.frames(
                split, modality=modality or "any", skipped=skipped if on_bad_frame == "skip" else None
            )
        except EmptySplitError:
            # A part of KAIST is worth a look as well: of the three default splits some may be empty.
            if splits:
                raise
            say(f"{split}: no frames here", "yellow")
            continue
        by_split[split] = frames
        left_out(split, skipped)
        if kind == "coco" and not any(frame.visible or frame.lwir for frame in frames):
            try:
                source.frames(split)
            except DataError as error:  # counted without its images, which are named
                say(str(error), "yellow")
    if not by_split:
        raise SplitError(f"{root}: none of the splits {', '.join(named)} has any frame")
    for split, frames in by_split.items():
        columns = ("frames", "with objects", "objects", ", ".join(classes.names), "ignore regions")
        rows = [(r.group, *map("{:,}".format, r.counts)) for r in count_objects(frames, least, classes)]
        show(split, columns, rows)
        of_frames = [frame.annotations for frame in frames]
        say(f"{split}: annotations: {source.annotations_of(split, str(modality))}")
        if others := other_labels(of_frames, classes):
            say(f"{split}: not {' or '.join(classes.names)}: {others}")
        if doubt := doubt_of_boxes(of_frames, least, classes):
            say(f"{split}: {doubt}", "yellow")
        if quantiles := height_quantiles(frames, classes):
            shares = ", ".join(f"{share} % below {height:.0f}" for share, height in quantiles.items())
            say(f"{split}: heights in pixels: {shares}")
        console.print()
    if experiment and anchors:
        _show_anchors(experiment, anchors[0], by_split, say, show)
    what = ", ".join((f"not {' or '.join(classes.names)}", "flagged", f"lower than {least:g} pixels"))
    say(f"Ignore regions, in training: {what} or over the border.\n")
    shown = [frame for frames in by_split.values() for frame in frames]
    has_images = any(frame.visible or frame.lwir for frame in shown)
    sheet = (sheet or (Path("sheet.png") if has_images else None)) if pictures > 0 else None
    if not (stats or sheet):
        return
    modality = modality or _modality(root, shown)
    for split, frames in by_split.items() if stats else ():
        readable = DetectionDataset(frames, modality, Compose(()), on_bad_frame=on_bad_frame)
        left_out(split, readable.skipped)
        channels = channel_statistics(readable.frames, modality)
        rows = [(name, *map("{:.4f}".format, of)) for name, of in (("mean", channels.mean), ("std", channels.std))]
        show(f"{split}: channels over {len(readable.frames):,} frames, images in 0..1", channels.channels, rows)
    if sheet:
        _write_sheet(sheet, shown, modality, pictures, classes, least, skip=on_bad_frame == "skip")
        say(f"sheet of pictures: {sheet}")
    for split, frames in by_split.items():
        for sentence in doubts_of(frames).values():
            say(f"{split}: {sentence}", "yellow")


def _show_anchors(
    e: ExperimentConfig,
    base: str,
    by_split: Mapping[str, Sequence[Frame]],
    say: Callable[..., None],
    show: Callable[[str, Sequence[str], Iterable[Sequence[str]]], None],
) -> None:
    """Print how an experiment's anchors cover each split. Write anchors fitted to the training split, else first."""
    of_splits = {split: anchor_coverage(e, frames) for split, frames in by_split.items()}
    for split, coverage in of_splits.items():
        if coverage is None:
            say(f"{split}: no objects for anchors of {e.name}", "yellow")
            continue
        least = f"IoU >= {COVERED:g}, %"
        show(f"{split}: best anchors of {e.name}", ("objects", "mean IoU", least), coverage.rows())
        figures = [(f"with {name}", *map("{:.1f}".format, of.values())) for name, of in coverage.bounds.items()]
        show(f"{split}: by matching, box code and NMS, with the IoU as score", AP_NAMES, figures)
    split = next((name for name in of_splits if "train" in name), next(iter(of_splits)))
    coverage = of_splits[split]
    if coverage is None:
        return
    rows = []
    for levels, fit in enumerate(fits := fit_anchors(e, coverage), start=1):
        shapes = (", ".join(f"{value:.3g}" for value in of.tolist()) for of in (fit.ratios, fit.sizes))
        rows.append((f"{levels}", *cover(fit.best_iou), *shapes))
    show(f"{split}: anchors fitted, by levels from the finest", ("mean IoU", least, "ratios", "sizes"), rows)
    path = Path(f"{e.name}_anchors.yaml")
    write_fitted(path, base, e, fits[-1])
    say(f"experiment with these sizes and ratios: {path}\n")


def _what(root: Path, kind: Kind | None, splits: list[str] | None) -> tuple[Path, Kind, Sequence[str]]:
    """Root folder, kind and splits, where the command line leaves them open."""
    if not root.exists():
        raise SplitError(f"{root}: no such file or folder")
    if root.is_file():
        folder = root.parent.parent if root.parent.name == "annotations" else root.parent  # COCO's and CVAT's
        return folder, kind or "coco", splits or [root.relative_to(folder).as_posix()]
    found = sorted(root.glob("*.json")) or sorted(root.glob("*/*.json"))
    instances = [path for path in found if path.name.startswith("instances_")]  # of COCO's own files
    files = [path.relative_to(root).as_posix() for path in instances or found]
    is_kaist = any(root.glob("annotations*/set??")) or any(root.glob("*annotations*/set??_V???_I*"))
    kind = kind or ("coco" if files and not is_kaist else "kaist")
    if kind == "kaist":
        if not (is_kaist or any(root.glob("annotations*")) or (root / "images").is_dir()):
            raise SplitError(f"{root}: no data set there; looked for images/, annotations-xml/, *.json and */*.json")
        return root, kind, splits or KAIST_SPLITS
    if not (splits or files):
        raise SplitError(f"{root}: no COCO file there; looked for *.json and */*.json")
    return root, kind, splits or files


def _modality(root: Path, frames: Sequence[Frame]) -> Modality:
    """The images that the first frames have."""
    if all(frame.visible and frame.lwir for frame in frames[:100]):
        return "early"
    if any(frame.visible for frame in frames[:100]):
        return "visible"
    if any(frame.lwir for frame in frames[:100]):
        return "lwir"
    raise ImageError(f"{root}: there are annotations only, and --stats and --sheet need images")


def _write_sheet(
    path: Path, frames: Sequence[Frame], modality: Modality, number: int, classes: Classes, least: float, *, skip: bool
) -> None:
    """Write pictures spread evenly over the frames with objects. If too few have any, all frames are used."""
    cells = []
    for frame in (frames[place] for place in spread(frames, number)):
        try:
            images = [image for image in read_pair(frame, modality) if image is not None]
        except ImageError:
            if not skip:
                raise
            continue
        annotations, ignore = frame.annotations, training_ignore(frame.annotations, least, classes)
        markings = [
            Marking("truth", annotations.boxes_xyxy[~ignore], [f"{h:.0f}" for h in annotations.height[~ignore]]),
            Marking("ignored", annotations.boxes_xyxy[ignore], [str(label) for label in annotations.labels[ignore]]),
        ]
        time = f", {annotations.daytime}" if annotations.daytime else ""
        height, width = annotations.size
        words = f"{frame.name}{time}, {width}x{height}"
        cells.append(Panel([words], beside([draw(image, markings) for image in images])))
    if not cells:
        raise ImageError("none of the pictures chosen for the sheet can be read")
    rows = [cells[i : i + 2] for i in range(0, len(cells), 2)]
    save_panels(path, rows, kinds=("truth", "ignored"), width=6.4, of_class=" or ".join(classes.names))
