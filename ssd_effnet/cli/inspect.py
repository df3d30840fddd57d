"""Count a data set's objects, and draw a contact sheet.

Counts are by split, daytime and occlusion, and need no images.

examples:
  ssd-effnet inspect data/kaist                                    the study's splits, and sheet.png
  ssd-effnet inspect data/kaist --split train-all-01 --stats       every training frame, read and counted
  ssd-effnet inspect data/pennfudan/train.json --sheet penn.png
  ssd-effnet inspect data/exported                                 as Roboflow, COCO or CVAT lay it out
  ssd-effnet inspect data/kaist --annotations paired --on-bad-frame skip
  ssd-effnet inspect data/synthetic --anchors 02_widen_3x3 input.size=[192,240]     its anchors, and fitted ones
  ssd-effnet inspect data/mine --modality lwir --lwir-range 7000 9000     16-bit or float LWIR images
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet inspect")
    add = parser.add_argument
    add("root", type=Path, help="the data set's folder, or a COCO file")
    add("--kind", choices=("kaist", "coco"), help="default: coco if there are JSON files and no annotations of KAIST")
    text = "may be repeated; default: train-all-02, test-all-20 and the study's validation; of COCO: every file"
    add("--split", dest="splits", action="append", metavar="SPLIT", help=text)
    text = "of KAIST: xml (default), bbgt, paired, a folder or a COCO file, as data.train_annotations"
    add("--annotations", default="xml", metavar="SET", help=text)
    add("--images", default="", metavar="FOLDER", help="of a COCO file's images, if it is not found")
    add("--modality", choices=("visible", "lwir", "early"), help="default: whichever images are there")
    add("--sheet", type=Path, help="pictures with their boxes (default: sheet.png if there are images)")
    add("--pictures", type=int, default=8, help="on the sheet (default: 8; 0: no sheet)")
    add("--stats", action="store_true", help="mean and std of each channel; reads every image")
    text = "LWIR values that become 0 and 255, as data.lwir_range"
    add("--lwir-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    add("--orientation", choices=("ignore", "follow"), default="ignore", help="as data.orientation")
    text = "how well the anchors cover the objects, and fitted ones as NAME_anchors.yaml (default: lite0)"
    add("--anchors", nargs="*", metavar=("EXPERIMENT", "KEY=VALUE"), help=text)
    add("--on-bad-frame", choices=("stop", "skip"), default="stop", help="default: stop")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = vars(parser().completed().parse_args(argv))

    from data_kaist.images import Reading
    from ssd_effnet.visualize.inspection import inspect

    if arguments["anchors"] == []:
        arguments["anchors"] = ["lite0"]
    limits = arguments.pop("lwir_range")
    if limits and not -math.inf < limits[0] < limits[1] < math.inf:
        parser().error("--lwir-range takes LOW below HIGH")
    reading = Reading(limits and (limits[0], limits[1]), arguments.pop("orientation"))
    inspect(arguments.pop("root"), reading=reading, **arguments)
