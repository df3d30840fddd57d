"""Write a synthetic twin of the KAIST data set: visible and LWIR with true boxes.

examples:
  ssd-effnet synthesize data/synthetic --frames 2000 --size 512x640 --seed 0 --jobs 4
  ssd-effnet synthesize /tmp/tiny --frames 60 --size 128x160
  ssd-effnet synthesize data/wide --frames 2400 --wide

The same seed gives the same files, byte for byte, whatever --jobs is; fewer frames give a part of the same files.
Sets 00-02 are day and 03-05 night for training, 06-08 day and 09-11 night for testing; set02/V001 is the validation
video. A folder that already holds the same data set is left alone; an interrupted one is begun anew. --wide varies
distance, weather, lamps, heat, blur, noise, clothing, crowds and the offset between the cameras far more, for detectors
that are to work on real pairs; annotations-xml then has the visible images' boxes, annotations-paired both images'.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet synthesize")
    add = parser.add_argument
    add("out", type=Path, help="folder to write to")
    add("--frames", type=int, required=True, help="number of pairs")
    add("--size", type=shell.size, default=(512, 640), metavar="HxW", help="in pixels (default 512x640)")
    add("--seed", type=int, default=0, help="0 or more (default 0)")
    add("--wide", action="store_true", help="vary light, weather, cameras, heat and people far more")
    add("--jobs", type=int, default=1, help="processes (default 1)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().completed().parse_args(argv)

    from data_kaist.synthetic import write_dataset

    def show(done: int, total: int) -> None:
        print(f"\r{done} of {total} pairs", end="", file=sys.stderr, flush=True)

    o, progress = options, show if sys.stderr.isatty() else None
    if pairs := write_dataset(o.out, o.frames, o.size, o.seed, o.jobs, progress, o.wide):
        print(f"{o.out}: {pairs} pairs\nnext: ssd-effnet inspect {shlex.quote(str(o.out))}")
    else:
        print(f"{o.out} already holds exactly this data set; nothing to do.")
