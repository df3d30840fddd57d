#!/usr/bin/env python
"""From nothing to a miss rate: synthetic pairs, one training on the CPU, the test split, pictures.

What is done already is not done again; `make demo` calls this.

examples:
  scripts/demo.py
  scripts/demo.py --frames 1000 trainer.epochs=20
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_kaist.errors import DataError
from data_kaist.synthetic import RequestError, write_dataset
from ssd_effnet.config import ConfigError, load_experiment
from ssd_effnet.gallery.frames import write_pictures
from ssd_effnet.run import run
from ssd_effnet.run_directory import RunDirectory, RunError
from ssd_effnet.training import NonFiniteLossError
from ssd_effnet.weights import WeightsError

ROOT = Path(__file__).resolve().parents[1]
SIZE = (512, 640)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the demo's")
    parser.add_argument("--frames", type=int, default=500, help="synthetic pairs (default: 500)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    arguments = parser.parse_intermixed_args()
    os.chdir(ROOT)  # so that the run's config states paths that hold wherever the checkout lies
    try:
        experiment = load_experiment("experiments/demo.yaml", arguments.overrides)
        print(f"1. {arguments.frames} synthetic pairs in {experiment.data.root}")
        write_dataset(Path(experiment.data.root), arguments.frames, SIZE, seed=0, jobs=2)
        directory = RunDirectory.of(experiment, arguments.out).path
        print(f"2. training {experiment.name} in {directory}")
        results = run(experiment, arguments.out, resume=True)
        pictures = directory / "pictures"
        print(f"3. pictures in {pictures}")
        written = sorted(pictures.glob("*.png")) or write_pictures(directory, pictures)
    except (ConfigError, DataError, RequestError, RunError, WeightsError, NonFiniteLossError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    test = results["test"]
    mr, ap = test["matlab"], test["ap"]
    table = Table(title=f"{experiment.name} on {test['images']} synthetic test pairs, percent", title_justify="left")
    cells = {f"MR {time}": mr[f"reasonable_{time}"] for time in ("all", "day", "night")}
    cells |= {"AP": ap["AP"], "AP50": ap["AP50"], "minutes": results["minutes"]}
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*("-" if value is None else f"{value:.2f}" for value in cells.values()))
    Console().print(table)
    print(f"run directory  {directory}")
    print(f"pictures       {written[0]} and {len(written) - 1} more")
    print(f"TensorBoard    {Path(sys.executable).parent / 'tensorboard'} --logdir {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
