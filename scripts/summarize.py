#!/usr/bin/env python
"""Print an experiment's detector: parts, levels, parameters, multiply-adds and anchors.

examples:
  scripts/summarize.py experiments/01_effnet_b4.yaml
  scripts/summarize.py experiments/02_widen_3x3.yaml adapter.channels=256 input.modality=halfway
  scripts/summarize.py experiments/08_bifpn.yaml --graph bifpn.svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="experiments/NAME.yaml, or the config.yaml of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
    parser.add_argument("--graph", type=Path, metavar="OUT.svg", help="draw the levels and what each is made from")
    arguments = parser.parse_intermixed_args()

    from rich.console import Console

    from ssd_effnet.build import build_skeleton
    from ssd_effnet.config import ConfigError, load_experiment
    from ssd_effnet.detector_picture import detector_svg
    from ssd_effnet.summary import summarize, summary_table

    try:
        experiment = load_experiment(arguments.experiment, arguments.overrides)
        table = summary_table(summarize(experiment))
        if arguments.graph:
            arguments.graph.write_text(detector_svg(experiment.name, build_skeleton(experiment)), encoding="utf-8")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # a pipe has no width of its own, and a table cut at 80 columns can be read by nobody
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
