"""What a detector sees: its maps, evidence of a detection, the loss's own matches."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import command
from torch import nn
from untrained import LITE0, SIX_LEVELS, splits, write_checkpoint

from data_kaist.dataset import collate
from data_kaist.errors import DataError, ImageError
from data_kaist.structures import Targets
from ssd_effnet.build import build_detector, build_postprocess
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.detection.losses import DetectionLoss, MultiBoxLoss
from ssd_effnet.detection.matching import Assignment
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.inference.predictor import Predictor, load_detector
from ssd_effnet.models.anchors import AnchorGenerator
from ssd_effnet.models.detector import Detector, Normalize
from ssd_effnet.models.heads import SSDHead
from ssd_effnet.structures import Level, RawOutputs
from ssd_effnet.visualize.features import evidence, find_sample, matched_anchors, score_logit, see, write_features

RANDOM = np.random.default_rng(0)
IMAGE = torch.from_numpy(RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8))


@pytest.fixture(scope="module")
def checkpoints(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    keys = {m: (f"input.modality={m}", *splits(few_pairs)) for m in ("visible", "lwir", "early", "halfway")}
    return {m: write_checkpoint(folder / f"{m}.ckpt", *keys[m], small=SIX_LEVELS) for m in keys}


@pytest.fixture(scope="module")
def predictor(checkpoints: dict[str, Path]) -> Predictor:
    return load_detector(checkpoints["visible"], device="cpu")


class Pool(nn.Module):
    """Two channels: the brightness of each 16x16 block, and its contrary."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = [Level("blocks", 2, 16)]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        bright = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 16)
        return [torch.cat((bright, 1 - bright), dim=1)]


@pytest.fixture
def by_hand() -> Detector:
    """A person is a bright block: the head looks at the first channel of an anchor's own block and nowhere else."""
    backbone = Pool()
    head = SSDHead(backbone.levels, 1, 2)
    for convolution in (*head.classification, *head.regression):
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    classification = head.classification[0]
    assert isinstance(classification, nn.Conv2d) and classification.bias is not None
    with torch.no_grad():
        classification.weight[1, 0, 1, 1] = 9
        classification.bias[1] = -4
    anchors = AnchorGenerator(backbone.levels, [16.0], [1.0], [1.0], (64, 96))
    return Detector(Normalize([0.0] * 3, [1.0] * 3), {"backbone": backbone}, head, anchors).eval()


def bright_at(row: int, column: int, also: tuple[int, int] | None = None) -> torch.Tensor:
    image = torch.zeros((1, 3, 64, 96), dtype=torch.uint8)
    for r, c in filter(None, ((row, column), also)):
        image[:, :, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16] = 255
    return image


def test_evidence_lies_where_the_only_information_is(by_hand: Detector) -> None:
    seen = see(by_hand, bright_at(2, 4))
    postprocess = PostProcess()
    best = postprocess(seen.outputs, seen.input_size).table([0], ["person"])
    anchor, level, anchor_cxcywh = seen.anchor_of(best)
    assert (anchor, level.name) == (2 * 6 + 4, "blocks")
    assert best.scores[0] == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-6) and (best.scores[1:] < 0.02).all()
    np.testing.assert_allclose(best.boxes_xyxy[0], (64, 32, 80, 48), atol=1e-4)
    np.testing.assert_allclose(anchor_cxcywh, (72, 40, 16, 16))
    ((of_map, at_place),) = evidence(seen, best, postprocess.activation)
    assert of_map.part == "backbone"
    # the head is linear: what its maps add to the logit is gradient times value; -4 is the bias
    assert np.argwhere(at_place).tolist() == [[2, 4]] and at_place[2, 4] == pytest.approx(9, rel=1e-6)


def test_evidence_is_that_of_one_anchor(by_hand: Detector) -> None:
    seen = see(by_hand, bright_at(2, 4, also=(1, 1)))
    first = PostProcess()(seen.outputs, seen.input_size).table([0], ["person"])
    ((_, at_place),) = evidence(seen, first, "softmax")
    assert np.argwhere(at_place).tolist() == [[*divmod(seen.anchor_of(first)[0], 6)]]


def test_the_logit_is_that_of_the_score() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0])
    for label in (1, 2):
        assert score_logit(logits, label, "softmax").sigmoid() == pytest.approx(float(logits.softmax(0)[label]))
    assert score_logit(logits, 1, "sigmoid") == logits[0]


def test_maps_are_those_of_the_parts_each_once(predictor: Predictor) -> None:
    detector = predictor.detector
    with torch.no_grad():
        before, plain = detector(IMAGE), detector.features(IMAGE)
    seen = see(detector, IMAGE)
    assert torch.equal(seen.outputs.cls_logits, before.cls_logits)
    # lite0 widens its levels, and extras hand those on
    made = [*plain["backbone"], *plain["adapter"], *plain["extras"][3:]]
    assert [m.part for m in seen.maps] == ["backbone"] * 3 + ["adapter"] * 3 + ["extras"] * 3
    for m, x in zip(seen.maps, made, strict=True):
        np.testing.assert_array_equal(m.values, x[0].numpy())
        assert m.level.channels == x.shape[1]
    assert all(p.grad is None for p in detector.parameters())


@pytest.mark.parametrize(
    "settings", [(), ("class_loss.name=focal",), ("head.kind=efficientdet", "class_loss.name=focal")]
)
def test_detections_are_found_again_among_the_anchors(settings: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    e = load_experiment(LITE0, [*SIX_LEVELS, *settings, "data.classes={person: [person], cyclist: [cyclist]}"])
    detector = build_detector(e, pretrained=False)[0].eval()
    seen = see(detector, IMAGE)
    postprocess = build_postprocess(e)
    detections = postprocess(seen.outputs, (64, 96)).table([0], tuple(e.data.classes))
    assert len(detections) > 5 and {*detections.class_names} == {"person", "cyclist"}
    used = evidence(seen, detections, postprocess.activation)
    assert any(m.level == seen.anchor_of(detections)[1] for m, _ in used)
    assert all(np.isfinite(at_place).all() and at_place.min() >= 0 for _, at_place in used)


def last_anchors(outputs: RawOutputs, targets: Targets) -> Assignment:
    """The object's are the last eight anchors, and the first three are ignored."""
    object_index = torch.full((1, len(outputs.anchors_cxcywh)), -1)
    object_index[:, -8:] = 0
    ignored = torch.arange(object_index.shape[1])[None] < 3
    return Assignment.of_objects(outputs, targets, object_index, ignored, torch.ones_like(ignored, dtype=torch.float32))


def test_matching_is_what_the_loss_says(predictor: Predictor) -> None:
    seen = see(predictor.detector, IMAGE)
    targets = Targets(torch.tensor([[[10.0, 5, 30, 50]]]), torch.tensor([[1]]), torch.tensor([[False]]))
    criterion = DetectionLoss(MultiBoxLoss(), matcher=last_anchors)
    objects, ignored = matched_anchors(seen, targets, criterion)
    count = len(seen.outputs.anchors_cxcywh)
    assert np.flatnonzero(objects == 0).tolist() == list(range(count - 8, count))
    assert ignored.nonzero()[0].tolist() == [0, 1, 2]
    assert int(criterion(seen.outputs, targets).positives) == 8


def test_a_frame_of_the_split_a_file_and_a_pair(
    checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path, predictor: Predictor
) -> None:
    by_name, known = find_sample(predictor, "visible/4")
    assert known and len(by_name.boxes_xyxy) == 1 and by_name.size == (64, 96)
    for side in ("visible", "lwir"):
        (tmp_path / side).mkdir()
        shutil.copy(few_pairs / side / "4.png", tmp_path / side / "a.png")
    file = str(tmp_path / "visible" / "a.png")
    elsewhere, known = find_sample(predictor, file)
    assert not known
    np.testing.assert_array_equal(elsewhere.visible, by_name.visible)

    early = load_detector(checkpoints["early"], device="cpu")
    of_split, known = find_sample(early, "visible/4")
    given, unknown = find_sample(early, file)
    assert known and not unknown
    assert torch.equal(collate([of_split]).images, collate([given]).images)
    shutil.copy(file, tmp_path / "alone.png")
    with pytest.raises(ImageError, match=r"alone\.png: has no lwir image"):
        find_sample(early, str(tmp_path / "alone.png"))
    with pytest.raises(ImageError, match=r"visible/44: is neither a file nor a frame of the test split 'val\.json'"):
        find_sample(predictor, "visible/44")


@pytest.mark.parametrize(
    "modality", ["lwir", *(pytest.param(m, marks=pytest.mark.slow) for m in ("visible", "early", "halfway"))]
)
def test_every_picture_and_the_table(checkpoints: dict[str, Path], tmp_path: Path, modality: str) -> None:
    predictor = load_detector(checkpoints[modality], device="cpu")
    sample, truth = find_sample(predictor, "visible/5")
    out = tmp_path / "a folder, größer"
    pictures, table = write_features(predictor, sample, out, truth=truth, detection=2)
    assert [path.name for path in pictures] == ["levels.png", "anchors.png", "detection.png"]
    assert {*out.iterdir()} == {*pictures} and all(cv2.imread(str(path)) is not None for path in pictures)
    assert next(iter(table.columns[0].cells)) == "1" and table.row_count == 12
    pictures, _ = write_features(predictor, sample, out, truth=False)
    assert [path.name for path in pictures] == ["levels.png", "detection.png"] and {*out.iterdir()} == {*pictures}


def test_wrong_numbers_and_nothing_found(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, _ = find_sample(predictor, "visible/5")
    for number in (0, 500):
        with pytest.raises(DataError, match=rf"visible/5: has \d+ detections, counted from 1; there is no {number}"):
            write_features(predictor, sample, tmp_path, truth=True, detection=number)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match="file: is a file, and pictures are written into a folder"):
        write_features(predictor, sample, file, truth=True)
    assert not list(tmp_path.glob("*.png"))
    monkeypatch.setattr(predictor.experiment.postprocess, "score_threshold", 0.999)
    pictures, table = write_features(predictor, sample, tmp_path, truth=True)
    assert table.row_count == 0 and "detection.png" not in [path.name for path in pictures]
    with pytest.raises(DataError, match="has 0 detections"):
        write_features(predictor, sample, tmp_path, truth=True, detection=2)


def test_the_command(checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path) -> None:
    line = ("--image", "visible/4", "--out", tmp_path / "out")
    done = command("visualize", "features", checkpoints["visible"], *line)
    assert done.returncode == 0 and "visible/4" in done.stdout
    assert (tmp_path / "out" / "detection.png").is_file()
    done = command("visualize", "features", checkpoints["visible"], "--image", file := few_pairs / "visible" / "4.png")
    assert f"features_{str(file)[1:].replace('/', '_')}/levels.png" in done.stdout  # not that of another 4.png
    shutil.copy(checkpoints["visible"], run := tmp_path / "run.ckpt")
    (tmp_path / "environment.json").write_text('{"data": {"test": {"fingerprint": "of other data"}}}')
    done = command("visualize", "features", run, "--image", "visible/4", "--out", tmp_path / "other")
    assert done.returncode == 1 and "its test data have changed" in done.stderr and not (tmp_path / "other").exists()
    done = command("visualize", "features", tmp_path / "nothing", "--image", "visible/4")
    assert done.returncode == 1 and "there is no such checkpoint" in done.stderr and done.stderr.count("\n") == 1
