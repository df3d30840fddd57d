"""Plots miss rate over FPPI of runs and result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_kaist.errors import DataError
from data_kaist.structures import DetectionTable
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import (
    Scores,
    load_ground_truth,
    miss_rate_figure,
    save_figure,
    score,
    short_names,
)
from ssd_effnet.evaluation.subsets import REASONABLE

SUFFIXES = (".png", ".svg", ".pdf", ".jpg")


def write_curves(
    files: Sequence[Path],
    out: Path,
    *,
    annotations: Path | None = None,
    split: str = "test-all-20",
    rules: str = "matlab",
    subsets: Sequence[str] = REASONABLE,
    size: Sequence[float] | None = None,
    order: str = "best",
    names: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> dict[str, Scores]:
    """Draw the curves.

    Args:
        files: run directories, COCO results, KAIST texts and devkit folders, mixed.
        out: picture; its suffix chooses the format.
        annotations: COCO file or data set's root to score against; None takes the test split of the first run.
        split: frames to take from a root.
        rules: rule set.
        subsets: one panel each.
        size: width and height of the whole, inches.
        order: of the legends: ``best`` first, or as ``given``.
        names: of the files in the legends; empty: their own.
        overrides: where the runs' data are.

    Returns:
        The scores by detector.

    Raises:
        DataError, ConfigError: one sentence on the file that cannot be read, or if there is nothing to score against.
    """
    if out.suffix not in SUFFIXES:
        raise DataError(f"{out}: a picture's name should end in {', '.join(SUFFIXES)}")
    runs = [path for path in files if (path / "config.yaml").is_file()]
    if names and (len(names) != len(files) or len(set(names)) < len(names)):
        raise DataError(f"{len(files)} files need as many different names, not {', '.join(names)}")
    names_of = dict(zip(files, names or short_names(files), strict=True))
    tables: dict[str, DetectionTable] = {}
    if annotations is None:
        if not runs:
            raise DataError("there is no run among the files, so say with --annotations what they are scored against")
        # imports torch
        from ssd_effnet.visualize.gallery.drawing import FinishedRun

        tested = FinishedRun.load_runs(runs, overrides, leave_out=True)
        truth = next(iter(tested.values())).ground_truth()
        tables = {names_of[path]: run.detections for path, run in tested.items()}
    else:
        truth = load_ground_truth(annotations, split)
        truth, found = truth.read_all([path / "detections.json" if path in runs else path for path in files])
        tables = dict(zip(names_of.values(), found, strict=True))
    for path in files:
        if names_of[path] not in tables and path not in runs:  # a run is left out
            tables[names_of[path]] = truth.read_detections(path)
    evaluator = MissRateEvaluator(truth.annotations)
    scores = {
        name: score(evaluator, tables[name], (rules,), with_ap=False) for name in names_of.values() if name in tables
    }
    save_figure(miss_rate_figure(scores, rules, subsets, size, best_first=order == "best"), out, dpi=120)
    return scores
