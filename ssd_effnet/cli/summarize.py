"""Print an experiment's detector: parts, levels, parameters, multiply-adds and anchors.

examples:
  ssd-effnet summarize 01_effnet_b4
  ssd-effnet summarize 02_widen_3x3 adapter.channels=256 input.modality=halfway
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet summarize")
    parser.add_argument("experiment", type=Path, help="NAME, experiments/NAME.yaml, or the config.yaml of a run")
    parser.add_overrides()
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().completed().parse_intermixed_args(argv)

    from ssd_effnet.config.loading import load_experiment
    from ssd_effnet.visualize.summary import summary_table

    shell.print_table(summary_table(load_experiment(arguments.experiment, arguments.overrides)))
