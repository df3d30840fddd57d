"""An exported file finds what the PyTorch detector finds, for any batch, and says what it is; clear refusals."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from commands import command
from safetensors import safe_open
from safetensors.torch import save_file
from untrained import LITE0, SIX_LEVELS, SMALL

from data_kaist.dataset import collate
from data_kaist.layouts import DataSource
from ssd_effnet import load_detector
from ssd_effnet.build import build_detector, build_postprocess
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.detection.boxes import nms
from ssd_effnet.evaluation.calibration import tempered
from ssd_effnet.inference import export
from ssd_effnet.inference.export import ExportError, export_detector
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.models.heads import EfficientDetHead
from ssd_effnet.models.weights import WeightsError
from ssd_effnet.training.run import _begin_from

ort = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
Arrays = list[np.ndarray]


def pictures(root: Path, modality: str, size: tuple[int, int]) -> torch.Tensor:
    """uint8 ``(6, C, *size)`` of the data set of six pairs."""
    e = load_experiment(ROOT / "experiments" / "lite0.yaml", [*SIX_LEVELS, f"input.modality={modality}"])
    e.input.size = list(size)
    predictor = Predictor(e, build_detector(e, pretrained=False)[0], torch.device("cpu"))
    data = DataSource("coco", root)
    frames = [*data.frames("train.json", modality="early"), *data.frames("val.json", modality="early")]
    given = [tuple(path for side in predictor.sides if (path := getattr(f, side))) for f in frames]
    return collate([predictor.prepare(image) for image in given]).images.contiguous()


def write_checkpoint(path: Path, experiment: Path, images: torch.Tensor, *overrides: str, tiny: bool = False) -> Path:
    """A detector with random weights whose norms know pictures: what flows through it has usual magnitudes."""
    torch.manual_seed(0)
    e = load_experiment(experiment, [*overrides] if tiny else [*SIX_LEVELS, *overrides], tiny=tiny)
    detector, _ = build_detector(e, pretrained=False)
    know(detector, images)
    if isinstance(detector.head, EfficientDetHead):
        # scores as far apart as a trained one's: among equal ones rounding decides which box NMS keeps
        with torch.no_grad():
            for weights in detector.head.classification.last.parameters():
                weights *= 5 if weights.ndim > 1 else 1
    return save(path, e, detector)


def know(detector: Detector, images: torch.Tensor) -> None:
    """Give the norms the statistics of these images."""
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(3):
            detector.train()(images)


def save(path: Path, e: ExperimentConfig, detector: Detector) -> Path:
    weights = {f"detector.{name}": tensor for name, tensor in detector.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 0, "experiment": dataclasses.asdict(e), "state_dict": weights, "temperature": 1.7}, path)
    return path


def in_torch(checkpoint: Path, images: torch.Tensor) -> Arrays:
    """Boxes, scores and labels of the detector that the checkpoint holds."""
    predictor = load_detector(checkpoint, device="cpu")
    height, width = images.shape[-2:]
    with torch.inference_mode():
        found = build_postprocess(predictor.experiment)(predictor.detector(images), (height, width))
    return [found.boxes_xyxy.numpy(), found.scores.numpy(), found.labels.numpy()]


def in_onnx(path: Path, images: torch.Tensor) -> Arrays:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["images"] and session.get_inputs()[0].type == "tensor(uint8)"
    assert [x.name for x in session.get_outputs()] == ["boxes", "scores", "labels"]
    found: Arrays = session.run(None, {"images": images.numpy()})
    return found


def close(got: Arrays, want: Arrays) -> None:
    """To 1e-4 in scores, and in boxes as :func:`apart` has it; rows of equal scores come in any order."""
    for i in range(len(want[0])):
        boxes, scores, labels = (x[i][got[2][i] > 0] for x in got)
        wanted = {name: x[i][want[2][i] > 0] for name, x in zip(("boxes", "scores", "labels"), want, strict=True)}
        assert len(labels) == len(wanted["labels"]) > 3
        np.testing.assert_allclose(scores, wanted["scores"], rtol=0, atol=1e-4)
        for box, score, label in zip(boxes, scores, labels, strict=True):
            near = (np.abs(wanted["scores"] - score) < 1e-4) & (wanted["labels"] == label)
            assert apart(box, wanted["boxes"][near]).min() < 1e-4


def apart(boxes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``(..., n)``: how far corners lie apart, as shares of the box's longer side: float32 has no bound in pixels."""
    return np.abs(boxes - wanted).max(-1) / np.maximum((wanted[..., 2:] - wanted[..., :2]).max(-1), 1)


@pytest.fixture(scope="module")
def images(few_pairs: Path) -> torch.Tensor:
    return pictures(few_pairs, "visible", (64, 96))


@pytest.fixture(scope="module")
def checkpoint(images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "runs" / "lite0" / "seed0" / "checkpoints" / "best.ckpt"
    two = ["postprocess.pre_nms_top_k=200", "data.classes={person: [person], cyclist: [cyclist]}"]
    return write_checkpoint(path, LITE0, images, *SMALL, *two)


def test_onnx_finds_what_torch_finds_and_says_what_it_is(checkpoint: Path, images: torch.Tensor) -> None:
    """The letterbox, too, by the file's metadata. One test, since several processes would export several times."""
    onnx_file = export_detector(checkpoint).path
    assert onnx_file == checkpoint.with_suffix(".onnx")
    for batch in (1, 3):
        want = in_torch(checkpoint, images[:batch])
        assert set(want[2].flatten()) == {1, 2} and want[1].min() > 0
        close(in_onnx(onnx_file, images[:batch]), want)
    what_it_says(checkpoint, onnx_file)
    letterboxed(checkpoint, onnx_file)


def letterboxed(checkpoint: Path, onnx_file: Path) -> None:
    """Resized, padded and scaled back as the metadata say, boxes are those of a test; the graph is that of stretch."""
    predictor = load_detector(checkpoint, device="cpu")
    predictor.experiment.input.fit = "letterbox"
    facts = export.describe(checkpoint, predictor.experiment, (64, 96), "inside")
    assert facts["fit"] == "letterbox" and facts["size"] == "[64, 96]" and "padded right and below" in facts["resize"]
    predictor = Predictor(predictor.experiment, predictor.detector, torch.device("cpu"))
    picture = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    by_hand = np.empty((64, 96, 3), np.uint8)
    by_hand[:] = json.loads(facts["padding"])
    by_hand[:, :64] = cv2.resize(picture, (64, 64))
    boxes, scores, labels = in_onnx(onnx_file, torch.from_numpy(by_hand).permute(2, 0, 1)[None])
    boxes = np.minimum(boxes, 64).astype(np.float32)
    labels = labels * (boxes[..., 2:] > boxes[..., :2]).all(-1)

    batch = collate([predictor.prepare(picture)])
    with torch.inference_mode():
        outputs = predictor.detector(batch.images)
        sizes = batch.original_sizes, batch.content_sizes
        found = build_postprocess(predictor.experiment)(outputs, (64, 96), *sizes)
    wanted = [x.numpy() for x in (found.boxes_xyxy, found.scores, found.labels)]
    assert 3 < (labels > 0).sum() < predictor.experiment.postprocess.top_k  # some lay on the padding
    close([boxes * np.float32(2.5), scores, labels], wanted)


def what_it_says(checkpoint: Path, onnx_file: Path) -> None:
    session = ort.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    facts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    assert facts["experiment"] == "lite0" and facts["modality"] == "visible" and facts["nms"] == "inside"
    assert json.loads(facts["classes"]) == ["background", "person", "cyclist"]
    assert json.loads(facts["channels"]) == ["red", "green", "blue"] and json.loads(facts["size"]) == [64, 96]
    assert json.loads(facts["config"])["input"]["size"] == [64, 96] and len(facts["checkpoint_sha256"]) == 64
    assert facts["trained_commit"] == ""
    run = checkpoint.parent.parent
    (run / "environment.json").write_text(json.dumps({"git": {"commit": "abc"}}))
    e = load_detector(checkpoint).experiment
    assert export.describe(checkpoint, e, (64, 96), "inside")["trained_commit"] == "abc"
    (run / "environment.json").unlink()


def exports(path: Path, few_pairs: Path, folder: Path, *overrides: str) -> None:
    e = load_experiment(path, overrides, tiny=True)
    images = pictures(few_pairs, e.input.modality, (128, 160))
    checkpoint = write_checkpoint(folder / "best.ckpt", path, images, *overrides, tiny=True)
    done = export_detector(checkpoint)
    for batch in (1, 3):
        want = in_torch(checkpoint, images[:batch])
        got = in_onnx(done.path, images[:batch])
        assert images.shape[1] == len(CHANNELS[e.input.modality])
        close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_exports(path: Path, few_pairs: Path, tmp_path: Path) -> None:
    exports(path, few_pairs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        *(("input.modality=lwir",), ("input.modality=early",), ("input.modality=halfway",)),
        *(("input.modality=halfway", "fusion.shared=true"), ("input.modality=halfway", "fusion.up_to=0")),
    ],
    ids=lambda o: "-".join(o),
)
def test_every_modality_exports(overrides: tuple[str, ...], few_pairs: Path, tmp_path: Path) -> None:
    exports(ROOT / "experiments" / "lite0.yaml", few_pairs, tmp_path, *overrides)


def test_norms_are_folded(images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.export, "export", lambda model, *_, **__: exported.append(model) or 1 / 0)
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", ROOT / "experiments" / "lite0.yaml", images)
    with pytest.raises(ExportError):
        export_detector(checkpoint)
    assert not [name for name, _ in exported[0].named_buffers() if "running_mean" in name]


def test_refusals(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with pytest.raises(WeightsError, match="there is no such checkpoint"):
        export_detector(tmp_path / "no.ckpt")
    for file, write in (("best.ckpt", export_detector), ("a.safetensors", export.export_weights)):
        with pytest.raises(ExportError, match=r"is the checkpoint|to a new file"):
            write(shutil.copy(checkpoint, tmp_path / file), tmp_path / ".." / tmp_path.name / file)
        (tmp_path / file).unlink()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    with pytest.raises(ExportError, match=r"packages onnx and onnxscript: pip install '\.\[export\]'"):
        export_detector(checkpoint)
    monkeypatch.undo()

    def depends_on_pixels(images: torch.Tensor) -> torch.Tensor:
        return images.float() * (2 if images.sum() > 5 else 1)

    monkeypatch.setattr("ssd_effnet.models.detector.Normalize.forward", lambda self, x: depends_on_pixels(x))
    with pytest.raises(ExportError, match=r"torch cannot export this detector: .") as caught:
        export_detector(checkpoint, tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value) and str(checkpoint) in str(caught.value)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


@pytest.mark.slow
def test_the_script_and_nms_outside(checkpoint: Path, images: torch.Tensor, tmp_path: Path) -> None:
    """Outside, the boxes come out that would enter NMS: NMS of them gives what the detector finds."""
    out = tmp_path / "new" / "boxes.onnx"
    done = command("export", checkpoint.parent.parent, "--size", "64x96", "--nms", "outside", "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"lite0 written to {out}" in done.stdout and "images uint8 (batch, 3, 64, 96)" in done.stdout
    assert done.stderr == ""
    boxes, scores, labels = in_onnx(out, images[:3])
    p = load_detector(checkpoint).experiment.postprocess
    assert p.temperature == 1.7
    assert f"-> boxes (batch, {boxes.shape[1]}, 4)" in done.stdout and boxes.shape[1] > p.top_k
    assert (labels > 0).all() and (np.diff(scores) <= 0).all()
    apart = torch.from_numpy(boxes + labels[..., None] * np.float32(192))
    kept = nms(apart, torch.from_numpy(scores >= tempered(p.score_threshold, 1.7)), p.nms_iou).numpy()
    want = in_torch(checkpoint, images[:3])
    for i in range(3):
        np.testing.assert_allclose(scores[i][kept[i]][: p.top_k], want[1][i], rtol=0, atol=1e-4)
        np.testing.assert_allclose(boxes[i][kept[i]][: p.top_k], want[0][i], rtol=0, atol=1e-4)


def tensor_bytes(file: Path) -> int:
    """Of a safetensors file, without its header, whose length its first eight bytes say."""
    content = file.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def test_weights_alone_travel(checkpoint: Path, images: torch.Tensor, tmp_path: Path) -> None:
    """Float32 finds exactly the same, float16 the same to a hundredth of a score and of a box's longer side."""
    run = checkpoint.parent.parent
    tested = {"checkpoint": "best.ckpt", "test": {"ap": {"AP": 12.5}}}
    (run / "results.json").write_text(json.dumps(tested))
    (run / "environment.json").write_text(json.dumps({"data": {"test": {"fingerprint": "abc"}}, "git": {}}))
    try:
        done = command("export", run, "--weights")
        half = command("export", run, "--weights", "--half", "--out", tmp_path / "new" / "half.safetensors")
    finally:
        (run / "results.json").unlink()
        (run / "environment.json").unlink()
    assert done.returncode == half.returncode == 0, done.stderr + half.stderr
    whole, small = checkpoint.with_suffix(".safetensors"), tmp_path / "new" / "half.safetensors"
    assert str(whole) in done.stdout and tensor_bytes(small) < 0.55 * tensor_bytes(whole)
    with safe_open(whole, framework="pt") as file:
        facts = file.metadata()
    assert facts["experiment"] == "lite0" and "CC BY-NC-SA" in facts["licence"]
    assert json.loads(facts["classes"]) == ["background", "person", "cyclist"]
    assert json.loads(facts["test"]) == tested["test"] and json.loads(facts["data"])["test"]["fingerprint"] == "abc"
    assert len(json.loads(facts["normalisation"])["mean"]) == 3 and json.loads(facts["config"])["input"]["size"]

    assert json.loads(facts["config"])["postprocess"]["temperature"] == 1.7
    wanted = in_torch(checkpoint, images)
    for got, expected in zip(in_torch(whole, images), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    for i, (boxes, scores, labels) in enumerate(zip(*in_torch(small, images), strict=True)):
        near = [
            np.any((np.abs(wanted[1][i] - s) < 1e-2) & (wanted[2][i] == c) & (apart(b, wanted[0][i]) < 1e-2))
            for b, s, c in zip(boxes, scores, labels, strict=True)
        ]
        assert np.mean(near) > 0.9  # of an untrained network's equal scores NMS may keep another

    e = load_detector(whole).experiment
    e.init_from = str(whole)
    detector, lines = build_detector(e, pretrained=False)[0], []
    assert _begin_from(e, detector, lines.append)["init_from"]["file"] == str(whole)
    torch.testing.assert_close(detector.state_dict(), load_detector(checkpoint).detector.state_dict(), rtol=0, atol=0)


def test_weights_that_cannot_be_written_or_read(checkpoint: Path, tmp_path: Path) -> None:
    assert command("export", checkpoint, "--weights", "--size", "64x96").returncode == 2
    for words in (("--half",), ("--size", "512")):
        assert command("export", checkpoint, *words).returncode == 2
    wrong = command("export", checkpoint, "--weights", "--out", tmp_path / "a.pth")
    assert wrong.returncode == 1 and "a.pth" in wrong.stderr and "safetensors" in wrong.stderr
    huge = torch.load(checkpoint, weights_only=True)
    name = next(name for name, tensor in huge["state_dict"].items() if tensor.ndim > 1)
    huge["state_dict"][name][0] = 1e6
    torch.save(huge, tmp_path / "huge.ckpt")
    said = command("export", tmp_path / "huge.ckpt", "--weights", "--half").stderr
    assert name.removeprefix("detector.") in said and "float16" in said and not list(tmp_path.glob("*.safetensors"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"x" * 50)
    with pytest.raises(WeightsError, match=r"cut\.safetensors cannot be read"):
        load_detector(cut)
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match=r"foreign\.safetensors.* no 'experiment'"):
        load_detector(tmp_path / "foreign.safetensors")
