"""Progress display and status table of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ssd_effnet.evaluation.metrics import headline, metric_of
from ssd_effnet.study.execute import RunOutcome
from ssd_effnet.study.plan import Job
from ssd_effnet.study.report_entries import NOTHING, number
from ssd_effnet.training.run_directory import RunDirectory, State

STYLES = {State.FINISHED: "green", State.RUNNING: "cyan", State.FAILED: "red", State.INTERRUPTED: "yellow"}


class Display:
    """Progress bars on a terminal. Else one line per job that begins or ends.

    Use it as a context; its methods are :func:`ssd_effnet.study.execute.execute`'s callbacks.
    """

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.jobs = jobs
        self.console = console
        self.ended = 0
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=1e9,  # the mean over the whole study
        )
        self.bars: dict[Job | None, TaskID] = {}

    def __enter__(self) -> Display:
        epochs = sum(job.experiment.trainer.epochs for job in self.jobs)
        self.bars[None] = self.progress.add_task(f"{len(self.jobs)} runs", total=epochs)
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_start(self, job: Job) -> None:
        self.bars[job] = self.progress.add_task(job.name, total=job.experiment.trainer.epochs)
        if not self.console.is_terminal:
            resumed = f" from epoch {job.epochs_done + 1}" if job.epochs_done else ""
            self.console.print(f"{job.name}: begins{resumed}")

    def on_look(self, running: Sequence[Job]) -> None:
        for job in running:
            self.progress.update(self.bars[job], completed=job.epochs_done)
        self.progress.update(self.bars[None], completed=sum(job.epochs_done for job in self.jobs))

    def on_end(self, outcome: RunOutcome) -> None:
        self.ended += 1
        self.progress.remove_task(self.bars.pop(outcome.job))
        test = test_figures(outcome.job.directory)
        said = outcome.reason or "  ".join(f"{name} {value:.2f}" for name, value in test.items())
        self.console.print(f"{outcome.job.name}: {outcome.state}  {said}  ({self.ended}/{len(self.jobs)})")


def test_figures(directory: RunDirectory) -> dict[str, float]:
    """The headline of a finished run with a test split; without NaN."""
    if directory.state is not State.FINISHED or "test" not in (results := directory.results()):
        return {}
    return {name: value for name, value in headline(results["test"]).items() if not math.isnan(value)}


def status_table(directories: Sequence[RunDirectory], title: str) -> Table:
    """One row per run: state, epochs, results or reason of failure."""
    figures = ("MR all", "MR day", "MR night", "AP")
    table = Table("experiment", "seed", "state", "epochs", "best val", *figures, "minutes", title=title)
    table.add_column("reason", overflow="fold")
    for directory in directories:
        experiment, state, rows = directory.trained(), directory.state, directory.metrics()
        monitor, test = experiment.trainer.monitor, test_figures(directory)
        best = metric_of(monitor).best([row[monitor] for row in rows if monitor in row], default=None)
        table.add_row(
            experiment.name,
            str(experiment.trainer.seed),
            Text(state, STYLES.get(state, "")),
            f"{len(rows)}/{experiment.trainer.epochs}",
            number(best),
            *(number(test.get(name)) for name in figures),
            f"{directory.results()['minutes']:.1f}" if state is State.FINISHED else NOTHING,
            directory.failure() if state is State.FAILED else "",
        )
    return table
