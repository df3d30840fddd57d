#!/usr/bin/env python
"""Count a data set's objects by split, daytime and occlusion, with heights and a contact sheet.

Images are not needed for counting.

examples:
  scripts/inspect_data.py data/kaist                                    the study's three splits, and sheet.png
  scripts/inspect_data.py data/kaist --split train-all-01 --stats       every training frame, read and counted
  scripts/inspect_data.py data/pennfudan/train.json --sheet penn.png
  scripts/inspect_data.py data/exported                                 as Roboflow, COCO or CVAT lay it out
  scripts/inspect_data.py data/kaist --annotations paired --on-bad-frame skip
  scripts/inspect_data.py data/mine --modality lwir --lwir-range 7000 9000     16-bit or float LWIR images
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__)
    parser.add_argument("root", type=Path, help="the data set's folder, or a COCO file")
    parser.add_argument(
        "--kind", choices=("kaist", "coco"), help="default: coco if the root is a JSON file or holds some"
    )
    parser.add_argument(
        "--split", dest="splits", action="append", metavar="SPLIT", help="may be repeated; default: the study's three"
    )
    parser.add_argument("--annotations", choices=("xml", "bbgt", "paired"), default="xml")
    parser.add_argument("--annotations-dir", type=Path, help="default: annotations-* below the root")
    parser.add_argument("--images", default="", metavar="FOLDER", help="of a COCO file's images, if it is not found")
    parser.add_argument("--modality", choices=("visible", "lwir", "early"), help="default: whichever images are there")
    parser.add_argument("--sheet", type=Path, help="pictures with their boxes (default: sheet.png if there are images)")
    parser.add_argument("--pictures", type=int, default=8, help="on the sheet (default: 8; 0: no sheet)")
    parser.add_argument("--stats", action="store_true", help="mean and std of each channel; reads every image")
    text = "LWIR values that become 0 and 255, as data.lwir_range"
    parser.add_argument("--lwir-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    parser.add_argument("--orientation", choices=("ignore", "follow"), default="ignore", help="as data.orientation")
    parser.add_argument("--on-bad-frame", choices=("stop", "skip"), default="stop")
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = vars(parser().completed().parse_args(argv))

    from data_kaist.images import Reading
    from ssd_effnet.visualize.inspection import inspect

    limits = arguments.pop("lwir_range")
    reading = Reading(limits and (limits[0], limits[1]), arguments.pop("orientation"))
    inspect(arguments.pop("root"), reading=reading, **arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
