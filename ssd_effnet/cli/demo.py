"""Run the whole pipeline: synthetic pairs, training, test split, error page.

It takes about ten minutes on two cores. Finished steps are skipped; `make demo` calls this.

examples:
  ssd-effnet demo
  ssd-effnet demo trainer.epochs=20
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ssd_effnet.cli import evaluate, shell, train, visualize

FRAMES, SIZE = 500, (512, 640)


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet demo")
    parser.add_overrides("settings that differ from the demo's")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().completed().parse_intermixed_args(argv)

    from data_kaist.synthetic import write_dataset
    from ssd_effnet.config.loading import load_experiment
    from ssd_effnet.training.run_directory import RunDirectory

    experiment = load_experiment("demo", arguments.overrides)
    directory = RunDirectory.of(experiment, arguments.out).path
    print(f"1. {FRAMES} synthetic pairs in {experiment.data.root}")
    write_dataset(Path(experiment.data.root), FRAMES, SIZE, seed=0, jobs=2)
    print(f"2. training {experiment.name} in {directory}")
    train.main(["demo", *arguments.overrides, "--out", str(arguments.out), "--resume"])
    print("3. every miss and false alarm")
    visualize.main(["errors", str(directory)])
    print("4. its test")
    truth = ["--annotations", experiment.data.root, "--split", experiment.data.test]
    evaluate.main([*truth, "--detections", str(directory)])
    frames, run = f"{experiment.data.root}/images/set06/V000/visible", shlex.quote(str(directory))
    print(f"next: ssd-effnet detect {run} {shlex.quote(frames)} --out found    # or a photograph of yours")
    print(f"      tensorboard --logdir {shlex.quote(str(arguments.out))}")
    print("      ssd-effnet train lite0 --tiny data.root=" + shlex.quote(experiment.data.root))
