"""Search an experiment's settings with Optuna, by its validation split.

Every trial is an ordinary run in OUT/<experiment>-trial<k>/, visible in TensorBoard; the test split is not used. The
same command again continues up to N trials; the same command in another terminal, or --jobs, runs trials in parallel.
The best trial is written as a new experiment file, OUT/<experiment>_found.yaml. The first 8 trials are drawn at random
and never pruned.

examples:
  ssd-effnet search experiments/lite0.yaml --space experiments/spaces/lite0.yaml --trials 30
  ssd-effnet search experiments/demo.yaml --space experiments/spaces/lite0.yaml --trials 20 --jobs 2 trainer.epochs=5
  ssd-effnet search lite0 --space lite0 --trials 30 --out runs/lite0-ap trainer.monitor=val/AP
  tensorboard --logdir runs/lite0-search

a space file:
  optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
  optimizer.name: [sgd, rmsprop, adamw]
  schedule.warmup_steps: {low: 0, high: 200, step: 50}
"""

from __future__ import annotations

import importlib
import multiprocessing
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_effnet.cli import shell

if TYPE_CHECKING:
    from ssd_effnet.study.search.trials import Search


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet search")
    add = parser.add_argument
    add("experiment", type=Path, help="NAME or experiments/NAME.yaml, the one to search around")
    parser.add_overrides("settings of all trials")
    add("--space", type=Path, required=True, metavar="FILE", help="NAME, or a YAML file: what to draw, see above")
    in_the_end = "finished or pruned ones in the end; with --jobs J up to J - 1 more"
    add("--trials", type=shell.positive, required=True, metavar="N", help=in_the_end)
    add("--out", type=Path, help="directory of the search (default: runs/<experiment>-search)")
    add("--jobs", type=shell.positive, default=1, metavar="N", help="processes that share the CPU's threads")
    return parser


@shell.command
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
    stopped_early = 0
    if arguments.jobs == 1:
        trials.run_trials(search, study, arguments.trials, echo=say)
    else:
        stopped_early = work_in_processes(search, arguments.jobs, arguments.trials)
    number = trials.counts(study)
    if stopped_early and number["finished"] + number["pruned"] < arguments.trials:  # else others made up for it
        print("error: not all processes came to the end, see above; run the same command again", file=sys.stderr)
        return 1
    shell.print_table(trials.trials_table(search, study))
    for k, sentence in trials.failures(study).items():
        print(f"trial {k} {sentence}")
    if number["running"]:
        print(f"{number['running']} more on their way elsewhere; whoever ends last writes the last result")
    found = trials.write_best(search, study)
    print(f"found: {found}\nnow:   ssd-effnet train {shlex.quote(str(found))}")
    print(f"tensorboard --logdir {shlex.quote(str(search.out))}")
    return 0


def work_in_processes(search: Search, jobs: int, trials: int) -> int:
    """Run trials in so many processes, each with its share of the threads; the number of those that stopped early."""
    from ssd_effnet.training.machine import cores

    trainer = search.base.trainer
    shared = replace(trainer, threads=max(1, (trainer.threads or cores()) // jobs))
    search = replace(search, base=replace(search.base, trainer=shared))
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work, args=(search, trials)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt as stop:
        for worker in workers:
            if stop.args:  # SIGTERM may have come to this process alone
                worker.terminate()
            worker.join()
        raise
    return sum(worker.exitcode != 0 for worker in workers)


def _work(search: Search, trials: int) -> None:
    """Body of a process."""

    from ssd_effnet.study.search.trials import open_study, run_trials

    @shell.command
    def work(_: Sequence[str] | None) -> int:
        run_trials(search, open_study(search), trials, echo=say)
        return 0

    sys.exit(work())


def say(line: str) -> None:
    print(line, flush=True)
