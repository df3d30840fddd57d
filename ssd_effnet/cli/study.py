"""Run experiments x seeds, show their state, and compare them.

examples:
  ssd-effnet study run experiments/0[1-8]*.yaml --seeds 0 1 2 data.root=data/kaist --out runs/chain
  ssd-effnet study run 04_fpn 05_deconv --seeds 0 1 --jobs 2 --dry-run
  ssd-effnet study run experiments/0*.yaml '0[1-8]*:backbone.name=efficientnet-lite0' trainer.epochs=14 --out runs/small
  ssd-effnet study run experiments/0*.yaml --seeds 0 1 2 --executor ray --address auto --out /shared/runs/chain
  ssd-effnet study run 02_widen_3x3 04_fpn --on twin --seeds 0 1 2 3 4 --out runs/necks
  ssd-effnet study ablate 08_bifpn --on twin --seeds 0 1 2 --out runs/without
  ssd-effnet study status runs/chain
  ssd-effnet study report runs/chain
  ssd-effnet study report runs/chain --published MLPD.txt MSDS-RCNN.txt   (their rows above the own ones)
  ssd-effnet study report /mnt/other/chain data.root=data/kaist --out reports/chain

`run` skips what is finished, resumes what was interrupted and continues past failed runs; run it again to continue.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_effnet.cli import shell

if TYPE_CHECKING:
    from ssd_effnet.study.plan import Job


def parser() -> shell.Parser:
    parser = shell.Parser(__doc__, prog="ssd-effnet study")
    what = parser.add_subparsers(required=True, metavar="run | ablate | status | report", dest="what")
    run = what.add_parser("run", help="train and evaluate every experiment with every seed")
    without = what.add_parser("ablate", help="train an experiment without each step of its chain")
    run.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="YAML files, and key=value for all of them")
    without.add_argument("experiments", nargs="+", metavar="FINAL", help="the last experiment, and key=value for all")
    for command in (run, without):
        _add_plan(command)
    for name, help_text in (("status", "how far each run is"), ("report", "compare the finished runs")):
        command = what.add_parser(name, help=help_text)
        command.add_argument("out", type=Path, metavar="DIRECTORY", help="of the study")
        if name == "report":
            command.add_argument("--no-latency", action="store_true", help="do not time the detectors on this machine")
            command.add_argument("--out", dest="to", type=Path, metavar="FOLDER", help="default: DIRECTORY/report")
            of_others = "detections of others on the same test data, as rows of the tables"
            command.add_argument("--published", nargs="+", default=[], metavar="FILE", help=of_others)
            command.add_overrides("where the runs' data are here: data.root=...")
    return parser


def _add_plan(run: shell.Parser) -> None:
    """Arguments of the commands that train."""
    run.add_argument("--on", type=Path, metavar="FILE", help="an experiment whose own keys are set in all of them")
    run.add_argument("--seeds", nargs="+", type=seed, default=[0], metavar="K", help="default: 0")
    run.add_argument("--out", type=Path, default=Path("runs/study"), help="the study's directory (default: runs/study)")
    jobs = "runs side by side: one per GPU, or each on a share of the cores"
    run.add_argument("--jobs", type=shell.positive, default=1, help=jobs)
    run.add_argument("--executor", choices=("local", "ray"), default="local", help="ray: on the nodes of a Ray cluster")
    run.add_argument("--address", help="of the Ray cluster; auto: the one that this machine belongs to")
    run.add_argument("--dry-run", action="store_true", help="say what would run, how large it is and how long it takes")


def seed(word: str) -> int | str:
    """A seed; ``key=value``, which may stand behind them, stays as it is."""
    return word if "=" in word else shell.whole_number(word)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments with ``overrides``: ``key=value`` may stand anywhere, behind ``--seeds`` too."""
    arguments = parser().parse_overrides(argv)
    if arguments.what in ("run", "ablate"):
        seeds = [word for word in arguments.seeds if isinstance(word, int)]
        settings = [word for word in arguments.seeds if isinstance(word, str)]
        words = [word for word in arguments.experiments if "=" in word]
        arguments.overrides = [*words, *settings, *arguments.overrides]
        arguments.experiments = [Path(word) for word in arguments.experiments if "=" not in word]
        if arguments.what == "ablate" and len(arguments.experiments) != 1:
            parser().error("ablate takes one experiment, the last of its chain")
        if arguments.executor == "ray" and arguments.jobs > 1:
            parser().error("--jobs is for the local executor; a Ray cluster takes as many runs as it holds")
        if arguments.executor == "local" and arguments.address:
            parser().error("--address needs --executor ray")
        arguments.seeds = seeds or [0]
    elif arguments.what == "report":
        arguments.published, settings = shell.without_settings(arguments.published)
        arguments.overrides += settings
    elif arguments.what == "status" and arguments.overrides:
        parser().error(f"unknown arguments: {' '.join(arguments.overrides)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    commands = {"run": run_study, "ablate": run_study, "status": show_status, "report": write_report}
    return commands[arguments.what](arguments)


def run_study(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ssd_effnet.study import ablation
    from ssd_effnet.study.cluster import execute_on_ray
    from ssd_effnet.study.execute import RunOutcome, execute
    from ssd_effnet.study.plan import check, hidden_by, overlay, plan, remember
    from ssd_effnet.study.progress import Display
    from ssd_effnet.training.run_directory import State

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    files, laid = arguments.experiments, overlay(arguments.on) if arguments.on else []
    if arguments.what == "ablate":
        without, left_out = ablation.write_without(files[0], arguments.out / "without")
        files = [*files, *without]
        for sentence in left_out:
            console.print(f"not run: {sentence}")
    jobs = plan(files, arguments.seeds, [*laid, *arguments.overrides], arguments.out)
    for note in (*hidden_by(laid, jobs), *check(jobs)):
        console.print(f"note: {note}")
    damaged = {job: damage for job in jobs if (damage := job.directory.damage())}
    jobs = [job for job in jobs if job not in damaged]
    todo = [job for job in jobs if job.directory.state not in (State.FINISHED, State.RUNNING)]
    elsewhere = [job for job in jobs if job.directory.state is State.RUNNING]
    console.print(f"{len(jobs)} runs: {len(jobs) - len(todo) - len(elsewhere)} finished, {len(todo)} to do")
    if elsewhere:
        console.print(f"in another process: {', '.join(job.name for job in elsewhere)}")
    if arguments.dry_run:
        return show_estimates(todo, arguments.jobs, arguments.out)
    remember(jobs, arguments.out, shlex.join(sys.argv), laid)
    with Display(todo, console) as display:
        execute_all: Callable[..., list[RunOutcome]]
        if arguments.executor == "ray":
            execute_all = partial(execute_on_ray, address=arguments.address)
        else:
            execute_all = partial(execute, jobs=arguments.jobs)
        outcomes = execute_all(todo, on_start=display.on_start, on_look=display.on_look, on_end=display.on_end)
    unfinished = [outcome for outcome in outcomes if outcome.state is not State.FINISHED]
    for outcome in unfinished:
        console.print(f"not finished: {outcome.job.name}: {outcome.reason}")
    for job, damage in damaged.items():
        console.print(f"not finished: {job.name}: {damage}")
    out = shlex.quote(str(arguments.out))
    console.print(f"ssd-effnet study report {out}{shell.plugins_again()}\ntensorboard --logdir {out}")
    # running: in another process
    return 1 if damaged or any(outcome.state is not State.RUNNING for outcome in unfinished) else 0


def show_estimates(todo: list[Job], side_by_side: int, out: Path) -> int:
    from rich.table import Table

    from ssd_effnet.study.estimate import estimate_run

    heads = ("experiment", "seeds", "input", "parameters, M", "multiply-adds, 10^9", "anchors", "epochs", "minutes")
    table = Table(*heads, title="what would run", title_justify="left")
    busy = [0.0] * side_by_side
    for name, e in {job.experiment.name: job.experiment for job in todo}.items():
        cost, minutes = estimate_run(e, side_by_side)
        seeds = [job for job in todo if job.experiment.name == name]
        epochs = e.trainer.epochs
        for job in seeds:
            busy[busy.index(min(busy))] += minutes * (1 - job.epochs_done / max(epochs, job.epochs_done))
        counted = (f"{cost.parameters / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.2f}", f"{cost.anchors:,}")
        named = " ".join(str(job.experiment.trainer.seed) for job in seeds)
        table.add_row(name, named, "x".join(map(str, e.input.size)), *counted, str(epochs), f"{minutes:.1f} per run")
    shell.print_table(table)
    rows = f" in {side_by_side} rows side by side" if side_by_side > 1 else ""
    minutes = max(busy)
    time = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.0f} min"
    print(f"about {time}{rows}; from a few steps, timed one experiment at a time")
    show_power(out)
    return 0


def show_power(out: Path) -> None:
    """Print how many seeds would tell a difference of 2 points. It is estimated from the spread of the study's runs."""
    from ssd_effnet.evaluation.significance import seeds_to_tell
    from ssd_effnet.study.plan import survey
    from ssd_effnet.study.records import load_study
    from ssd_effnet.study.report_entries import figure_name, seeds_in_words
    from ssd_effnet.training.run_directory import State

    if not any(directory.state is State.FINISHED for directory in survey(out)[0]):
        print(f"how many seeds would tell a difference is not known before {out} has runs of two seeds")
        return
    for d in (study := load_study(out)).differences:
        a, b = (e.replicates(d.metric) for e in (d.experiment, d.parent))
        if d.comparison.readable and len(a) + len(b) > 2:
            needed = seeds_in_words(seeds_to_tell(a, b))
            what = f"{d.experiment.name} against {d.parent.name}, 2 points of {figure_name(study.metric)}"
            print(f"seeds that would tell {what}: {needed}")


def show_status(arguments: argparse.Namespace) -> int:
    from ssd_effnet.study.plan import runs_of
    from ssd_effnet.study.progress import status_table

    directories, left_out = runs_of(arguments.out)
    shell.print_table(status_table(directories, str(arguments.out)))
    for sentence in left_out:
        print(f"left out: {sentence}")
    return 0


def write_report(a: argparse.Namespace) -> int:
    from ssd_effnet.study.report import write

    timed = not a.no_latency
    print(write(a.out, a.to, measure_latency=timed, overrides=a.overrides, published=a.published))
    return 0
