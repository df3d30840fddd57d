"""Transforms: what is drawn at a box must be found at the transformed box, in both images."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_kaist.dataset import collate
from data_kaist.transforms import (
    MEAN_COLOUR,
    Compose,
    HorizontalFlip,
    Mosaic,
    Pad,
    PhotometricJitter,
    RandomResizedCrop,
    Resize,
    Sample,
    SemiUnpaired,
    SSDCrop,
    Transform,
    areas,
    crop,
)

SIZE = (96, 120)
QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])

GEOMETRY: dict[str, Transform] = {
    "flip": HorizontalFlip(p=1),
    "resize": Resize((70, 130)),
    "letterbox": Compose((Resize((70, 130), "letterbox"), HorizontalFlip(), Pad((70, 130), (9, 9, 9, 9)))),
    "zoom in": RandomResizedCrop(scale=(0.25, 1)),
    "zoom out": RandomResizedCrop(scale=(1, 4)),
    "paired": SemiUnpaired(p=0),
    "ssd crop": SSDCrop(min_ious=(0.1, 0.3, 0.0)),
    "chain": Compose((RandomResizedCrop(p=1), HorizontalFlip(), Resize((64, 80)))),
}


def sample_of(boxes: list[tuple[float, float, float, float]], size: tuple[int, int] = SIZE) -> Sample:
    """Dark images with a bright rectangle at each box of whole pixels."""
    visible, lwir = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    for x1, y1, x2, y2 in boxes:
        window = slice(max(int(y1), 0), int(y2)), slice(max(int(x1), 0), int(x2))
        visible[window], lwir[window] = 255, 255
    n = len(boxes)
    boxes_xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(visible, lwir, boxes_xyxy, np.ones(n, np.int64), np.zeros(n, bool), size)


@st.composite
def boxes_in(draw: st.DrawFn, size: tuple[int, int] = SIZE) -> tuple[int, int, int, int]:
    height, width = size
    x1, y1 = draw(st.integers(0, width - 6)), draw(st.integers(0, height - 6))
    return x1, y1, draw(st.integers(x1 + 6, width)), draw(st.integers(y1 + 6, height))


def bright_bounds(image: np.ndarray) -> np.ndarray | None:
    """xyxy of the pixels brighter than half."""
    grey = image if image.ndim == 2 else image.min(axis=2)
    rows, columns = np.nonzero(grey > 127)
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)


@pytest.mark.parametrize("name", GEOMETRY)
@given(box=boxes_in(), seed=st.integers(0, 2**32 - 1))
@QUICK
def test_the_box_stays_on_the_object_in_both_images(name: str, box: tuple[int, int, int, int], seed: int) -> None:
    before = sample_of([box])
    after = GEOMETRY[name](before, np.random.default_rng(seed))
    assert after.visible.shape[:2] == after.lwir.shape == after.size
    height, width = after.size
    if not len(after.boxes_xyxy):
        return  # cut away; what becomes of such objects has a test of its own
    (found,) = after.boxes_xyxy
    assert (found[:2] >= 0).all() and (found[2:] <= (width, height)).all()
    assert areas(after.boxes_xyxy)[0] > 1
    for image in (after.visible, after.lwir):
        bounds = bright_bounds(image)
        if bounds is None:  # thinner than a pixel after shrinking
            assert min(found[2] - found[0], found[3] - found[1]) < 2
        else:
            np.testing.assert_allclose(found, bounds, atol=1.5)


@given(box=boxes_in(), seed=st.integers(0, 2**32 - 1))
@settings(QUICK, max_examples=15)
def test_each_modality_alone_sees_what_it_sees_in_the_pair(box: tuple[int, int, int, int], seed: int) -> None:
    chain = Compose((PhotometricJitter(p=1), GEOMETRY["chain"]))
    both = sample_of([box])
    pair = chain(both, np.random.default_rng(seed))
    alone = chain(replace(both, lwir=None), np.random.default_rng(seed))
    np.testing.assert_array_equal(alone.visible, pair.visible)
    alone = chain(replace(both, visible=None), np.random.default_rng(seed))
    np.testing.assert_array_equal(alone.lwir, pair.lwir)
    np.testing.assert_array_equal(alone.boxes_xyxy, pair.boxes_xyxy)


def test_resize_clips_what_reaches_over_the_border_and_drops_what_vanishes() -> None:
    before = sample_of([(-10, 20, 30, 50), (0, 0, 4, 4)])
    after = Resize((24, 30))(before, np.random.default_rng(0))
    np.testing.assert_array_equal(after.boxes_xyxy, [[0, 5, 7.5, 12.5]])  # the second would cover one pixel, not more


def test_letterbox_by_hand() -> None:
    """96x120 into 64x64: by 64 / 120 to 51.2, so 51 rows, and 13 rows of padding; ignore regions go along."""
    before = replace(sample_of([(30, 48, 60, 96), (0, 0, 120, 96)]), ignore=np.array([False, True]))
    chain = Compose((Resize((64, 64), "letterbox"), Pad((64, 64), (1, 2, 3, 4))))
    after = chain(before, np.random.default_rng(0))
    assert (after.size, after.content_size, after.original_size) == ((64, 64), (51, 64), SIZE)
    np.testing.assert_array_equal(after.boxes_xyxy, [[16, 25.5, 32, 51], [0, 0, 64, 51]])
    assert list(after.ignore) == [False, True]
    assert (after.visible[51:] == (1, 2, 3)).all()
    assert (after.lwir[51:] == 4).all()
    np.testing.assert_array_equal(after.lwir[:51], cv2.resize(before.lwir, (64, 51)))
    tall = Resize((64, 64), "letterbox")(sample_of([], (4000, 7)), np.random.default_rng(0))
    assert tall.size == (64, 1)  # 0.1 columns are one


def test_crop_by_hand() -> None:
    """A window of x 40..80, y 0..60: kept and clipped, made an ignore region, gone, and outside altogether."""
    before = sample_of([(50, 10, 70, 50), (75, 10, 95, 50), (78, 10, 98, 50), (79, 10, 99, 50), (90, 70, 99, 80)])
    after = crop(before, (40, 0, 80, 60))
    assert after.size == (60, 40)
    np.testing.assert_array_equal(after.boxes_xyxy, [[10, 10, 30, 50], [35, 10, 40, 50], [38, 10, 40, 50]])
    assert list(after.ignore) == [False, True, True]  # a quarter, a tenth; a twentieth is gone
    assert list(after.labels) == [1, 1, 1]


def test_crop_keeps_ignore_regions_as_long_as_any_area_is_left() -> None:
    before = replace(sample_of([(79, 10, 99, 50), (80, 10, 99, 50)]), ignore=np.array([True, True]))
    after = crop(before, (40, 0, 80, 60))
    np.testing.assert_array_equal(after.boxes_xyxy, [[39, 10, 40, 50]])
    assert list(after.ignore) == [True]


def test_crop_beyond_the_image_fills_the_canvas() -> None:
    after = crop(sample_of([(0, 0, 120, 96)]), (-10, -5, 130, 100), fill=(1, 2, 3, 4))
    assert after.size == (105, 140)
    assert list(after.visible[0, 0]) == [1, 2, 3]
    assert after.lwir[104, 139] == 4
    assert after.visible[5:101, 10:130].min() == 255
    np.testing.assert_array_equal(after.boxes_xyxy, [[10, 5, 130, 101]])


def test_the_crop_s_area_and_shape_are_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([RandomResizedCrop(p=1)(sample_of([], (512, 640)), rng).size for _ in range(300)])
    scale = sizes.prod(axis=1) / (512 * 640)
    ratio = sizes[:, 1] / sizes[:, 0] / (640 / 512)
    assert scale.min() > 0.24 and scale.max() < 4.1 and 0.4 < (scale < 1).mean() < 0.6
    assert ratio.min() > 0.79 and ratio.max() < 1.21


def test_ssd_crop_overlaps_some_person_as_asked() -> None:
    before = sample_of([(40, 20, 80, 80)])
    rng = np.random.default_rng(0)
    crops = [SSDCrop(min_ious=(0.7,))(before, rng) for _ in range(30)]
    cropped = [after for after in crops if after.size != SIZE]
    assert cropped
    for after in cropped:
        # the window lies in the image, so the IoU is (what is left of the person) / (union of person and window)
        left = areas(after.boxes_xyxy)[0]
        assert left / (2400 + after.size[0] * after.size[1] - left) >= 0.7 - 1e-6
    assert SSDCrop()(sample_of([]), rng).size == SIZE
    assert SSDCrop(min_ious=(None,))(before, rng) is before


def test_jitter_changes_colours_only_and_each_modality_on_its_own() -> None:
    rng = np.random.default_rng(0)
    before = sample_of([(10, 20, 30, 50)])
    noise, means = rng.integers(0, 256, (*SIZE, 4), dtype=np.uint8), []
    before = replace(before, visible=noise[..., :3].copy(), lwir=noise[..., 3].copy())
    for _ in range(20):
        after = PhotometricJitter(strength=0.3, p=1)(before, rng)
        assert after.visible.dtype == after.lwir.dtype == np.uint8
        assert after.visible.shape == (*SIZE, 3)
        assert after.boxes_xyxy is before.boxes_xyxy
        means.append((after.visible.mean(), after.lwir.mean()))
    assert np.std(means, axis=0).min() > 5
    assert abs(np.corrcoef(np.array(means).T)[0, 1]) < 0.9
    assert PhotometricJitter(p=0)(before, rng) is before
    same = PhotometricJitter(strength=0, p=1)(before, rng)
    assert np.abs(same.visible.astype(int) - noise[..., :3]).max() <= 1


def test_jitter_reaches_its_strengths_and_no_more() -> None:
    """Of one colour: luma changes by brightness (contrast keeps it), chroma by saturation, contrast and brightness."""
    colour, turns, factors = np.array([140.0, 100, 90]), [], []
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    even = replace(sample_of([]), visible=np.full((*SIZE, 3), colour, np.uint8), lwir=np.full(SIZE, 100, np.uint8))
    before = to_yiq @ colour
    for seed in range(300):
        after = PhotometricJitter(strength=0.3, p=1)(even, np.random.default_rng(seed))
        luma, *chroma = to_yiq @ after.visible[0, 0]
        turns.append(math.atan2(chroma[1], chroma[0]) - math.atan2(before[2], before[1]))
        factors.append((luma / before[0], math.hypot(*chroma) / math.hypot(*before[1:]), after.lwir[0, 0] / 100))
    brightness, chroma_factor, of_lwir = np.array(factors).T
    for factor in (brightness, of_lwir):
        assert factor.min() == pytest.approx(0.7, abs=0.02) and factor.max() == pytest.approx(1.3, abs=0.02)
    assert np.max(np.abs(turns)) == pytest.approx(0.03 * 2 * math.pi, abs=0.04)
    ratio = chroma_factor / brightness  # saturation times contrast
    assert ratio.min() < 0.6 and 1.5 < ratio.max() < 1.3**2 + 0.1


def test_jitter_leaves_grey_grey() -> None:
    """Hue and saturation must not colour what has no colour: nights stay nights."""
    grey = np.full((*SIZE, 3), 100, np.uint8)
    after = PhotometricJitter(p=1)(replace(sample_of([]), visible=grey), np.random.default_rng(3))
    assert np.ptp(after.visible.astype(int), axis=2).max() <= 1


def mosaic_of(first: Sample, other: Sample, scale: float) -> Sample:
    """Around the middle, (60, 48) of 120x96, each frame scaled by ``scale``."""
    mosaic = Mosaic(centre=(0.5, 0.5), scale=(scale, scale), p=1)
    return mosaic(replace(first, another=lambda rng: other), np.random.default_rng(0))


def test_mosaic_by_hand() -> None:
    """At its own size each frame shows the quarter whose corner lies at the point; at half its size all of it.

    People cut by a quarter: 37, 39 and 28 of 40 rows stay people, 12 an ignore region, 3 nothing. Ignore regions stay.
    """
    first = sample_of([(10, 50, 20, 90), (70, 60, 90, 90)])
    other = sample_of([(10, 20, 20, 60), (2, 45, 12, 85), (80, 9, 90, 49), (40, 30, 80, 66)])
    other = replace(other, labels=np.array([1, 3, 2, 1]), ignore=np.array([False, False, False, True]))
    after = mosaic_of(replace(first, index=7, name="first"), other, 1)
    assert (after.size, after.original_size, after.name, after.index) == (SIZE, SIZE, "first", 7)
    wanted = [
        ((10, 12, 30, 42), 1, False),
        *(((70, 0, 80, 12), 1, True), ((62, 0, 72, 37), 3, False), ((100, 0, 120, 18), 1, True)),  # upper right
        *(((20, 57, 30, 96), 2, False), ((0, 78, 20, 96), 1, True)),  # lower left
        *(((70, 68, 80, 96), 1, False), ((100, 78, 120, 96), 1, True)),  # lower right
    ]
    assert after.boxes_xyxy.tolist() == [list(box) for box, *_ in wanted]
    assert list(zip(after.labels, after.ignore, strict=True)) == [(label, ignored) for _, label, ignored in wanted]
    for x1, y1, x2, y2 in after.boxes_xyxy.astype(int):
        assert after.visible[y1:y2, x1:x2].min() == after.lwir[y1:y2, x1:x2].min() == 255
    assert (after.visible > 127).all(axis=2).sum() == (after.lwir > 127).sum() == 600 + 826 + 750 + 664  # by quarter

    for times in (("day", "day", "day"), ("day", "night", None), (None, "day", None)):
        one, three, wanted_time = times
        assert mosaic_of(replace(first, daytime=one), replace(other, daytime=three), 1).daytime == wanted_time

    half = mosaic_of(first, other, 0.5)
    np.testing.assert_array_equal(half.boxes_xyxy[:3], [[5, 25, 10, 45], [35, 30, 45, 45], [65, 10, 70, 30]])
    np.testing.assert_array_equal(half.boxes_xyxy[-4], [65, 58, 70, 78])
    assert len(half.labels) == 14
    assert half.ignore.sum() == 3


def test_mosaic_of_frames_of_other_shapes_and_of_one_modality() -> None:
    """48x240 is halved to fit 96x120, and 24 rows are new canvas above it."""
    first = sample_of([])
    wide = sample_of([(20, 8, 40, 40)], (48, 240))
    after = mosaic_of(first, wide, 1)
    assert [*after.visible[23, 60], after.lwir[23, 60]] == list(MEAN_COLOUR)
    np.testing.assert_array_equal(after.boxes_xyxy[0], [70, 28, 80, 44])
    np.testing.assert_allclose(bright_bounds(after.lwir[:48]), [70, 28, 80, 44], atol=1)
    alone = mosaic_of(replace(first, visible=None), replace(wide, visible=None), 1)
    assert alone.visible is None
    np.testing.assert_array_equal(alone.lwir, after.lwir)
    np.testing.assert_array_equal(alone.boxes_xyxy, after.boxes_xyxy)
    tiny = sample_of([], (1, 1))
    assert mosaic_of(tiny, wide, 1).size == (1, 1)
    with pytest.raises(ValueError, match="samples of a data set"):
        Mosaic()(first, np.random.default_rng(0))


def test_semi_unpaired_by_hand() -> None:
    """A flip of one image alone makes two objects of a person, each present in one; in the middle they stay one."""
    left, right, middle = (2.0, 4.0, 8.0, 20.0), (52.0, 4.0, 58.0, 20.0), (27.0, 4.0, 33.0, 20.0)
    sample, seen = sample_of([left, middle], (30, 60)), set()
    for seed in range(20):
        changed = SemiUnpaired(p=1, crop=0)(sample, np.random.default_rng(seed))
        rows = sorted((*box, *sides) for box, sides in zip(changed.boxes_xyxy.tolist(), changed.in_sides, strict=True))
        visible_turns, lwir_turns = changed.visible[10, 55, 0] == 255, changed.lwir[10, 55] == 255
        seen.add((bool(visible_turns), bool(lwir_turns)))
        if visible_turns == lwir_turns:
            assert rows == sorted([(*(right if lwir_turns else left), True, True), (*middle, True, True)])
        else:
            of_left, of_right = (lwir_turns, visible_turns), (visible_turns, lwir_turns)
            assert rows == sorted([(*left, *of_left), (*right, *of_right), (*middle, True, True)])
        assert changed.labels.tolist() == [1] * len(rows) and not changed.ignore.any()
        assert SemiUnpaired(p=0, crop=1)(sample, np.random.default_rng(seed)).in_sides.all()
        zoomed = SemiUnpaired(p=1, crop=1)(changed, np.random.default_rng(seed))  # what an image lacks it still lacks
        assert zoomed.size == (30, 60) and zoomed.in_sides.any(1).all()
        for (x1, y1, x2, y2), sides in zip(zoomed.boxes_xyxy.round().astype(int), zoomed.in_sides, strict=True):
            for image, there in zip((zoomed.visible[..., 0], zoomed.lwir), sides, strict=True):  # type: ignore[index]
                inside = image[(y1 + y2) // 2, (x1 + x2) // 2]  # type: ignore[index]
                assert inside > 128 or not there
    assert len(seen) == 4
    batch = collate([changed, sample])
    assert batch.targets.present is not None and batch.targets.present[1].all()
    assert np.array_equal(batch.targets.present[0, : len(rows)].numpy(), changed.in_sides)
    alone = SemiUnpaired(p=1)(replace(sample, lwir=None), np.random.default_rng(0))
    assert alone.lwir is None and alone.in_sides.all()


def test_semi_unpaired_other_people_that_come_to_lie_on_each_other() -> None:
    """Both images show somebody at both places, whoever it is."""
    sample = sample_of([(2.0, 4.0, 8.0, 20.0), (52.0, 4.0, 58.0, 20.0)], (30, 60))
    for seed in range(20):
        changed = SemiUnpaired(p=1, crop=0)(sample, np.random.default_rng(seed))
        assert sorted(changed.boxes_xyxy.tolist()) == sorted(sample.boxes_xyxy.tolist()) and changed.in_sides.all()
    apart = replace(sample, present=np.array([[True, False], [False, True]]))
    seen = set()
    for seed in range(20):
        changed = SemiUnpaired(p=1, crop=0)(apart, np.random.default_rng(seed))
        seen.add(tuple(map(tuple, changed.in_sides.tolist())))
    assert seen == {((True, False), (False, True)), ((True, True),)}  # apart, or one on the other


def test_semi_unpaired_joins_no_person_with_an_ignore_region() -> None:
    sample = sample_of([(2.0, 4.0, 8.0, 20.0), (52.0, 4.0, 58.0, 20.0)], (30, 60))
    sample, apart = replace(sample, ignore=np.array([False, True])), 0
    for seed in range(20):
        changed = SemiUnpaired(p=1, crop=0)(sample, np.random.default_rng(seed))
        assert np.logical_or.reduce(changed.in_sides[~changed.ignore]).all()  # either image keeps its person
        apart += len(changed.ignore) == 4 and not (changed.in_sides.all(1) & ~changed.ignore).any()
    assert apart


def test_no_objects_pass_through_everything() -> None:
    chain = Compose((PhotometricJitter(p=1), *GEOMETRY.values()))
    after = chain(sample_of([]), np.random.default_rng(0))
    assert after.boxes_xyxy.shape == (0, 4)
    assert after.size == (64, 80)
