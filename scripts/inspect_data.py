#!/usr/bin/env python
"""Show what a data set holds: objects by split, daytime and occlusion, heights, and a sheet of pictures.

    python scripts/inspect_data.py data/kaist --sheet sheet.png
    python scripts/inspect_data.py data/pennfudan/train.json --stats

A root with annotations and no images is counted too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from data_kaist.annotations import training_ignore
from data_kaist.dataset import Frame, load_frames, read_pair
from data_kaist.errors import DataError, ImageError, SplitError
from data_kaist.frames import STUDY_VALIDATION
from data_kaist.loading import Modality, Skipped
from data_kaist.statistics import (
    ChannelStatistics,
    ObjectStatistics,
    channel_statistics,
    height_bins,
    object_statistics,
)
from ssd_effnet.visualize import Marking, beside, draw, save, sheet, with_caption

Kind = Literal["kaist", "coco"]

KAIST_SPLITS = ("train-all-02", "test-all-20", STUDY_VALIDATION)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if the data is bad, with one sentence on stderr."""
    args = _parser().parse_args(arguments)
    try:
        _inspect(args)
    except (DataError, OSError) as error:
        print(f"inspect_data: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="the data set's folder, or a COCO file")
    parser.add_argument("--kind", choices=("kaist", "coco"), help="default: coco if the root is or holds JSON files")
    parser.add_argument("--split", action="append", help="may be repeated; default: the study's three, or every file")
    parser.add_argument("--annotations", choices=("xml", "bbgt", "paired"), default="xml")
    parser.add_argument("--annotations-dir", type=Path, help="default: annotations-* below the root")
    parser.add_argument("--modality", choices=("visible", "lwir", "early"), help="default: whichever images are there")
    parser.add_argument("--sheet", type=Path, help="pictures with their boxes (default: sheet.png if there are images)")
    parser.add_argument("--pictures", type=int, default=8, help="on the sheet (default: 8; 0: no sheet)")
    parser.add_argument("--stats", action="store_true", help="mean and std of each channel; reads every image")
    parser.add_argument("--on-bad-frame", choices=("stop", "skip"), default="stop")
    return parser


def _inspect(args: argparse.Namespace) -> None:
    root, kind, splits = _what(args.root, args.kind, args.split)
    if args.sheet and args.sheet.suffix not in (".png", ".jpg"):
        raise ImageError(f"{args.sheet}: a sheet's name ends in .png or .jpg")
    console = Console()
    by_split: dict[str, list[Frame]] = {}
    for split in splits:
        skipped: Skipped | None = [] if args.on_bad_frame == "skip" else None
        try:
            frames = load_frames(
                kind,
                root,
                split,
                annotation_format=args.annotations,
                annotations_dir=args.annotations_dir,
                modality=args.modality,
                skipped=skipped,
            )
        except SplitError as error:
            # A part of KAIST is worth a look as well: of the three default splits some may be empty.
            if args.split or "is empty" not in str(error):
                raise
            console.print(Text(f"{split}: no frames here", style="yellow"), soft_wrap=True)
            continue
        by_split[split] = frames
        _report_skipped(console, split, skipped)
    if not by_split:
        raise SplitError(f"{root}: none of the splits {', '.join(splits)} has any frame")
    for split, frames in by_split.items():
        statistics = object_statistics(frames)
        _print(console, split, _object_table(statistics))
        _print(console, f"{split}: persons by height in pixels", _height_table(statistics))
    console.print("Ignore regions, in training: not person, flagged, lower than 12 pixels or over the border.\n")
    shown = [frame for frames in by_split.values() for frame in frames]
    has_images = any(frame.visible or frame.lwir for frame in shown)
    sheet_path = args.sheet or (Path("sheet.png") if has_images and args.pictures > 0 else None)
    if args.stats or sheet_path:
        modality = args.modality or _modality(root, shown)
        if args.stats:
            for split, frames in by_split.items():
                readable = _readable(console, split, frames, modality) if args.on_bad_frame == "skip" else frames
                channels = channel_statistics(readable, modality)
                title = f"{split}: channels over {channels.frames:,} frames, images in 0..1"
                _print(console, title, _channel_table(channels))
        if sheet_path:
            _write_sheet(sheet_path, shown, modality, args.pictures, skip=args.on_bad_frame == "skip")
            console.print(Text(f"sheet of pictures: {sheet_path}"), soft_wrap=True)


def _what(root: Path, kind: Kind | None, splits: list[str] | None) -> tuple[Path, Kind, Sequence[str]]:
    """Root folder, kind and splits, where the command line leaves them open."""
    if not root.exists():
        raise SplitError(f"{root}: no such file or folder")
    if root.is_file():
        return root.parent, kind or "coco", splits or [root.name]
    files = sorted(path.name for path in root.glob("*.json"))
    is_kaist = any(root.glob("annotations*")) or (root / "images").is_dir()
    kind = kind or ("coco" if files and not any(root.glob("annotations*")) else "kaist")
    if kind == "kaist":
        if not is_kaist:
            raise SplitError(f"{root}: no data set there; looked for images/, annotations-xml/ and *.json")
        return root, kind, splits or KAIST_SPLITS
    if not (splits or files):
        raise SplitError(f"{root}: no COCO file there; looked for *.json")
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


def _report_skipped(console: Console, split: str, skipped: Skipped | None) -> None:
    for _, reason in skipped or []:
        console.print(Text(f"skipped: {reason}", style="yellow"), soft_wrap=True)
    if skipped:
        console.print(Text(f"{split}: bad frames skipped: {len(skipped):,}", style="yellow"), soft_wrap=True)


def _readable(console: Console, split: str, frames: Sequence[Frame], modality: Modality) -> list[Frame]:
    good: list[Frame] = []
    skipped: Skipped = []
    for frame in frames:
        try:
            read_pair(frame, modality)
            good.append(frame)
        except ImageError as error:
            skipped.append((frame.name, str(error)))
    _report_skipped(console, split, skipped)
    if not good:
        raise SplitError(f"split {split!r}: none of its {len(frames):,} frames can be read")
    return good


def _object_table(rows: Sequence[ObjectStatistics]) -> Table:
    table = _table()
    for column in ("frames", "with objects", "objects", "person", "ignore regions"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row.frames, row.frames_with_objects, row.objects, row.person, row.ignored)
        table.add_row(row.group, *(f"{n:,}" for n in numbers))
    return table


def _height_table(rows: Sequence[ObjectStatistics]) -> Table:
    table = _table()
    for name in height_bins():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=len(height_bins()))
    for row in rows:
        table.add_row(row.group, *(f"{n:,}" for n in row.heights), _bars(row.heights))
    return table


def _print(console: Console, title: str, table: Table) -> None:
    # Titles and paths are text: a bracket in a file's name is no markup, and a long one is not to be cut.
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table, "")


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("", no_wrap=True)
    return table


def _bars(counts: Sequence[int]) -> str:
    """A histogram in one line of text."""
    steps = " ▁▂▃▄▅▆▇█"
    most = max(*counts, 1)
    return "".join(steps[-(-n * (len(steps) - 1) // most)] for n in counts)


def _channel_table(channels: ChannelStatistics) -> Table:
    table = _table()
    for name in channels.channels:
        table.add_column(name, justify="right")
    table.add_row("mean", *(f"{value:.4f}" for value in channels.mean))
    table.add_row("std", *(f"{value:.4f}" for value in channels.std))
    return table


def _write_sheet(path: Path, frames: Sequence[Frame], modality: Modality, number: int, *, skip: bool) -> None:
    """Pictures spread evenly over the frames that have objects (over all, if too few have)."""
    peopled = [frame for frame in frames if len(frame.annotations)]
    choice = peopled if len(peopled) >= number else list(frames)
    places = np.linspace(0, len(choice) - 1, min(max(number, 1), len(choice))).round().astype(int)
    pictures = []
    for frame in (choice[place] for place in places):
        try:
            images = [image for image in read_pair(frame, modality) if image is not None]
        except ImageError:
            if not skip:
                raise
            continue
        annotations, ignore = frame.annotations, training_ignore(frame.annotations)
        markings = [
            Marking("truth", annotations.boxes_xyxy[~ignore], [f"{h:.0f}" for h in annotations.height[~ignore]]),
            Marking("ignored", annotations.boxes_xyxy[ignore], [str(label) for label in annotations.labels[ignore]]),
        ]
        picture = beside([draw(image, markings) for image in images])
        time = f", {annotations.daytime}" if annotations.daytime else ""
        height, width = annotations.size
        pictures.append(with_caption(picture, f"{frame.name}{time}, {width}x{height}", ("truth", "ignored")))
    if not pictures:
        raise ImageError("none of the pictures chosen for the sheet can be read")
    save(sheet(pictures, columns=1 if modality == "early" and len(pictures) < 3 else 2), path)


if __name__ == "__main__":
    sys.exit(main())
