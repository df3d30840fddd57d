"""Results of a search, as a table and an experiment file."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from data_kaist.files import write_whole
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import as_difference, differences, load_base, load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.study.search.work import (
    Search,
    SearchError,
    as_overrides,
    counts,
    drawn,
    snapshot,
    trial_number,
    value_text,
)

_FOUND_BY = "Found by ssd-effnet search"


def best_trials(search: Search, study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, best first; equal ones in the order in which they were begun."""
    sign = 1 if search.metric.lower_is_better else -1
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(finished, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def trials_table(search: Search, study: optuna.Study, count: int = 10, width: int = 200) -> Table:
    """Table of the best trials, one column each."""
    title = f"{search.base.name}: {', '.join(f'{n} {name}' for name, n in counts(study).items() if n)}"
    lines = [["trial", search.monitor, "epochs", *search.space]]
    for trial in best_trials(search, study)[:count]:
        values = [value_text(value) for value in drawn(search, trial).values()]
        lines.append([str(trial_number(trial)), f"{trial.value:.4g}", str(1 + (trial.last_step or 0)), *values])
    ends = accumulate((3 + max(map(len, column)) for column in lines), initial=1)  # with the frame
    fitting = lines[: max(sum(end <= width for end in ends) - 1, 2)]
    table = Table(title=title, title_justify="left")
    for i, (head, *_) in enumerate(fitting):
        table.add_column(head, justify="right" if i else "left", overflow="fold", style="bold" if i == 1 else "")
    for cells in list(zip(*fitting, strict=True))[1:]:
        table.add_row(*cells)
    return table


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each key (PED-ANOVA), shares of 1; {} for too few trials."""
    if counts(study)["finished"] < 10:  # it compares the best tenth with all others
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def refuse_to_overwrite(path: Path) -> None:
    """A result goes into a new file or over an earlier result.

    Raises:
        SearchError: the file holds something else.
    """
    if path.exists() and not (path.is_file() and _found(path.read_text(encoding="utf-8"))):
        raise SearchError(f"{path}: holds something that no search has written; choose another --result")


def _found(text: str) -> bool:
    """Whether a search wrote it, also one under its earlier name."""
    words = " ".join(text.split())
    return _FOUND_BY in words or "Found by scripts/search.py" in words


def write_found(search: Search, study: optuna.Study, path: Path) -> ExperimentConfig:
    """The best trial as an experiment file: a diff of the experiment that was searched around.

    Raises:
        SearchError: no trial has finished, or the file holds something else.
    """
    refuse_to_overwrite(path)
    ranking = best_trials(search, study)
    if not ranking:
        raise SearchError(f"{search.out}: no trial has finished, so nothing is found")
    best, number = ranking[0], counts(study)
    equal = sum(trial.value == best.value for trial in ranking)
    values = drawn(search, best)
    found = load_experiment(snapshot(search), as_overrides(values))
    parent = load_experiment(search.file)
    found.trainer.threads = parent.trainer.threads
    changes = differences(found, parent)
    description = (
        f"Which {', '.join(values)} suit {search.base.name}? {_FOUND_BY}: trial {trial_number(best)}, the best "
        f"of {number['finished'] + number['pruned']} ({number['pruned']} of them pruned; {number['failed']} more "
        f"failed), with {search.monitor} {best.value:.4g} on the validation split {search.base.data.val}, one seed. It "
        "was chosen for this value, which is therefore better than what another seed or the test split will show."
        + (f" {equal - 1} more have the same value: which of them is best, it does not say." if equal > 1 else "")
    )
    base = Path(os.path.relpath(search.file.resolve(), path.resolve().parent)).as_posix()
    flat = settings(found)  # what is chosen anew has dropped the arguments of the old
    write_whole(path, as_difference(base, description, changes, {key: flat[key] for key in changes if key in flat}))
    written = load_experiment(path)
    assert differences(written, load_base(path)) == changes and not differences(written, found)
    return written
