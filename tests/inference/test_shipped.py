"""The detectors of the package: small files with a card, and the names that other commands take."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import command
from safetensors import safe_open
from untrained import of_pairs, write_checkpoint

import ssd_effnet
from data_kaist.errors import ImageError
from data_kaist.layouts import DataSource
from data_kaist.synthetic import write_dataset
from ssd_effnet import load_detector
from ssd_effnet.build import build_detector
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.detection.boxes import iou
from ssd_effnet.models.weights import WeightsError, read_state_dict
from ssd_effnet.training.run import _begin_from
from ssd_effnet.training.run_directory import SHIPPED

CARD = Path(ssd_effnet.__file__).parent / "detectors" / "README.md"


@pytest.mark.parametrize("name", list(SHIPPED))
def test_a_detector_is_small_and_on_its_card(name: str) -> None:
    assert SHIPPED[name].stat().st_size < 10e6 and f"`{name}`" in CARD.read_text(encoding="utf-8")
    predictor = load_detector(name, device="cpu")
    e = load_experiment(name)
    assert predictor.experiment.name == name and predictor.input_size == tuple(e.input.size)
    with safe_open(SHIPPED[name], framework="pt") as file:
        assert "/work" not in str(file.metadata()) and "/home" not in str(file.metadata())


def test_people_is_the_default_and_finds_them(shared: Path, tmp_path: Path) -> None:
    frame = DataSource("coco", shared / "data" / "pennfudan").frames("val.json")[0]
    (found,) = load_detector(device="cpu").predict([frame.visible], score=0.3)
    truth = torch.from_numpy(frame.annotations.boxes_xyxy[frame.annotations.labels == "person"])
    assert (iou(truth[None].float(), torch.from_numpy(found.boxes_xyxy)[None].float())[0].amax(1) > 0.5).all()
    done = command("detect", frame.visible, "--out", tmp_path / "found")
    assert done.returncode == 0 and f"{len(found)} " in done.stdout, done.stderr


def test_pairs_finds_people_by_both_cameras(tmp_path: Path) -> None:
    write_dataset(tmp_path, 40, (512, 640), 3)
    frames = DataSource("kaist", tmp_path).frames("test-all-20", modality="early")
    detector = load_detector("pairs", device="cpu")
    shares: list[float] = []
    for frame, found in zip(frames, detector.predict([(f.visible, f.lwir) for f in frames], score=0.3), strict=True):
        people = frame.annotations
        seen = (people.labels == "person") & (people.height >= 55) & (people.occlusion == 0)
        overlap = iou(*(torch.from_numpy(x)[None].float() for x in (people.boxes_xyxy[seen], found.boxes_xyxy)))[0]
        shares += (overlap > 0.5).any(1).tolist()
    assert len(shares) > 8 and np.mean(shares) > 0.8
    with pytest.raises(ImageError, match="needs pairs"):
        detector.predict([frames[0].visible])


def test_a_folder_of_its_name_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("people").mkdir()
    assert cv2.imwrite("people/a.png", np.zeros((64, 96, 3), np.uint8))
    done = command("detect", "people", "--out", "found")
    assert done.returncode == 0 and done.stdout.startswith("1 images"), done.stderr
    Path("people/config.yaml").write_text("description: a run without a checkpoint\n")
    with pytest.raises(WeightsError, match="people: is no run directory with a checkpoint"):
        load_detector("people")


def test_a_run_begins_from_people(few_pairs: Path) -> None:
    e = of_pairs(few_pairs, "init_from=people")
    said: list[str] = []
    started = _begin_from(e, build_detector(e, pretrained=False)[0], said.append)
    assert started["init_from"]["file"].endswith("people.safetensors")
    assert re.search(r"init_from: \d+ tensors loaded", said[-1])


@pytest.mark.parametrize(
    ("keys", "alike"),
    [
        (["class_loss.name=focal", "data.classes={person: [person], cyclist: [cyclist]}"], False),  # K is 2 as before
        (["class_loss.name=multi_label"], False),
        (["data.classes={walker: [person]}"], False),
        (["optimizer.lr=0.5"], True),
    ],
)
def test_class_logits_of_another_meaning_are_not_taken(
    keys: list[str], alike: bool, few_pairs: Path, tmp_path: Path
) -> None:
    file = write_checkpoint(tmp_path / "before.ckpt")
    e = of_pairs(few_pairs, f"init_from={file}", *keys)
    detector, said = build_detector(e, pretrained=False)[0], list[str]()
    own = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    _begin_from(e, detector, said.append)
    before = {name.removeprefix("detector."): w for name, w in read_state_dict(file).items()}
    for name, tensor in detector.state_dict().items():
        is_own = name.startswith("normalize.") or (name.startswith("head.classification.") and not alike)
        torch.testing.assert_close(tensor, (own if is_own else before)[name])
    assert ("head.classification" in said[-1]) is not alike
