"""The project's stages against the plain reference implementations that the benchmarks compare them with."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data_kaist.images import read_image
from data_kaist.structures import Annotations, DetectionTable, Targets
from data_kaist.transforms import Sample
from ssd_effnet.benchmark.reference import stages as reference
from ssd_effnet.benchmark.reference.network import PackageBackbone
from ssd_effnet.build import build_transforms
from ssd_effnet.config.loading import ExperimentConfig
from ssd_effnet.detection.boxes import cxcywh_to_xyxy, nms
from ssd_effnet.detection.losses import DetectionLoss, MultiBoxLoss
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.models.backbones import EfficientNet
from ssd_effnet.structures import RawOutputs


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes_of(seed: int, *shape: int, largest: float = 90) -> torch.Tensor:
    """xyxy, in 320x256 pixels."""
    numbers = torch.rand(*shape, 4, generator=generator(seed))
    scale = torch.tensor([320.0, 256, largest, largest])
    return cxcywh_to_xyxy(numbers * scale + torch.tensor([0.0, 0, 6, 6]))


def anchors_of(seed: int, count: int) -> torch.Tensor:
    b = boxes_of(seed, count)
    return torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1)


# --- loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("people", [0, 1, 5])
@pytest.mark.parametrize("classes", [2, 3])
def test_loss_and_gradients_are_those_of_the_loop(people: int, classes: int) -> None:
    anchors = anchors_of(1, 700)
    boxes = boxes_of(2, 4, people)
    labels = torch.randint(1, classes, (4, people), generator=generator(3))
    padded = torch.cat([boxes, torch.zeros(4, 1, 4)], 1), torch.cat([labels, torch.zeros(4, 1).long()], 1)
    targets = Targets(*padded, torch.zeros(4, people + 1, dtype=torch.bool))
    values = []
    for own in (True, False):
        logits = torch.randn(4, 700, classes, generator=generator(4)).requires_grad_()
        offsets = torch.randn(4, 700, 4, generator=generator(5)).requires_grad_()
        if own:
            losses = DetectionLoss(MultiBoxLoss())(RawOutputs(logits, offsets, anchors), targets)
            cls, loc = losses.cls, losses.loc
        else:
            cls, loc = reference.multibox_loss(logits, offsets, anchors, list(boxes), list(labels))
        (cls + loc).backward()
        values.append((cls, loc, logits.grad, offsets.grad))
    for own_value, plain in zip(*values, strict=True):
        torch.testing.assert_close(own_value, plain, rtol=1e-6, atol=1e-6)


# --- detections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 400])
@pytest.mark.parametrize("most", [None, 20])
def test_nms_keeps_the_boxes_that_the_loop_keeps(count: int, most: int | None) -> None:
    boxes = boxes_of(count, count)
    scores = torch.arange(count, 0, -1.0)
    kept = reference.nms(boxes, scores, 0.45)
    found = nms(boxes[None], torch.ones(1, count, dtype=torch.bool), 0.45, most=most)[0].nonzero()[:, 0].tolist()
    assert found[:most] == kept[:most] if most else found == kept


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 1.0])
def test_postprocess_finds_what_the_loop_finds(threshold: float) -> None:
    anchors = anchors_of(0, 900)
    logits = 3 * torch.randn(3, 900, 2, generator=generator(1))
    logits[2, :, 0] = 30  # an image with nobody on it
    offsets = 0.5 * torch.randn(3, 900, 4, generator=generator(2))
    detections = PostProcess(threshold, 900, 0.45, 50)(RawOutputs(logits, offsets, anchors), (256, 320))
    plain = reference.postprocess(
        logits, offsets, anchors, (256, 320), score_threshold=threshold, nms_iou=0.45, top_k=50
    )
    for i, (boxes, scores) in enumerate(plain):
        if threshold == 0:  # a score of 0 is no detection of ours
            boxes, scores = boxes[scores > 0], scores[scores > 0]
        own_boxes, own_scores, _ = detections.image(i)
        torch.testing.assert_close(own_boxes, boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(own_scores, scores, rtol=0, atol=0)


def test_the_best_candidates_alone_enter_nms() -> None:
    anchors = anchors_of(0, 300)
    logits = torch.randn(2, 300, 2, generator=generator(1))
    offsets = torch.zeros(2, 300, 4)
    every = PostProcess(0.01, 300, 1.0, 300)(RawOutputs(logits, offsets, anchors), (10_000, 10_000))
    best = PostProcess(0.01, 40, 1.0, 300)(RawOutputs(logits, offsets, anchors), (10_000, 10_000))
    assert best.scores.shape[1] == 40
    assert torch.equal(best.scores, every.scores[:, :40])


# --- miss rate ----------------------------------------------------------------------------------------------------


def detections_and_truth(seed: int, images: int) -> tuple[list[Annotations], DetectionTable]:
    """Detections near people and elsewhere, with some equal scores."""
    random = np.random.default_rng(seed)
    annotations, rows = [], []
    for image in range(images):
        n = int(random.integers(0, 5))
        height = random.uniform(30, 150, n)
        left, top = random.uniform(-3, 560, n), random.uniform(-3, 380, n)
        boxes = np.stack([left, top, left + 0.4 * height, top + height], 1)
        annotations.append(
            Annotations.from_rows(
                boxes,
                [str(random.choice(["person", "person", "people"])) for _ in range(n)],
                occlusion=random.integers(0, 3, n).tolist(),
                ignore=(random.random(n) < 0.1).tolist(),
                size=(512, 640),
                daytime="day" if image % 3 else "night",
            )
        )
        for box in annotations[-1].boxes_xyxy:
            if random.random() < 0.7:
                rows.append((image, *(box + random.normal(0, 4, 4)), float(random.random())))
        for _ in range(int(random.integers(0, 3))):
            x, y = random.uniform(0, 600), random.uniform(0, 400)
            rows.append((image, x, y, x + 40, y + 90, float(random.random())))
    table = np.array(rows)
    table[:, 1:5] = np.concatenate([np.minimum(table[:, 1:3], table[:, 3:5] - 2), table[:, 3:5]], 1)
    return annotations, DetectionTable(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5])


def as_dictionaries(
    annotations: list[Annotations], table: DetectionTable
) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    truth = [
        [
            {"label": label, "bbox": box, "height": height, "occlusion": occlusion, "ignore": ignore}
            for label, box, height, occlusion, ignore in zip(
                a.labels, xywh(a.boxes_xyxy), a.height, a.occlusion, a.ignore, strict=True
            )
        ]
        for a in annotations
    ]
    rows = zip(table.image_index.tolist(), xywh(table.boxes_xyxy), table.scores.tolist(), strict=True)
    return truth, [{"image": image, "bbox": box, "score": score} for image, box, score in rows]


def xywh(boxes: np.ndarray) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("daytime", [None, "day", "night"])
def test_the_miss_rate_is_that_of_the_loop_and_lines_have_no_order(seed: int, daytime: str | None) -> None:
    annotations, table = detections_and_truth(seed, 60)
    images = [i for i, a in enumerate(annotations) if daytime in (None, a.daytime)]
    truth, found = as_dictionaries(annotations, table)
    plain = reference.miss_rate(truth, found, images, (512, 640))
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = DetectionTable(table.image_index[order], table.boxes_xyxy[order], table.scores[order])
    evaluator = MissRateEvaluator(annotations)
    for rows in (table, shuffled):
        own = evaluator.match(rows).result(f"reasonable_{daytime or 'all'}").mr
        assert own == pytest.approx(plain, rel=1e-12)


# --- network ------------------------------------------------------------------------------------------------------


def test_the_package_in_a_detector_is_the_projects_own_network() -> None:
    """Same weights, strides and stochastic depth: what is timed against each other is the same step."""
    torch.manual_seed(0)
    own = EfficientNet("efficientnet-b0", [2, 3, 4], "halving").train()
    theirs = PackageBackbone(own, "efficientnet-b0").train()
    images = torch.rand(2, 3, 64, 96, generator=generator(0))
    maps = []
    for network in (own, theirs):
        torch.manual_seed(1)
        maps.append(network(images))
    for a, b in zip(*maps, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


# --- transforms ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Smooth pictures of 256x320, as scenes are smooth."""
    random = np.random.default_rng(0)
    paths = (tmp_path / "visible.jpg", tmp_path / "lwir.jpg")
    for path, channels in zip(paths, (3, 1), strict=True):
        noise = random.integers(0, 256, (32, 40, channels), dtype=np.uint8)
        assert cv2.imwrite(str(path), cv2.resize(noise, (320, 256), interpolation=cv2.INTER_CUBIC))
    return paths


@pytest.mark.parametrize("train", [False, True])
def test_transforms_agree_within_what_two_resamplers_differ_by(pair: tuple[Path, Path], train: bool) -> None:
    """Pictures differ by at most 3 grey levels on average: Pillow smooths where it shrinks, OpenCV does not."""
    experiment = ExperimentConfig()
    experiment.input.size, experiment.input.modality = [192, 240], "early"
    own = build_transforms(experiment, "train" if train else "test")
    mean, std = np.array(experiment.input.mean), np.array(experiment.input.std)
    plain = reference.Chain((192, 240), experiment.input.mean, experiment.input.std, train=train)
    boxes = np.array([[50, 60, 90, 160], [200, 100, 225, 170], [5, 90, 30, 150]], np.float32)
    visible, lwir = read_image(pair[0], colour=True), read_image(pair[1], colour=False)
    for seed in range(40):
        sample = Sample(visible, lwir, boxes, np.ones(3, np.int64), np.zeros(3, bool), (256, 320))
        after = own(sample, np.random.default_rng(seed))
        images, found = plain(*pair, boxes, np.random.default_rng(seed))
        assert after.visible is not None and after.lwir is not None
        pixels = (images.transpose(1, 2, 0) * std + mean) * 255
        difference = np.abs(pixels - np.concatenate([after.visible, after.lwir[..., None]], 2))
        assert difference.mean() <= (3 if train else 1.5)
        np.testing.assert_allclose(after.boxes_xyxy, found, atol=1e-3)
