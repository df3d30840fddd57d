"""Pictures of any shape, padded: boxes come back to the original picture from training, Predictor and pages."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from untrained import LITE0, of_pairs, write_checkpoint

from data_kaist.dataset import collate
from data_kaist.transforms import Sample
from ssd_effnet import load_detector
from ssd_effnet.build import build_criterion, build_dataset, build_normalize, build_transforms
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.detection.boxes import xyxy_to_cxcywh
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.structures import RawOutputs
from ssd_effnet.visualize import features

RANDOM = np.random.default_rng(0)
# 16:9, tall, of the input's own shape, of one row
SIZES = ((90, 160), (160, 60), (64, 96), (1, 40))
PAIRS = [(RANDOM.integers(0, 256, (*size, 3), np.uint8), RANDOM.integers(0, 256, size, np.uint8)) for size in SIZES]
LETTERBOX = "input.fit=letterbox"
LOADED = load_experiment(LITE0, [LETTERBOX])


def raw(boxes_xyxy: np.ndarray) -> RawOutputs:
    """Outputs whose anchors are these boxes, all sure and not moved."""
    anchors = xyxy_to_cxcywh(torch.from_numpy(boxes_xyxy))
    logits = torch.tensor([[0.0, 5.0]]).expand(1, len(anchors), 2)
    return RawOutputs(logits, torch.zeros(1, len(anchors), 4), anchors)


side = st.integers(1, 4000)


@settings(max_examples=40)
@given(size=st.tuples(side, side), to=st.tuples(st.integers(32, 1280), st.integers(32, 1280)), data=st.data())
def test_boxes_come_back_to_the_original(size: tuple[int, int], to: tuple[int, int], data: st.DataObject) -> None:
    height, width = size
    ends = data.draw(st.tuples(*[st.floats(0, 1)] * 4))
    (x1, x2), (y1, y2) = np.sort(ends[:2]) * width, np.sort(ends[2:]) * height
    box = np.array([[x1, y1, x2, y2]], np.float32)
    e = LOADED
    e.input.size = list(to)
    sample = Sample(None, np.zeros(size, np.uint8), box, np.ones(1, np.int64), np.zeros(1, bool), size)
    batch = collate([build_transforms(e, "test")(sample, np.random.default_rng(0))])
    if not batch.targets.is_object.any():  # no more than a pixel is left
        return
    outputs = raw(batch.targets.boxes_xyxy[0].numpy())
    found = PostProcess()(outputs, to, batch.original_sizes, batch.content_sizes)
    np.testing.assert_allclose(found.boxes_xyxy[0, 0].numpy(), box[0], rtol=0, atol=1e-3)


def test_padding_holds_no_detection_and_boxes_end_at_the_picture() -> None:
    """The upper 40 of 64 rows are a picture of 80x128, the rest is padding."""
    boxes = np.array([[10, 20, 30, 60], [50, 41, 60, 64], [50, 40, 60, 64], [0, 39, 64, 64]], np.float32)
    found = PostProcess()(raw(boxes), (64, 64), torch.tensor([[80, 128]]), torch.tensor([[40, 64]]))
    kept, scores, labels = found.image(0)
    assert sorted(kept.tolist()) == [[0, 78, 128, 80], [20, 40, 60, 80]]
    assert scores.min() > 0.9
    assert labels.tolist() == [1, 1]
    assert int((found.scores > 0).sum()) == 2


@pytest.mark.parametrize("modality", ["visible", "lwir", "early"])
def test_padding_is_the_mean_which_normalisation_takes_to_nothing(modality: str) -> None:
    mean = "input.mean=[0.1,0.5,0.9,0.3]"
    for normalize, wanted in ((True, [26, 128, 230, 76]), (False, [0, 0, 0, 0])):  # 25.5 and 127.5 to even
        keys = [LETTERBOX, mean, "input.size=[64,96]", f"input.modality={modality}", f"input.normalize={normalize}"]
        e = load_experiment(LITE0, keys)
        visible, lwir = PAIRS[0]
        sample = Sample(visible, lwir, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool), (90, 160))
        after = build_transforms(e, "test")(sample, np.random.default_rng(0))
        assert after.visible is not None and after.lwir is not None
        assert after.content_size == (54, 96)
        assert [*after.visible[60, 5], after.lwir[60, 5]] == wanted
        channels = {"visible": slice(0, 3), "lwir": slice(3, 4), "early": slice(0, 4)}[modality]
        padding = torch.tensor(wanted, dtype=torch.float32)[channels].reshape(1, -1, 1, 1)
        assert build_normalize(e)(padding).abs().max() < 1 / 255  # half a grey level by the deviation, 0.502


def test_anchors_on_padding_match_nothing_and_heights_stay_those_of_the_original(few_pairs: Path) -> None:
    """96x128 in 64x96: by two thirds to 64x85, eleven columns of padding; people of 64 pixels enter with 42.7."""
    e = of_pairs(few_pairs, LETTERBOX, "augment.names=[]", "data.min_height=63")
    dataset = build_dataset(e, "train")
    batch = collate([dataset[i] for i in range(4)])
    assert batch.content_sizes.tolist() == [[64, 85]] * 4
    assert batch.targets.is_object.all()  # 64 pixels are not below 63
    heights = batch.targets.boxes_xyxy[:, 0, 3] - batch.targets.boxes_xyxy[:, 0, 1]
    torch.testing.assert_close(heights, torch.full((4,), 64 * 2 / 3))
    assert all(of_frame.height[0] == 64 for of_frame in dataset.annotations)
    grid = torch.cartesian_prod(torch.arange(4.0, 96, 8), torch.arange(4.0, 64, 8), torch.tensor([16.0, 40.0]))
    anchors = torch.cat((grid, grid[:, 2:]), dim=1)
    outputs = RawOutputs(torch.zeros(4, len(anchors), 2), torch.zeros(4, len(anchors), 4), anchors)
    positive = build_criterion(e).matcher(outputs, batch.targets).positive.any(0)
    assert positive.any() and (anchors[positive][:, 0] < 85).all()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("letterbox") / "best.ckpt", LETTERBOX, "input.modality=early")


def test_pictures_of_several_shapes_at_once_and_alone(checkpoint: Path) -> None:
    predictor = load_detector(checkpoint, device="cpu")
    together = predictor.predict(PAIRS)
    for pair, (height, width), found in zip(PAIRS, SIZES, together, strict=True):
        (alone,) = predictor.predict([pair])
        assert len(found) and found.size == (height, width)
        assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy <= (width, height, width, height)).all()
        assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()
        np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, rtol=0, atol=1e-3)
    shaped = load_detector(write_checkpoint(checkpoint.with_name("s.ckpt"), "input.modality=early"), device="cpu")
    np.testing.assert_array_equal(shaped.predict(PAIRS[2:3])[0].boxes_xyxy, predictor.predict(PAIRS[2:3])[0].boxes_xyxy)


def test_features_are_boxes_on_the_picture(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(features, "_detection_picture", lambda path, seen, chosen, *rest: shown.append(chosen))
    monkeypatch.setattr(features, "_levels_picture", lambda *given: None)
    predictor = load_detector(checkpoint, device="cpu")
    for detection in range(1, 11):
        features.write_features(predictor, predictor.prepare(PAIRS[0]), tmp_path, truth=False, detection=detection)
    boxes = np.concatenate([of.boxes_xyxy for of in shown])
    assert len(boxes) == 10 and (boxes <= (96, 54, 96, 54)).all() and boxes[:, 2].max() > 60
