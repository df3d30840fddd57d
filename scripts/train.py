#!/usr/bin/env python
"""Train one experiment, evaluate it on its test split, and write everything into a run directory.

examples:
  scripts/train.py experiments/lite0.yaml
  scripts/train.py experiments/lite0.yaml optimizer.lr=0.001 trainer.epochs=20 --out runs/try
  scripts/train.py experiments/lite0.yaml --resume
  scripts/train.py experiments/01_effnet_b4.yaml --tiny data.root=data/synthetic   (does it run at all?)
  scripts/train.py runs/lite0/seed0/config.yaml --out runs/again
  scripts/train.py experiments/lite0.yaml trainer.devices=4   (four GPUs, or torchrun and srun: docs/scaling.md)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="experiments/NAME.yaml, or the config.yaml of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--tiny", action="store_true", help="shrink it for a try on a CPU; the run is NAME-tiny")
    parser.add_argument("--on-bad-frame", choices=("stop", "skip"), help="skip: leave bad frames out and list them")
    arguments = parser.parse_intermixed_args()
    if arguments.on_bad_frame:
        arguments.overrides.append(f"data.on_bad_frame={arguments.on_bad_frame}")

    from data_kaist.errors import DataError
    from ssd_effnet.config import ConfigError, load_experiment
    from ssd_effnet.distributed import rank
    from ssd_effnet.run import run
    from ssd_effnet.run_directory import RunDirectory, RunError
    from ssd_effnet.training import NonFiniteLossError
    from ssd_effnet.weights import WeightsError

    try:
        experiment = load_experiment(arguments.experiment, arguments.overrides, tiny=arguments.tiny)
        results = run(experiment, arguments.out, resume=arguments.resume)
    except (ConfigError, DataError, RunError, WeightsError, NonFiniteLossError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if rank() > 0:  # of several processes the first one speaks
        return 0
    directory = RunDirectory.of(experiment, arguments.out).path
    test = results.get("test", {})
    mr, ap = test.get("matlab", {}), test.get("ap", {})
    shown = {"MR all": mr.get("reasonable_all"), "day": mr.get("reasonable_day"), "night": mr.get("reasonable_night")}
    shown |= {"AP": ap.get("AP"), "AP50": ap.get("AP50"), "minutes": results["minutes"]}
    print("  ".join(f"{name} {value:.2f}" for name, value in shown.items() if value is not None))
    print(f"run directory: {directory}\ntensorboard --logdir {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
