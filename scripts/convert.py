#!/usr/bin/env python
"""Write another data set's annotations as COCO files that `data.kind: coco` reads; images are linked, not copied.

SRC is the folder that the authors' archives unpack to:
  citypersons   gtBboxCityPersons/{train,val}/CITY/*.json and leftImg8bit/{train,val}/CITY/*.png
  crowdhuman    annotation_{train,val}.odgt and Images/*.jpg
  llvip         Annotations/*.xml, visible/{train,test}/*.jpg and infrared/{train,test}/*.jpg: pairs for all modalities
  pennfudan     Annotation/*.txt and PNGImages/*.png; every fifth image goes to val.json

examples:
  scripts/convert.py citypersons ~/cityscapes data/citypersons
  scripts/convert.py crowdhuman ~/CrowdHuman data/crowdhuman --box visible
  scripts/convert.py llvip ~/LLVIP data/llvip
  scripts/convert.py pennfudan ~/PennFudanPed data/pennfudan --copy
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__)
    add = parser.add_argument
    add("format", choices=("citypersons", "crowdhuman", "llvip", "pennfudan"))
    add("source", type=Path, metavar="SRC")
    add("out", type=Path, metavar="OUT", help="folder for the COCO files and the links")
    add("--box", choices=("full", "visible"), default="full", help="whole persons, or what is visible (default: full)")
    add("--copy", action="store_true", help="copy images instead of linking their folders")
    add("--val-step", type=int, default=5, metavar="N", help="pennfudan: every Nth image is held out (default: 5)")
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_args(argv)

    from data_kaist.convert import convert

    a = arguments
    done = convert(a.format, a.source, a.out, box=a.box, copy=a.copy, val_step=a.val_step)
    for split in done:
        print(split)
    names = [split.file.name for split in done]
    test = names[-1]
    # a test split must not choose the checkpoint: without a validation split, a tenth of train does
    val = "val.json" if "val.json" in names else "train.json%10"
    print(
        f"to train: scripts/train.py experiments/lite0.yaml data.kind=coco data.root={arguments.out} "
        f"data.train=train.json data.val={val} data.test={test}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
