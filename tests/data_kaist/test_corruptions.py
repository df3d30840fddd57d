"""Corruptions of pairs: values by hand, the images that each changes, the same numbers for the same seed."""

import math
import statistics
from dataclasses import replace

import cv2
import numpy as np
import pytest

from data_kaist.corruptions import CORRUPTIONS, STRENGTHS
from data_kaist.dataset import DetectionDataset
from data_kaist.layouts import Frame
from data_kaist.structures import Annotations
from data_kaist.transforms import Compose, Sample

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 24, 60


def pair(grey: int) -> Sample:
    """Visible with a red gradient and one row of the grey level, LWIR of that level but for a bright column."""
    visible = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    visible[..., 0] = np.arange(WIDTH) * 4
    visible[-1, :, 1] = grey
    lwir = np.full((HEIGHT, WIDTH), grey, np.uint8)
    lwir[:, 10] = 200
    box = np.array([[5.0, 2, 15, 20]], np.float32)
    return Sample(visible, lwir, box, np.array([1]), np.array([False]), (HEIGHT, WIDTH))


SAMPLE = replace(pair(100), earlier=lambda places: pair(places))


def corrupted(kind: str, strength: int, seed: int = 0) -> Sample:
    return CORRUPTIONS[kind](SAMPLE, np.random.default_rng(seed), strength)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_changes_its_images_more_at_each_strength_and_alike_for_a_seed(kind: str) -> None:
    changed = []
    for strength in STRENGTHS:
        found, again = corrupted(kind, strength, seed=2), corrupted(kind, strength, seed=2)
        for side in ("visible", "lwir"):
            before, after = getattr(SAMPLE, side), getattr(found, side)
            assert after.dtype == np.uint8 and after.shape == before.shape and (after == getattr(again, side)).all()
            if kind.endswith(("_visible", "_lwir")) and not kind.endswith(side):
                assert after is before
        np.testing.assert_array_equal(found.boxes_xyxy, SAMPLE.boxes_xyxy)
        of_sides = ((getattr(found, side), getattr(SAMPLE, side)) for side in ("visible", "lwir"))
        changed.append(sum(np.abs(a.astype(int) - b).mean() for a, b in of_sides))
    if "frozen" in kind:
        changed.reverse()
    assert sorted(changed) == changed and changed[-1] > (0 if "shift" in kind else changed[0])
    assert SAMPLE.visible is not None and (SAMPLE.visible == pair(100).visible).all()  # not written to


def test_values_by_hand() -> None:
    def lwir(kind: str, strength: int) -> np.ndarray:
        return corrupted(kind, strength).lwir

    assert not lwir("black_lwir", 3).any()
    for strength, share in zip(STRENGTHS[:2], (0.25, 0.5), strict=True):
        black = np.mean([not np.any(corrupted("black_lwir", strength, seed).lwir) for seed in range(400)])
        assert black == pytest.approx(share, abs=0.07)
    for strength, by in zip(STRENGTHS, (2, 8, 20), strict=True):
        assert lwir("shift_lwir", strength)[0, 10 + by] == 200 and (lwir("shift_lwir", strength) == 200).sum() == HEIGHT
    for strength, width in zip(STRENGTHS, (10, 20, 30), strict=True):  # a sixth, a third, a half of 60
        assert (lwir("missing_lwir", strength)[0] == 0).sum() == width and lwir("missing_lwir", strength)[0, 0] == 100
    for strength, places in zip(STRENGTHS, (1, 3, 10), strict=True):
        assert lwir("frozen_lwir", strength)[0, 0] == places
    for strength, grey in zip(STRENGTHS, (50, 25, 10), strict=True):
        assert lwir("dark", strength)[0, 0] == grey
    for strength, light in zip(STRENGTHS, (0.6, 0.35, 0.15), strict=True):
        visible = corrupted("fog", strength).visible
        assert visible is not None and visible[0, 0].tolist() == [round((1 - light) * 220)] * 3
        assert lwir("fog", strength)[0, 0] == round(light * 100 + (1 - light) * (100 * 59 + 200) / 60)
    grey = replace(pair(0), lwir=np.full((HEIGHT, 40 * WIDTH), 128, np.uint8))
    for strength, deviation in zip(STRENGTHS, (15, 40, 80), strict=True):
        noisy = CORRUPTIONS["noise_lwir"](grey, np.random.default_rng(0), strength).lwir.astype(float)
        inside = noisy[(noisy > 0) & (noisy < 255)]  # what the ends of the range do not cut
        within = statistics.NormalDist(128, deviation)
        assert np.mean(np.abs(noisy - 128) <= 15) == pytest.approx(within.cdf(143.5) - within.cdf(112.5), abs=0.01)
        assert inside.mean() == pytest.approx(128, abs=1)
    for strength, sigma in zip(STRENGTHS, (1, 2, 4), strict=True):
        column = lwir("blur", strength)[0, 10].astype(float) - 100
        assert column == pytest.approx(100 / (sigma * math.sqrt(2 * math.pi)), abs=1)
    for strength, quality in zip(STRENGTHS, (30, 20, 10), strict=True):
        code = cv2.imencode(".jpg", SAMPLE.lwir, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        np.testing.assert_array_equal(lwir("jpeg", strength), cv2.imdecode(code, cv2.IMREAD_UNCHANGED))
    red = corrupted("jpeg", 3).visible
    assert red is not None and red[..., 0].mean() > 100 > 30 > red[..., 2].mean()  # colours are not swapped


def test_a_frozen_frame_is_of_the_same_video_and_size() -> None:
    def frame(name: str, width: int = WIDTH) -> Frame:
        return Frame(name, None, None, Annotations.from_rows([], size=(HEIGHT, width)))

    first, second = ([f"set06/V00{video}/I000{i}9" for i in range(4)] for video in range(2))
    flat = [f"set07_V000_I0000{i}" for i in range(2)] + [f"set07_V001_I0000{i}" for i in range(2)]
    frames = [frame(name) for name in [*first, *second, *flat]] + [frame("a/1"), frame("a/2"), frame("a/3", 99)]
    dataset = DetectionDataset(frames, "visible", Compose(()))
    assert [dataset.earlier(i, 1) for i in range(15)] == [0, 0, 1, 2, 4, 4, 5, 6, 8, 8, 10, 10, 12, 12, 14]
    assert [dataset.earlier(i, 3) for i in (2, 3, 7, 9, 11)] == [0, 0, 4, 8, 10]
    with pytest.raises(ValueError, match="earlier"):
        CORRUPTIONS["frozen_lwir"](pair(1), RANDOM, 1)
