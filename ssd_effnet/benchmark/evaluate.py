"""Speed of the miss rate of a test split, against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from data_kaist.structures import Annotations, DetectionTable, xywh_rows
from ssd_effnet.benchmark import scene
from ssd_effnet.benchmark.reference import stages as reference
from ssd_effnet.benchmark.rows import Row, agree, compared
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.training.runtime import in_turns


def benchmark_evaluate(*, runs: int = 5, images: int = 2252, lines: int = 6000) -> Iterator[Row]:
    """Miss rates all, day and night; preparing the ground truth is a row of its own."""
    annotations, table = scene.test_split(images, lines)
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = table.rows(order)
    truth, rows = dictionaries(annotations, table)
    of_subset = [[i for i, a in enumerate(annotations) if time in (None, a.daytime)] for time in (None, "day", "night")]

    evaluator = MissRateEvaluator(annotations)

    def own(table: DetectionTable = table) -> torch.Tensor:
        matcher = evaluator.match(table)
        return torch.tensor([matcher.result(name).mr for name in REASONABLE], dtype=torch.float64)

    def plain() -> torch.Tensor:
        rates = [reference.miss_rate(truth, rows, chosen, scene.SIZE) for chosen in of_subset]
        return torch.tensor(rates, dtype=torch.float64)

    agreement = agree("miss rates", own(), plain(), 1e-12)
    agree("miss rates of shuffled lines", own(shuffled), own(), 1e-12)
    case = f"all, day, night; {images:,} images, {lines:,} lines"
    times = in_turns({"own": own, "reference": plain}, runs)
    agreement = f"{agreement}, whatever the order of lines"
    yield compared("evaluate", case, times, agreement=agreement)
    packed = in_turns({"own": lambda: MissRateEvaluator(annotations)}, runs)
    yield compared("evaluate", f"ground truth of {images:,} images packed, once per run", packed, reference=None)


def dictionaries(
    annotations: list[Annotations], table: DetectionTable
) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Ground truth and detections as :func:`ssd_effnet.benchmark.reference.stages.miss_rate` wants them."""
    keys = ("label", "bbox", "height", "occlusion", "ignore")
    truth = []
    for a in annotations:
        columns = (a.labels, xywh_rows(a.boxes_xyxy), a.height.tolist(), a.occlusion.tolist(), a.ignore.tolist())
        truth.append([dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)])
    lines = zip(table.image_index.tolist(), xywh_rows(table.boxes_xyxy), table.scores.tolist(), strict=True)
    return truth, [{"image": image, "bbox": box, "score": score} for image, box, score in lines]
