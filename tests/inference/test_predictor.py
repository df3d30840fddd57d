"""A checkpoint as a library: the same detections as the run's own, whatever form the images have; clear refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from untrained import of_pairs, write_checkpoint

from data_kaist.detections import read_detections
from data_kaist.errors import Doubt, ImageError
from data_kaist.structures import DetectionTable
from ssd_effnet import load_detector
from ssd_effnet.config.loading import ConfigError, ExperimentConfig
from ssd_effnet.inference.predictor import Predictor, RequestError
from ssd_effnet.models.weights import WeightsError
from ssd_effnet.structures import NonFiniteError, RawOutputs
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (80, 100, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (80, 100), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {m: write_checkpoint(folder / f"{m}.ckpt", f"input.modality={m}") for m in ("visible", "lwir", "early")}


@pytest.fixture(scope="module")
def predictors(checkpoints: dict[str, Path]) -> dict[str, Predictor]:
    return {modality: load_detector(path, device="cpu") for modality, path in checkpoints.items()}


@pytest.fixture(scope="module")
def finished(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentConfig, RunDirectory]:
    """A run of one epoch, tested on frames that are resized, in batches of two."""
    tested = ("data.val=", "data.test=train.json", "data.allow_overlap=true", "trainer.test_checkpoint=last")
    e = of_pairs(few_pairs, "input.modality=early", *tested)
    out = tmp_path_factory.mktemp("runs")
    run(e, out)
    return e, RunDirectory.of(e, out)


def same(a: DetectionTable, b: DetectionTable) -> None:
    assert len(a) and a.size == b.size and a.class_names == b.class_names
    np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_the_detections_are_those_of_the_run(few_pairs: Path, finished: tuple[ExperimentConfig, RunDirectory]) -> None:
    e, directory = finished
    pairs = [(few_pairs / "visible" / f"{i}.png", few_pairs / "lwir" / f"{i}.png") for i in range(4)]
    found = load_detector(directory.path, device="cpu").predict(pairs, batch_size=e.trainer.batch_size)
    written = read_detections(directory.detections_file, 4)
    assert len(written) > 4
    for i, detections in enumerate(found):
        of_image = written.of_image(i)
        # the file keeps a corner and a size to ten digits
        np.testing.assert_allclose(detections.boxes_xyxy, of_image.boxes_xyxy, rtol=0, atol=1e-4)
        np.testing.assert_allclose(detections.scores, of_image.scores, rtol=1e-5)  # norms are folded


@pytest.mark.parametrize(("part", "where"), [("cls_logits", 0), ("bbox_regression", 1)])
def test_outputs_that_are_not_finite_are_refused_and_the_image_named(
    part: str, where: int, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would count as nothing found."""
    detector = load_detector(checkpoints["visible"], device="cpu")
    whole = detector.folded

    def broken(images: torch.Tensor) -> RawOutputs:
        outputs: RawOutputs = whole(images)
        getattr(outputs, part)[where, 7, 1] = torch.nan
        return outputs

    monkeypatch.setattr(detector, "folded", broken)
    with pytest.raises(NonFiniteError, match=rf"^the detector's outputs are not finite on image {where}$"):
        detector.predict([COLOUR, COLOUR])


def test_all_forms_of_an_image_give_the_same(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    file = tmp_path / "ein Bild, «größer» 写真.png"
    file.write_bytes(cv2.imencode(".png", cv2.cvtColor(COLOUR, cv2.COLOR_RGB2BGR))[1].tobytes())
    tensor = torch.from_numpy(COLOUR).permute(2, 0, 1)
    forms = [COLOUR, COLOUR[:, ::-1][:, ::-1], tensor, tensor.contiguous(), file, str(file)]
    first, *others = predictors["visible"].predict(forms, batch_size=1)
    for other in others:
        same(first, other)
    assert first.boxes_xyxy.dtype == first.scores.dtype == np.float32 and first.size == (80, 100)
    assert set(first.class_names) == {"person"} and set(first.labels) == {1}
    assert (np.diff(first.scores) <= 0).all()
    assert (first.boxes_xyxy >= 0).all() and (first.boxes_xyxy <= (100, 80, 100, 80)).all()

    grey = torch.from_numpy(GREY)
    first, *others = predictors["lwir"].predict([GREY, grey, grey[None]], batch_size=1)
    for other in others:
        same(first, other)
    (a,) = predictors["early"].predict([(COLOUR, GREY)])
    (b,) = predictors["early"].predict([[tensor, grey]])  # type: ignore[list-item]
    same(a, b)


def test_sizes_may_differ_and_boxes_are_in_pixels_of_each_image(predictors: dict[str, Predictor]) -> None:
    large = cv2.resize(COLOUR, (300, 160), interpolation=cv2.INTER_NEAREST)
    small, big, again = predictors["visible"].predict([COLOUR, large, COLOUR], batch_size=2)
    assert (small.size, big.size) == ((80, 100), (160, 300))
    assert big.boxes_xyxy[:, 2].max() > 100
    same(small, predictors["visible"].predict([COLOUR, large])[0])
    np.testing.assert_allclose(small.scores, again.scores, rtol=1e-4)
    assert [set(found.image_index) for found in (small, big, again)] == [{0}, {1}, {2}]
    assert predictors["visible"].predict([]) == []


@pytest.mark.parametrize("reference", ["[512,640]", "null"])
def test_zoomed_images_meet_anchors_of_the_same_pixels(tmp_path: Path, reference: str) -> None:
    file = write_checkpoint(tmp_path / "c.ckpt", f"anchors.reference_size={reference}")
    whole, zoomed = load_detector(file, device="cpu"), load_detector(file, device="cpu", zoom=2)
    assert (whole.input_size, zoomed.input_size) == ((64, 96), (128, 192))

    def shapes(predictor: Predictor) -> torch.Tensor:
        anchors = predictor.detector(torch.zeros((1, 3, *predictor.input_size), dtype=torch.uint8)).anchors_cxcywh
        return torch.unique(anchors[:, 2:], dim=0)

    torch.testing.assert_close(shapes(whole), shapes(zoomed))
    (found,) = zoomed.predict([COLOUR])
    assert found.size == (80, 100) and (found.boxes_xyxy <= (100, 80, 100, 80)).all()
    with pytest.raises(RequestError, match=r"zoom must lie in 0\.1\.\.10, not 0"):
        load_detector(file, zoom=0)


def test_a_zoom_keeps_the_shape_and_what_it_misses_is_said(tmp_path: Path) -> None:
    """Sides are multiples of 32: rounded each by itself they would be 288 x 672 at 1.03."""
    file = write_checkpoint(tmp_path / "c.ckpt", "input.size=[288,640]")
    assert load_detector(file, device="cpu", zoom=1.03).input_size == (288, 640)
    with pytest.warns(Doubt, match=r"zoom 0\.5: images become 352x160 pixels, 0\.55 .* wide and 0\.56"):
        load_detector(file, device="cpu", zoom=0.5)


def test_the_score_threshold(predictors: dict[str, Predictor]) -> None:
    predictor = predictors["visible"]
    (whole,) = predictor.predict([COLOUR])
    limit = float(np.median(whole.scores))
    (part,) = predictor.predict([COLOUR], score=limit)
    assert 0 < len(part) < len(whole) and (part.scores >= limit).all()
    np.testing.assert_array_equal(part.boxes_xyxy, whole.boxes_xyxy[whole.scores >= limit])
    same(whole, predictor.predict([COLOUR])[0])  # the threshold was that call's own
    with pytest.raises(RequestError, match=r"score must lie in 0\.\.1, not 30"):
        predictor.predict([COLOUR], score=30)
    with pytest.raises(RequestError, match="batch_size must be at least 1"):
        predictor.predict([COLOUR], batch_size=0)


def test_a_checkpoints_temperature_changes_scores_and_nothing_else(
    checkpoints: dict[str, Path], predictors: dict[str, Predictor], tmp_path: Path
) -> None:
    content = torch.load(checkpoints["visible"], weights_only=True)
    torch.save(content | {"temperature": 0.5}, tmp_path / "calibrated.ckpt")
    calibrated = load_detector(tmp_path / "calibrated.ckpt", device="cpu")
    (raw,), (found,) = (predictor.predict([COLOUR]) for predictor in (predictors["visible"], calibrated))
    np.testing.assert_array_equal(found.boxes_xyxy, raw.boxes_xyxy)
    odds = (raw.scores / (1 - raw.scores)) ** 2
    np.testing.assert_allclose(found.scores, odds / (1 + odds), rtol=1e-5)
    limit = float(np.sort(found.scores)[len(found) // 2]) - 1e-6  # a threshold is of the calibrated score
    (part,) = calibrated.predict([COLOUR], score=limit)
    assert 0 < len(part) == (found.scores >= limit).sum() < len(found)


@pytest.mark.parametrize(
    ("modality", "images", "message"),
    [
        ("visible", COLOUR, r"takes a list of images.*predict\(\[image\]\)"),
        ("visible", "a.jpg", "takes a list of images"),
        ("visible", [COLOUR, GREY], r"image 1: has the shape \(80, 100\), but a visible image is \(H, W, 3\) RGB"),
        ("visible", [COLOUR / 255], "has values of type float64; an image is uint8"),
        ("visible", [None], "image 0: is a NoneType, not an image"),
        ("visible", ["nowhere.png"], "nowhere.png: cannot read the image"),
        ("visible", [("a.png", "b.png")], r"a\.png: visible needs visible images alone, not 2 together"),
        ("lwir", [COLOUR], r"a lwir image is \(H, W\)"),
        ("early", [COLOUR], r"image 0: early needs pairs \(visible, lwir\), not a single one"),
        ("early", [(COLOUR, GREY[:40])], "image 0: visible is 100x80 pixels, but lwir 100x40"),
    ],
)
def test_what_is_no_image(predictors: dict[str, Predictor], modality: str, images: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        predictors[modality].predict(images)


def changed(path: Path, to: Path, **entries: Any) -> Path:
    content = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in {**content, **entries}.items() if value is not None}, to)
    return to


def test_what_is_no_checkpoint_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    good, bad = checkpoints["visible"], tmp_path / "bad.ckpt"
    content = torch.load(good, weights_only=True)
    weights, settings = content["state_dict"], content["experiment"]

    def refusal(path: Path) -> str:
        with pytest.raises((WeightsError, ConfigError)) as caught:
            load_detector(path, device="cpu")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no such checkpoint" in refusal(tmp_path / "nothing.ckpt")
    assert "no run directory with a checkpoint" in refusal(tmp_path)
    bad.write_bytes(good.read_bytes()[:5000])
    assert "is not a checkpoint of this project, or it is damaged" in refusal(bad)
    torch.save([1, 2], bad)
    assert "it holds a list" in refusal(bad)
    assert "has no 'experiment' and no 'state_dict'" in refusal(changed(good, bad, experiment=None, state_dict=None))
    renamed = {f"model.{name}": tensor for name, tensor in weights.items()}
    assert "none of its weights is named detector." in refusal(changed(good, bad, state_dict=renamed))
    fewer = {name: tensor for name, tensor in weights.items() if "head" not in name}
    assert "not in the file: head." in refusal(changed(good, bad, state_dict=fewer))
    more = weights | {"detector.more.weight": torch.zeros(1)}
    assert "more" in refusal(changed(good, bad, state_dict=more))
    unknown = settings | {"input": settings["input"] | {"colour": "red"}}
    assert "colour" in refusal(changed(good, bad, experiment=unknown))


def test_a_run_directory_stands_for_the_checkpoint_of_its_results(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.last.parent.mkdir()
    shutil.copy(checkpoints["lwir"], directory.last)
    assert load_detector(tmp_path).modality == "lwir"
    shutil.copy(checkpoints["visible"], directory.best)
    assert load_detector(tmp_path).modality == "visible"
    directory.results_file.write_text(json.dumps({"checkpoint": "last.ckpt"}))
    assert load_detector(tmp_path).modality == "lwir"


def test_devices(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match="device 'gpu' is unknown; it should be auto, cpu, cuda"):
        load_detector(checkpoints["visible"], device="gpu")
    absent = [name for name in ("mps", "xpu") if not getattr(torch, name).is_available()]
    for name in (*absent, "hpu", "vulkan", "meta"):  # names that torch knows
        with pytest.raises(RequestError, match=f"device '{name}': torch finds none here"):
            load_detector(checkpoints["visible"], device=name)
    with pytest.raises(RequestError, match="device 'cuda:77': torch finds"):
        load_detector(checkpoints["visible"], device="cuda:77")
    assert load_detector(checkpoints["visible"]).detector.training is False
