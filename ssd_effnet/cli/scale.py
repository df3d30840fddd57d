"""Print the settings of EfficientDet's compound scaling as key=value arguments.

They are those of the experiments efficientdet_d0 to d7: EfficientDet (Tan et al. 2020), table 1, and the authors' code.

examples:
  ssd-effnet scale --phi 3                                    all parts of D3
  ssd-effnet scale --phi 0 --backbone 4                       D0 with D4's backbone
  ssd-effnet scale --resolution 2                             D2's input, nothing else
  ssd-effnet train efficientdet_d0 $(ssd-effnet scale --neck 1 --head 1)
"""

from __future__ import annotations

from collections.abc import Sequence

from ssd_effnet.cli import shell

# the nets of the head are as wide as the neck, whatever their own phi, which sets their number of layers
PARTS = {
    "backbone": ("backbone.name", "backbone.drop_connect"),
    "neck": ("neck.channels", "neck.repeats", "neck.fusion"),
    "head": ("head.layers",),
    "resolution": ("input.size",),
}


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet scale")
    text = "0 to 7, of all parts; without it only the parts named are printed"
    parser.add_argument("--phi", type=int, choices=range(8), metavar="PHI", help=text)
    for part in PARTS:
        parser.add_argument(f"--{part}", type=int, choices=range(8), metavar="PHI", help=f"phi of the {part} alone")
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    phis = vars(parser().completed().parse_args(argv))
    of_all = phis.pop("phi")

    from ssd_effnet.config.keys import settings
    from ssd_effnet.config.loading import load_experiment

    keys = {
        key: phi
        for part, own in phis.items()
        if (phi := of_all if own is None else own) is not None
        for key in PARTS[part]
    }
    if of_all is not None:
        keys["anchors.sizes"] = of_all
    if not keys:
        parser().error("give --phi, or the phi of a part")
    published = {phi: settings(load_experiment(f"efficientdet_d{phi}")) for phi in set(keys.values())}
    values = {key: published[phi][key] for key, phi in keys.items()}
    print(" ".join(f"{key}={'null' if value is None else value}".replace(" ", "") for key, value in values.items()))
    return 0
