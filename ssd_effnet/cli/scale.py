"""Print the settings of EfficientDet's compound scaling as key=value arguments.

examples:
  ssd-effnet scale --phi 3                                    all parts of D3
  ssd-effnet scale --phi 0 --backbone 4                       D0 with D4's backbone
  ssd-effnet scale --resolution 2                             D2's input, nothing else
  ssd-effnet train experiments/efficientdet_d0.yaml $(ssd-effnet scale --neck 1 --head 1)
"""

from __future__ import annotations

from collections.abc import Sequence

from data_kaist.errors import Failure
from ssd_effnet.cli import shell
from ssd_effnet.models.scaling import scaled_settings


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet scale")
    parser.add_argument("--phi", type=int, help="0 to 7, of all parts; without it only the parts named are printed")
    for part in ("backbone", "neck", "head", "resolution"):
        parser.add_argument(f"--{part}", type=int, metavar="PHI", help=f"phi of the {part} alone")
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_args(argv)
    try:
        settings = scaled_settings(**vars(arguments))
    except ValueError as error:
        raise Failure(str(error)) from error
    if not settings:
        parser().error("give --phi, or the phi of a part")
    print(" ".join(f"{key}={value}".replace(" ", "") for key, value in settings.items()))
    return 0
