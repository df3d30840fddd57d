"""What the network gets, made visible: pixels as they were transformed."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from untrained import LITE0, SMALL, splits

from data_kaist.dataset import collate
from data_kaist.errors import Doubt
from ssd_effnet.build import build_dataset, build_normalize
from ssd_effnet.cli.main import main
from ssd_effnet.config.loading import ExperimentConfig, load_experiment
from ssd_effnet.models.detector import Normalize
from ssd_effnet.visualize import data as data_view
from ssd_effnet.visualize.data import denormalised, write_data_view
from ssd_effnet.visualize.panels import Panel


def experiment(root: Path, *settings: str) -> ExperimentConfig:
    return load_experiment(LITE0, [*SMALL, *splits(root), *settings])


@pytest.mark.parametrize("modality", ["visible", "lwir", "early"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_pixels_are_those_that_were_transformed(few_pairs: Path, modality: str, normalize: bool) -> None:
    e = experiment(few_pairs, f"input.modality={modality}", f"input.normalize={normalize}")
    dataset = build_dataset(e, "train")
    samples = [dataset[(epoch, 1)] for epoch in range(3)]
    normalize = build_normalize(e)
    pixels = denormalised(normalize(collate(samples).images), normalize)
    assert pixels.dtype == np.uint8
    for sample, image in zip(samples, pixels, strict=True):
        if sample.visible is not None:
            np.testing.assert_array_equal(image[..., :3], sample.visible)
        if sample.lwir is not None:
            np.testing.assert_array_equal(image[..., -1], sample.lwir)


def test_statistics_are_the_tensors(few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far ones are doubted."""
    said: list[str] = []
    monkeypatch.setattr(data_view, "save_panels", lambda path, shown, words, kinds, of_class: said.append(words[1]))
    e = experiment(few_pairs, "input.modality=early")
    (tmp_path / "train_7.png").touch()  # of other settings
    write_data_view(e, tmp_path, count=3)
    assert not list(tmp_path.iterdir())
    dataset, normalize = build_dataset(e, "train"), build_normalize(e)
    x = normalize(collate([dataset[(k, place)] for place in (0, 2, 3) for k in range(4)]).images).transpose(0, 1)
    wanted = [f"{float(of.mean()):+.3f} and {float(of.std()):.3f}" for of in x]
    assert re.findall(r"\w+ ([+-][\d.]+ and \d\.\d+)", said[0]) == wanted
    for key, channels in (("input.normalize=false", "red.*green.*blue"), ("input.std=[2,0.5,0.5,0.5]", "red [^,]+;")):
        with pytest.warns(Doubt, match=f"far from mean 0 and standard deviation 1: {channels}"):
            write_data_view(experiment(few_pairs, key), tmp_path, count=2)


def test_the_frame_as_read_and_its_draws(few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The boxes of a flipped image lie on its people."""
    rows: list[list[Panel]] = []
    monkeypatch.setattr(data_view, "save_panels", lambda path, shown, words, kinds, of_class: rows.extend(shown))
    write_data_view(experiment(few_pairs, "augment.flip.p=1", "augment.names=[flip]"), tmp_path, count=1)
    ((read, *entering),) = rows
    assert len(entering) == 4
    for panel, left in ((read, True), (entering[0], False)):
        columns = np.flatnonzero((panel.picture == (0, 158, 115)).all(axis=2).any(axis=0))
        width = panel.picture.shape[1]
        # 10..37 of 128 as it is read; flipped, the box ends where it began, seen from the right
        first, last = columns[0] / width, columns[-1] / width
        assert (first, last) == pytest.approx((10 / 128, 37 / 128) if left else (91 / 128, 118 / 128), abs=0.02)


def test_an_object_is_on_its_own_image(few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flip of one image alone leaves one box on each image, the one on it."""
    rows: list[list[Panel]] = []
    monkeypatch.setattr(data_view, "save_panels", lambda path, shown, words, kinds, of_class: rows.extend(shown))
    apart = ("augment.names=[semi_unpaired]", "augment.semi_unpaired.p=1", "augment.semi_unpaired.crop=0")
    write_data_view(experiment(few_pairs, "input.modality=early", *apart), tmp_path, count=2)
    seen = set()
    for panel in (panel for _, *entering in rows for panel in entering):
        green = (panel.picture == (0, 158, 115)).all(axis=2)
        visible, lwir = (np.flatnonzero(half.any(axis=0)) for half in np.split(green, 2))
        assert np.ptp(visible) == pytest.approx(np.ptp(lwir), abs=3) and np.ptp(lwir) < 80  # of 320: one box
        seen.add(abs(visible[0] - lwir[0]) > 20)
    assert seen == {True, False}


def test_pages(few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_view, "_ROWS", 3)
    pictures = write_data_view(experiment(few_pairs), tmp_path, count=4)
    assert [path.name for path in pictures] == ["train_1.png", "train_2.png"]
    first, second = (cv2.imread(str(path)) for path in pictures)
    assert first.shape[0] > second.shape[0]


def test_the_command(few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["visualize", "data", str(LITE0), *SMALL, *splits(few_pairs), "--count", "2"]) == 0
    assert (tmp_path / "data_lite0" / "train_1.png").is_file()


def test_what_leaves_the_range_of_pixels_is_clipped() -> None:
    entering = torch.tensor([[[[-9.0, 0.0, 9.0]]]])
    np.testing.assert_array_equal(denormalised(entering, Normalize([0.5], [0.25]))[0, 0, :, 0], (0, 128, 255))
