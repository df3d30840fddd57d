"""Train one experiment, score its test split, and write a run directory.

examples:
  ssd-effnet train lite0
  ssd-effnet train lite0 optimizer.lr=0.001 trainer.epochs=20 --out runs/try
  ssd-effnet train lite0 trainer.seed=1   (another seed: runs/lite0/seed1)
  ssd-effnet train lite0 --resume
  ssd-effnet train 01_effnet_b4 --tiny data.root=data/synthetic   (smoke test)
  ssd-effnet train runs/lite0/seed0/config.yaml --out runs/again
  ssd-effnet train pennfudan init_from=runs/lite0/seed0 --out runs/tuned
  ssd-effnet train lite0 trainer.devices=4   (four GPUs, or torchrun and srun: docs/running.md)

--tiny: input 128x160, 32 channels in adapter and extra levels, one epoch in batches of 2, trained batch norms, no
pretrained weights, no loader processes. Its figures mean nothing. All keys that key=value may set: docs/keys.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet train")
    parser.add_argument("experiment", type=Path, help="NAME, experiments/NAME.yaml, or the config.yaml of a run")
    parser.add_overrides()
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--resume", action="store_true", help="continue from the run's last checkpoint")
    parser.add_argument("--tiny", action="store_true", help="shrink it for a try on a CPU; the run is NAME-tiny")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().completed().parse_intermixed_args(argv)
    from ssd_effnet.config.loading import load_experiment

    experiment = load_experiment(arguments.experiment, arguments.overrides, tiny=arguments.tiny)

    from ssd_effnet.distributed import rank
    from ssd_effnet.evaluation.metrics import headline
    from ssd_effnet.training.run import run  # torch takes seconds: a mistake in the file is said before
    from ssd_effnet.training.run_directory import RunDirectory

    results = run(experiment, arguments.out, resume=arguments.resume)
    if rank() > 0:  # only the first process prints
        return
    directory = RunDirectory.of(experiment, arguments.out).path
    test = results.get("test", {})
    if "annotations" in test:
        print(f"tested on {test['split']}, {test['images']:,} images, annotations: {test['annotations']}")
    for name, of_class in test.get("classes", {"": test}).items():
        figures = headline(of_class) | {"minutes": results["minutes"]}
        shown = [f"{figure} {value:.2f}" for figure, value in figures.items() if value == value]
        print("  ".join([name] * bool(name) + shown))
    print(f"run directory: {directory}")
    if test:
        print(f"next: ssd-effnet visualize errors {shlex.quote(str(directory))}{shell.plugins_again()}")
    print(f"      tensorboard --logdir {shlex.quote(str(arguments.out))}")
