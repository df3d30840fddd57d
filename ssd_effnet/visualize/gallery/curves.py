"""Plots miss rate over FPPI of runs and result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_kaist.errors import DataError
from ssd_effnet.evaluation.ground_truth import load_ground_truth
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.plots import miss_rate_figure, save_figure
from ssd_effnet.evaluation.scores import Scores, score, short_names
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.visualize.gallery.finished_run import FinishedRun


def write_curves(
    files: Sequence[Path],
    out: Path,
    *,
    annotations: Path | None = None,
    split: str | None = None,
    rules: str = "matlab",
    subsets: Sequence[str] = REASONABLE,
    size: Sequence[float] | None = None,
    order: str = "best",
    names: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> dict[str, Scores]:
    """Draw miss rate over FPPI, one panel per subset. Returns the scores by detector.

    Args:
        files: run directories, COCO results, KAIST texts and devkit folders, mixed.
        out: picture; its suffix chooses the format.
        annotations: COCO file or data set's root to score against; None takes the test split of the first run.
        split: frames to take from a root; None: test-all-20.
        rules, subsets: see :mod:`ssd_effnet.evaluation.subsets`.
        size: width and height of the whole, inches.
        order: of the legends: ``best`` first, or as ``given``.
        names: of the files in the legends; empty: their own.
        overrides: where the runs' data are.
    """
    if names and (len(names) != len(files) or len(set(names)) < len(names)):
        raise DataError(f"{len(files)} files need as many different names, not {', '.join(names)}")
    names_of = dict(zip(files, names or short_names(files), strict=True))
    if annotations is None:
        runs = FinishedRun.load_all(files, overrides, split=split, leave_out=True)
        evaluator = next(iter(runs.values())).truth
        tables = {path: run.detections for path, run in runs.items()}
    else:
        results = [path / "detections.json" if (path / "config.yaml").is_file() else path for path in files]
        truth, found = load_ground_truth(annotations, split).read_all(results)
        evaluator, tables = MissRateEvaluator(truth.annotations), dict(zip(files, found, strict=True))
        truth.say_doubts(dict(zip(results, found, strict=True)), evaluator)
    scores = {names_of[path]: score(evaluator, table, (rules,), with_ap=False) for path, table in tables.items()}
    save_figure(miss_rate_figure(scores, rules, subsets, size, best_first=order == "best"), out, dpi=120)
    return scores
