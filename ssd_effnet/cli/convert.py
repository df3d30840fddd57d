"""Convert another data set's annotations to COCO files for `data.kind: coco`.

Images are linked, not copied (`cp -rL OUT` copies). SRC is the unpacked archive:
  llvip         Annotations/*.xml, visible/{train,test}/*.jpg and infrared/{train,test}/*.jpg: pairs for all modalities
  pennfudan     Annotation/*.txt and PNGImages/*.png; every fifth image goes to val.json

examples:
  ssd-effnet convert llvip ~/LLVIP data/llvip
  ssd-effnet convert pennfudan ~/PennFudanPed data/pennfudan
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet convert")
    add = parser.add_argument
    add("format", choices=("llvip", "pennfudan"))
    add("source", type=Path, metavar="SRC")
    add("out", type=Path, metavar="OUT", help="folder for the COCO files and the links")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().completed().parse_args(argv)

    from data_kaist.convert import convert, settings_for

    done = convert(arguments.format, arguments.source, arguments.out)
    for split in done:
        print(split)
    if splits := settings_for(done):
        words = ["data.kind=coco", f"data.root={arguments.out}", *splits]
        is_script = Path(sys.argv[0]).name == "convert.py"  # its caller has the scripts at hand
        train = "scripts/train.py experiments/lite0.yaml" if is_script else "ssd-effnet train lite0"
        print(f"to train: {train} {shlex.join(words)}")
