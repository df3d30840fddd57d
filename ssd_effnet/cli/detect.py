"""Find people in images, folders, pairs and videos with a trained detector.

Writes annotated images and videos under the inputs' names, and the detections: detections.json (COCO results),
images.json (names of its image ids) and detections_kaist.txt.

DETECTOR: a run's directory, a .ckpt, a .safetensors, the package's people (default) or, for two cameras, pairs.

examples:
  ssd-effnet detect street.jpg --out found
  ssd-effnet detect runs/lite0/seed0 street.jpg film.mp4 --out found
  ssd-effnet detect runs/lite0/seed0/checkpoints/best.ckpt photographs more/*.png --out found --score 0.5
  ssd-effnet detect pairs data/kaist/images/set06 --out found   (equal names in visible/ and lwir/)
  ssd-effnet detect runs/lite0/seed0 film.avi --out found --zoom 2 --no-pictures
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet detect", usage="%(prog)s [DETECTOR] INPUT ... --out DIR [options]")
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, videos, folders with all below them")
    add("--out", type=Path, required=True, metavar="DIR", help="where everything is written")
    add("--score", type=shell.share, default=0.3, metavar="S", help="least score of a detection (default: 0.3)")
    add("--no-pictures", dest="pictures", action="store_false", help="write no annotated images and videos")
    add("--zoom", type=float, default=1.0, metavar="Z", help="enlarge images for people smaller than those trained on")
    add("--batch", type=shell.positive, default=4, metavar="N", help="images that are computed at once (default: 4)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: the GPU where there is one)")
    add("--on-bad-frame", choices=("stop", "skip"), default="stop", help="skip: leave bad files out and name them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = parser()
    arguments = options.completed().parse_intermixed_args(argv)
    # a file that cannot be read is one sentence of ours, not several of the libraries below
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

    from rich.console import Console
    from rich.progress import Progress

    from data_kaist.layouts import Side
    from ssd_effnet import load_detector
    from ssd_effnet.inference.detect import detect
    from ssd_effnet.inference.sources import find_sources, frame_count, listed
    from ssd_effnet.training.run_directory import is_detector

    detector, *inputs = map(Path, arguments.inputs)
    if not is_detector(detector) and (detector.exists() or not inputs):
        detector, inputs = Path("people"), arguments.inputs
    elif not inputs:
        options.error(f"{detector} is a detector; behind it come images, videos or folders")
    predictor = load_detector(detector, device=arguments.device, zoom=arguments.zoom)
    others: Counter[str] = Counter()
    side: Side = "lwir" if predictor.modality == "lwir" else "visible"
    sources = find_sources(inputs, side=side, leave_out=arguments.out, others=others)
    total = sum(map(frame_count, sources))
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if others:
        console.print(f"left out, as neither images nor videos that are read here: {listed(others)}")
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("images", total=total or None)
        summary = detect(
            predictor,
            sources,
            arguments.out,
            score=arguments.score,
            batch_size=arguments.batch,
            pictures=arguments.pictures,
            on_bad_frame=arguments.on_bad_frame,
            echo=console.print,
            on_image=lambda: progress.advance(bar),
        )
    print(f"{summary}\nwritten to {arguments.out}" if summary.images else summary)
    return int(not summary.images)
