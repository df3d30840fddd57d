"""Search an experiment's settings with Optuna, by its validation split.

Every trial is an ordinary run in OUT/<experiment>-trial<k>/, visible in TensorBoard; the test split is not used. The
same command again continues up to N trials; the same command in other terminals, each on its own GPU, runs trials in
parallel (up to one more each). The best one becomes an experiment, OUT/<experiment>_found.yaml. The first 8 trials are
drawn at random and never pruned.

examples:
  ssd-effnet search lite0 --space lite0 --trials 30
  ssd-effnet search demo --space lite0 --trials 20 trainer.epochs=5
  ssd-effnet search lite0 --space lite0 --trials 30 --out runs/lite0-ap trainer.monitor=val/AP
  tensorboard --logdir runs/lite0-search

a space file:
  optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
  optimizer.name: [sgd, rmsprop, adamw]
  schedule.warmup_steps: {low: 0, high: 200, step: 50}
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ssd_effnet.cli import shell


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet search")
    add = parser.add_argument
    add("experiment", type=Path, help="NAME or experiments/NAME.yaml, the one to search around")
    parser.add_overrides("settings of all trials")
    add("--space", type=Path, required=True, metavar="FILE", help="NAME, or a YAML file: what to draw, see above")
    add("--trials", type=shell.positive, required=True, metavar="N", help="finished or pruned ones in the end")
    add("--out", type=Path, help="directory of the search (default: runs/<experiment>-search)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_intermixed_args(argv)
    try:
        importlib.import_module("optuna")
    except ModuleNotFoundError:
        print("error: a search needs optuna: pip install '.[search]'", file=sys.stderr)
        return 1

    from ssd_effnet.study.search import trials

    search = trials.plan_search(arguments.experiment, arguments.space, arguments.overrides, arguments.out)
    study = trials.open_study(search)
    trials.run_trials(search, study, arguments.trials, echo=partial(print, flush=True))
    shell.print_table(trials.trials_table(search, study))
    for k, sentence in trials.failures(study).items():
        print(f"trial {k} {sentence}")
    if running := trials.counts(study)["running"]:
        print(f"{running} more on their way elsewhere; whoever ends last writes the last result")
    found = trials.write_best(search, study)
    print(f"found: {found}\nnow:   ssd-effnet train {shlex.quote(str(found))}{shell.plugins_again()}")
    print(f"tensorboard --logdir {shlex.quote(str(search.out))}")
    return 0
