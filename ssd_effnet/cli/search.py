"""Search an experiment's settings with Optuna, by its validation split.

Every trial is an ordinary run in OUT/<experiment>-trial<k>/, visible in TensorBoard; the test split is not used. The
same command again continues up to N trials; the same command in another terminal, or --jobs, runs trials in parallel.
The best trial is written as a new experiment file.

examples:
  ssd-effnet search experiments/lite0.yaml --space experiments/spaces/lite0.yaml --trials 30
  ssd-effnet search experiments/demo.yaml --space experiments/spaces/lite0.yaml --trials 20 --jobs 2 trainer.epochs=5
  ssd-effnet search experiments/lite0.yaml --space experiments/spaces/lite0.yaml --trials 30 --monitor val/AP \\
      --out runs/lite0-ap --result experiments/lite0_found.yaml
  tensorboard --logdir runs/lite0-search

a space file:
  optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
  optimizer.name: [sgd, rmsprop, adamw]
  schedule.warmup_steps: {low: 0, high: 200, step: 50}
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_effnet.cli import shell

if TYPE_CHECKING:
    from ssd_effnet.study.search.work import Search


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet search")
    parser.add_argument("experiment", type=Path, help="NAME or experiments/NAME.yaml, the one to search around")
    parser.add_overrides("settings of all trials")
    parser.add_argument(
        "--space", type=Path, required=True, metavar="FILE", help="NAME, or a YAML file: what to draw, see above"
    )
    parser.add_argument(
        "--trials",
        type=shell.positive,
        required=True,
        metavar="N",
        help="finished or pruned ones in the end; with --jobs J up to J - 1 more",
    )
    parser.add_argument("--out", type=Path, help="directory of the search (default: runs/<experiment>-search)")
    parser.add_argument("--result", type=Path, metavar="FILE", help="default: OUT/<experiment>_found.yaml")
    parser.add_argument("--monitor", metavar="METRIC", help="what to get better at: short for trainer.monitor=...")
    parser.add_argument(
        "--seed", type=shell.from_zero, default=0, metavar="K", help="of the draws; trials have trainer.seed"
    )
    parser.add_argument(
        "--jobs", type=shell.positive, default=1, metavar="N", help="processes that share the CPU's threads"
    )
    parser.add_argument(
        "--startup-trials", type=shell.positive, default=8, metavar="N", help="random and never pruned (default: 8)"
    )
    parser.add_argument("--no-pruning", action="store_true", help="run every trial to its end")
    return parser


@shell.command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().completed().parse_intermixed_args(argv)
    if arguments.monitor:
        arguments.overrides.append(f"trainer.monitor={arguments.monitor}")

    try:
        importlib.import_module("optuna")
    except ModuleNotFoundError:
        print("error: a search needs optuna: pip install '.[search]'", file=sys.stderr)
        return 1

    from ssd_effnet.study.search.found import refuse_to_overwrite
    from ssd_effnet.study.search.work import counts, open_study, plan_search, run_trials

    search = plan_search(
        arguments.experiment,
        arguments.space,
        arguments.overrides,
        out=arguments.out,
        seed=arguments.seed,
        startup=arguments.startup_trials,
        pruning=not arguments.no_pruning,
    )
    result = arguments.result or search.out / f"{search.base.name}_found.yaml"
    refuse_to_overwrite(result)
    study = open_study(search)
    if arguments.jobs == 1:
        run_trials(search, study, arguments.trials, echo=say)
    elif work_in_processes(search, arguments.jobs, arguments.trials):
        number = counts(study)
        if number["finished"] + number["pruned"] < arguments.trials:  # else the others made up for it
            print("error: not all processes came to the end, see above; run the same command again", file=sys.stderr)
            return 1
    show(search, result)
    return 0


def say(line: str) -> None:
    print(line, flush=True)


def work_in_processes(search: Search, jobs: int, trials: int) -> int:
    """Run trials in so many processes, each with its share of the threads; the number of those that stopped early."""
    trainer = search.base.trainer
    shared = replace(trainer, threads=max(1, (trainer.threads or os.cpu_count() or 1) // jobs))
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
    from ssd_effnet.study.search.work import open_study, run_trials

    @shell.command
    def work(_: Sequence[str] | None) -> int:
        run_trials(search, open_study(search), trials, echo=say)
        return 0

    sys.exit(work())


def show(search: Search, result: Path) -> None:
    """The best trials, what decided, what failed, and the new experiment."""
    from ssd_effnet.study.search.found import importances, trials_table, write_found
    from ssd_effnet.study.search.work import counts, failures, open_study

    study = open_study(search)
    shell.print_table(trials_table(search, study, width=shell.width()))
    if shares := importances(study):
        print("what decides: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items()))
    for number, sentence in failures(study).items():
        print(f"trial {number} {sentence}")
    if running := counts(study)["running"]:
        print(f"{running} more on their way elsewhere; whoever ends last writes the last result")
    write_found(search, study, result)
    found, out = (shlex.quote(str(path)) for path in (result, search.out))
    print(f"found: {result}\nnow:   ssd-effnet train {found}\ntensorboard --logdir {out}")
