"""Numbers at their limits: each gives a defined result or a clear refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import LITE0, SMALL, of_pairs

from data_kaist.dataset import collate
from data_kaist.detections import read_detections, write_coco_results, write_kaist
from data_kaist.structures import Annotations, DetectionTable, Targets
from ssd_effnet.build import build_criterion, build_dataset, build_detector, build_postprocess
from ssd_effnet.config.loading import ExperimentConfig, load_experiment
from ssd_effnet.detection.losses import DetectionLoss, FocalLoss, MultiBoxLoss
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import score
from ssd_effnet.models.detector import Detector
from ssd_effnet.structures import NonFiniteError, RawOutputs
from ssd_effnet.training.module import TrainingModule

HEIGHT, WIDTH = 64, 96
LOSSES = [DetectionLoss(MultiBoxLoss()), DetectionLoss(FocalLoss())]


@pytest.fixture(scope="module")
def experiment() -> ExperimentConfig:
    return load_experiment(LITE0, list(SMALL))


@pytest.fixture(scope="module")
def detector(experiment: ExperimentConfig) -> Detector:
    torch.manual_seed(0)
    return build_detector(experiment, pretrained=False)[0]


def outputs(classes: int, anchors: int = 600, scale: float = 1.0) -> RawOutputs:
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(anchors, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    sizes = 4 + 60 * torch.rand(anchors, 2, generator=generator)
    return RawOutputs(
        (scale * torch.randn(2, anchors, classes, generator=generator)).requires_grad_(),
        (scale * torch.randn(2, anchors, 4, generator=generator)).requires_grad_(),
        torch.cat([centres, sizes], 1),
    )


def targets(count: int, *, ignore: bool = False, size: float = 0) -> Targets:
    """So many objects on each of two images; ``size`` pixels, or of all sizes."""
    generator = torch.Generator().manual_seed(count)
    first = torch.rand(2, max(count, 1), 2, generator=generator) * torch.tensor([WIDTH - 8.0, HEIGHT - 8.0])
    sizes = torch.full_like(first, size) if size else 3 + 60 * torch.rand(first.shape, generator=generator)
    labels = torch.full(first.shape[:2], int(count > 0))
    return Targets(torch.cat([first, first + sizes], 2), labels, torch.full_like(labels, ignore, dtype=torch.bool))


@pytest.mark.parametrize("criterion", LOSSES, ids=["multibox", "focal"])
@pytest.mark.parametrize(
    "truth",
    [targets(0), targets(1), targets(300), targets(300, ignore=True), targets(3, size=5000), targets(3, size=1e-3)],
    ids=["no objects", "one", "300", "all ignored", "larger than the image", "smaller than a pixel"],
)
def test_losses_and_gradients_are_finite(criterion: DetectionLoss, truth: Targets) -> None:
    raw = outputs(2 if isinstance(criterion.class_loss, MultiBoxLoss) else 1)
    losses = criterion(raw, truth)
    losses.total.backward()
    assert torch.isfinite(losses.total) and losses.total >= 0
    for tensor in (raw.cls_logits, raw.bbox_regression):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()
    if truth.ignore.any():
        assert losses.positives == 0 and losses.loc == 0
    elif truth.is_object.any():
        assert losses.positives >= truth.is_object.any(1).sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_with_its_frames(value: float, few_pairs: Path) -> None:
    e = of_pairs(few_pairs)
    dataset = build_dataset(e, "val")
    batch = collate([dataset[0], dataset[1]])

    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> RawOutputs:
            raw = outputs(2)
            return replace(raw, cls_logits=raw.cls_logits.detach() * 0 + torch.tensor([value, -value]))

    module = TrainingModule(Broken(), build_criterion(e), build_postprocess(e), lambda *_: None, {}, {})  # type: ignore[arg-type]
    module.trainer = type("T", (), {"current_epoch": 0, "global_step": 7})()  # type: ignore[assignment]
    with pytest.raises(NonFiniteError, match="the detector's outputs are not finite on visible/4, visible/5"):
        module.test_step(batch, 0)


def test_ten_thousand_detections_of_equal_score_are_scored(tmp_path: Path) -> None:
    truth = [Annotations.from_rows([[10, 5, 30, 65]], size=(512, 640))]
    numbers = np.arange(10_000)
    x, y = numbers % 600, 5 + numbers // 600 * 10
    boxes = np.stack([x, y, x + 20, y + 60], 1).astype(np.float64)
    table = DetectionTable(np.zeros_like(numbers), boxes, np.full(len(numbers), 0.5))
    scores = score(MissRateEvaluator(truth), table)
    rates = scores.miss_rates["matlab"]["reasonable_all"]
    assert 0 < rates.mr <= 1 and scores.recall == 1 and 0 <= scores.ap["AP"] <= 100
    for name, write in (("d.txt", write_kaist), ("d.json", write_coco_results)):
        write(tmp_path / name, table)
        again = score(MissRateEvaluator(truth), read_detections(tmp_path / name, 1))
        assert again.as_dict() == scores.as_dict()


def test_bfloat16_agrees_with_float32(detector: Detector, experiment: ExperimentConfig) -> None:
    """Eight bits of a number are left: outputs differ by at most 5 % of their spread, the loss by 2 %.

    With the norms' running statistics: those of a small batch of noise magnify any rounding.
    """
    images = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector.eval()
    with torch.no_grad():
        single = detector(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = detector(images)
    for a, b in ((single.cls_logits, half.cls_logits), (single.bbox_regression, half.bbox_regression)):
        assert (a - b.float()).square().mean().sqrt() < 0.05 * a.std()
    losses = [build_criterion(experiment)(raw, targets(3)).total for raw in (single, half)]
    assert torch.isclose(*losses, rtol=0.02)
