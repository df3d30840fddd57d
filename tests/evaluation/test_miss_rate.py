"""The miss rate: cases worked out by hand, properties, and a slow re-implementation straight from the protocol."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_kaist.structures import Annotations, Daytime, DetectionTable
from ssd_effnet.evaluation.miss_rate import Matcher, MissRateEvaluator, Outcome
from ssd_effnet.evaluation.subsets import MATLAB, PYTHON, RULES, SUBSETS

Box = tuple[float, float, float, float]  # x, y, w, h
Row = tuple[int, float, float, float, float, float]  # image, x, y, w, h, score

WIDTH, HEIGHT = 640, 512
BOX: Box = (100, 100, 40, 100)  # counted in reasonable, and in medium, none and all_h20
ELSEWHERE: Box = (400, 300, 40, 100)  # touches BOX nowhere
TP, FP, DROPPED = Outcome.TRUE_POSITIVE, Outcome.FALSE_POSITIVE, Outcome.DROPPED


def truth(
    *boxes: Box,
    labels: Sequence[str] | None = None,
    ignore: Sequence[bool] | None = None,
    occlusion: Sequence[int] | None = None,
    height: Sequence[float] | None = None,
    daytime: Daytime | None = "day",
) -> Annotations:
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    columns = {"ignore": ignore, "occlusion": occlusion, "height": height}
    return Annotations.from_rows(corners, labels, **columns, size=(HEIGHT, WIDTH), daytime=daytime)


def table(*rows: Row) -> DetectionTable:
    if not rows:
        return DetectionTable.empty()
    columns = np.array(rows, np.float64)
    boxes = columns[:, 1:5].copy()
    boxes[:, 2:] += boxes[:, :2]
    return DetectionTable(columns[:, 0].astype(np.int64), boxes, columns[:, 5])


def match(annotations: Sequence[Annotations], *rows: Row) -> Matcher:
    return MissRateEvaluator(annotations).match(table(*rows))


def outcomes(annotations: Sequence[Annotations], *rows: Row, subset: str = "reasonable_all") -> list[int]:
    return match(annotations, *rows).matches(subset).outcome.tolist()


def test_everything_found_is_the_floor_of_each_rule_set() -> None:
    matcher = match([truth(BOX)], (0, *BOX, 0.9))
    assert matcher.result("reasonable_all", "matlab").mr == pytest.approx(1e-10, rel=1e-6)
    assert matcher.result("reasonable_all", "python").mr == 0
    assert matcher.result("reasonable_all").recall == 1


def test_a_curve_is_read_at_the_last_point_that_is_not_beyond_the_reference() -> None:
    images = [truth(BOX, ELSEWHERE), truth(BOX, ELSEWHERE), *[truth()] * 8]
    rows: list[Row] = [
        (0, *BOX, 0.9),
        (5, *BOX, 0.8),  # false
        (0, *ELSEWHERE, 0.7),
        (6, *BOX, 0.6),  # false
        (1, *BOX, 0.5),
    ]
    for rules in RULES:  # the fppi of the first false one is 0.1 and a reference too: it counts as reached
        result = match(images, *rows).result("reasonable_all", rules)
        assert result.fppi == pytest.approx([0, 0.1, 0.1, 0.2, 0.2])
        assert result.miss_rate == pytest.approx([0.75, 0.75, 0.5, 0.5, 0.25])
        assert result.reference_miss_rate == pytest.approx([0.75] * 4 + [0.5] * 2 + [0.25] * 3)
        assert result.mr == pytest.approx((0.75**4 * 0.5**2 * 0.25**3) ** (1 / 9))
        assert (result.counted, result.images) == (4, 10)


def test_reference_points() -> None:
    exact = [0.01, 0.0177827941, 0.0316227766, 0.0562341325, 0.1, 0.177827941, 0.316227766, 0.562341325, 1]
    assert MATLAB.references == pytest.approx(exact, rel=1e-9)
    assert PYTHON.references == (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000)


def test_an_overlap_of_a_half_is_enough() -> None:
    assert outcomes([truth(BOX)], (0, 100, 100, 20, 100, 0.9)) == [TP]
    assert outcomes([truth(BOX)], (0, 100, 100, 19.9, 100, 0.9)) == [FP]


def test_boxes_are_continuous() -> None:
    """Counting pixels, with a +1 to each side, would make 0.502 of this 0.493."""
    assert outcomes([truth((100, 100, 4, 60))], (0, 100, 100, 4, 29.6, 0.9)) == [FP]


def test_equal_overlaps_go_to_the_later_box() -> None:
    left, right, between = (90, 100, 40, 100), (110, 100, 40, 100), (100, 100, 40, 100)
    images = [truth(left, right)]
    assert match(images, (0, *between, 0.9)).matches("reasonable_all").box_matched_by.tolist() == [-1, 0]
    assert outcomes(images, (0, *between, 0.9), (0, *left, 0.8)) == [TP, TP]
    assert outcomes(images, (0, *between, 0.9), (0, *right, 0.8)) == [TP, FP]  # right is used up, left a third of it


def test_more_than_a_thousand_detections_on_an_image() -> None:
    images = [truth(BOX), truth(BOX)]
    crowd: list[Row] = [(0, *ELSEWHERE, 1 + i / 1000) for i in range(999)]
    last, beyond, other = (0, *BOX, 0.9), (0, *ELSEWHERE, 0.8), (1, *BOX, 0.1)
    result = match(images, beyond, last, *crowd, other)
    assert result.matches("reasonable_all").outcome.tolist() == [DROPPED, TP, *[FP] * 999, TP]
    assert result.result("reasonable_all").recall == 1
    result = match(images, last, beyond, (0, *ELSEWHERE, 5), *crowd, other)  # one more, and the box is missed
    assert result.matches("reasonable_all").outcome.tolist() == [DROPPED, DROPPED, FP, *[FP] * 999, TP]
    assert result.result("reasonable_all").recall == 0.5


def ignored(annotations: Annotations, subset: str = "reasonable_all") -> list[bool]:
    return match([annotations]).matches(subset).box_ignored.tolist()


def test_a_box_at_the_border_is_kept_and_one_across_it_ignored() -> None:
    at = [(5, 100, 40, 100), (100, 5, 40, 100), (WIDTH - 45, 100, 40, 100), (100, HEIGHT - 105, 40, 100)]
    assert ignored(truth(*at)) == [False] * 4
    across = [(4.9, 100, 40, 100), (100, 4.9, 40, 100), (WIDTH - 44.9, 100, 40, 100), (100, HEIGHT - 104.9, 40, 100)]
    assert ignored(truth(*across)) == [True] * 4


def test_the_border_is_that_of_the_image_itself() -> None:
    of_image = truth((50, 50, 40, 100))
    assert ignored(replace(of_image, size=(155, 95))) == [False]
    assert ignored(replace(of_image, size=(154, 95))) == [True]
    assert ignored(replace(of_image, size=(155, 94))) == [True]


def test_subsets_are_the_devkits_and_count_both_ends_of_their_heights() -> None:
    counted = {name: (of.min_height, of.max_height, of.occlusions) for name, of in SUBSETS.items()}
    reasonable, end = (55, math.inf, (0, 1)), math.inf
    assert counted == {
        **dict.fromkeys(("reasonable_all", "reasonable_day", "reasonable_night"), reasonable),
        "near": (115, end, (0,)),
        "medium": (45, 115, (0,)),
        "far": (1, 45, (0,)),
        "none": (1, end, (0,)),
        "partial": (1, end, (1,)),
        "heavy": (1, end, (2,)),
        "all_h20": (20, end, (0, 1, 2)),
    }
    of_image = truth(*[BOX] * 5, height=(44.9, 45, 80, 115, 115.1))  # the height that the file states, not the box's
    assert ignored(of_image, "medium") == [True, False, False, False, True]
    assert ignored(truth(BOX, BOX, BOX, occlusion=[0, 1, 2]), "partial") == [True, False, True]


def test_only_persons_count() -> None:
    labels = ["person", "people", "cyclist", "person?", " Person"]
    assert ignored(truth(*[BOX] * 5, labels=labels), "all_h20") == [False, True, True, True, False]


@pytest.mark.parametrize("image", [-1, 2])
def test_a_detection_on_no_image_is_refused(image: int) -> None:
    with pytest.raises(ValueError, match="2 images"):
        match([truth(), truth()], (image, *BOX, 0.9))


@pytest.mark.parametrize("row", [(0, *BOX, math.nan), (0, *BOX, math.inf), (0, 1, math.nan, 10, 10, 0.5)])
def test_a_detection_that_is_not_finite_is_refused(row: Row) -> None:
    with pytest.raises(ValueError, match="not finite"):
        match([truth()], row)


def slow_miss_rate(annotations: Sequence[Annotations], rows: Sequence[Row], subset: str, rules: str) -> list[float]:
    """MR, recall, counted, detections on the curve: the protocol's six points, one after the other."""
    wanted = SUBSETS[subset]
    counted, images, curve = 0, 0, []
    for i, of_image in enumerate(annotations):
        if wanted.daytime and of_image.daytime != wanted.daytime:
            continue
        images += 1
        counted_boxes, ignored_boxes = [], []
        for j in range(len(of_image)):
            x, y, x2, y2 = (float(value) for value in of_image.boxes_xyxy[j])
            out = of_image.labels[j] != "person" or bool(of_image.ignore[j])
            out |= of_image.height[j] < wanted.min_height or of_image.height[j] > wanted.max_height
            out |= of_image.occlusion[j] not in wanted.occlusions
            out |= x < 5 or y < 5 or x2 > WIDTH - 5 or y2 > HEIGHT - 5
            (ignored_boxes if out else counted_boxes).append((x, y, x2 - x, y2 - y))
        of_detector = sorted((row for row in rows if row[0] == i), key=lambda row: -row[5])[:1000]
        if of_detector or rules == "matlab":
            counted += len(counted_boxes)
        free = list(range(len(counted_boxes)))
        for _, *box, score in of_detector:
            best, best_iou = None, 0.5
            for j in free:
                shared, area, other = _areas(box, counted_boxes[j])
                if shared / (area + other - shared) >= best_iou:
                    best, best_iou = j, shared / (area + other - shared)
            if best is not None:
                free.remove(best)
                curve.append((score, True))
            elif not any(_areas(box, region)[0] / (box[2] * box[3]) >= 0.5 for region in ignored_boxes):
                curve.append((score, False))
    if counted == 0:
        return [math.nan, math.nan, 0, len(curve)]
    curve.sort(key=lambda point: -point[0])
    found = false = 0
    points = []
    for _, right in curve:
        found, false = found + right, false + (not right)
        points.append((false / images, found / counted))
    logs = []
    for k in range(9):
        reference = 10 ** (-2 + k / 4) if rules == "matlab" else round(10 ** (-2 + k / 4), 4)
        reached = [recall for fppi, recall in points if fppi <= reference]
        recall = reached[-1] if reached else points[-1][1] if points and rules == "python" else 0.0
        miss = max(1 - recall, 1e-10) if rules == "matlab" else 1 - recall
        logs.append(math.log(miss) if miss else -math.inf)
    return [math.exp(sum(logs) / 9), found / counted, counted, len(curve)]


def _areas(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Area shared by two boxes xywh, and the area of each."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0), a[2] * a[3], b[2] * b[3]


# Few places and sizes, so that overlaps, ties and borders are common; whole numbers, so that both sides round alike.
boxes = st.tuples(
    st.sampled_from([4, 5, 10, 20, 30, 575, 576]),
    st.sampled_from([4, 5, 10, 20, 30, 392]),
    st.sampled_from([30, 40, 60]),
    st.sampled_from([20, 45, 55, 60, 80, 115, 120]),
)
objects = st.tuples(
    boxes,
    st.sampled_from(["person", "person", "person", "people", "person?"]),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from([False, False, False, True]),
)
images = st.tuples(st.lists(objects, max_size=5), st.sampled_from(["day", "night", None]))


@st.composite
def sets(draw: st.DrawFn) -> tuple[list[Annotations], list[Row]]:
    """A few images and detections on some of them, half of these near a box of the truth."""
    drawn = draw(st.lists(images, min_size=1, max_size=4))
    annotations = [
        truth(
            *[o[0] for o in of_image],
            labels=[o[1] for o in of_image],
            occlusion=[o[2] for o in of_image],
            ignore=[o[3] for o in of_image],
            daytime=daytime,
        )
        for of_image, daytime in drawn
    ]
    places = draw(st.lists(st.integers(0, len(drawn) - 1), max_size=12))
    scores = draw(st.lists(st.integers(0, 4), min_size=len(places), max_size=len(places)))
    rows: list[Row] = []
    for place, score in zip(places, scores, strict=True):
        of_image = drawn[place][0]
        box: Box = draw(boxes)
        if of_image and draw(st.booleans()):
            x, y, w, h = draw(st.sampled_from(of_image))[0]
            box = (x + draw(st.sampled_from([0, 0, 5, 10])), y, w, h)
        rows.append((place, *box, score))
    return annotations, rows


def same(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


@settings(max_examples=120)
@given(sets())
def test_agreement_with_the_slow_implementation(drawn: tuple[list[Annotations], list[Row]]) -> None:
    annotations, rows = drawn
    matcher = match(annotations, *rows)
    for subset in SUBSETS:
        for rules in RULES:
            result = matcher.result(subset, rules)
            ours = [result.mr, result.recall, result.counted, len(result.fppi)]
            assert same(ours, slow_miss_rate(annotations, rows, subset, rules)), (subset, rules)


@settings(max_examples=40)
@given(sets(), st.sampled_from(list(RULES)))
@example(([truth(BOX)] * 2, [(0, *ELSEWHERE, 0.9), (1, *ELSEWHERE, 0.8), (1, *BOX, 0.7)]), "python")
def test_an_image_of_weight_0_is_as_if_it_were_not_there(
    drawn: tuple[list[Annotations], list[Row]], rules: str
) -> None:
    annotations, rows = drawn
    weight = np.array([0.0, *[1.0] * (len(annotations) - 1)])
    without = match(annotations[1:], *[(row[0] - 1, *row[1:]) for row in rows if row[0]])
    matcher = match(annotations, *rows)
    for subset in SUBSETS:
        read = matcher.curve(subset, rules).read(weight)
        assert same([read[0]], [without.result(subset, rules).mr]), subset


@settings(max_examples=40)
@given(sets(), st.sampled_from(list(SUBSETS)))
def test_matches_agree_with_the_counts(drawn: tuple[list[Annotations], list[Row]], subset: str) -> None:
    annotations, rows = drawn
    matcher = match(annotations, *rows)
    matches, result = matcher.matches(subset), matcher.result(subset)
    right = matches.in_subset & (matches.outcome == TP)
    wrong = matches.in_subset & (matches.outcome == FP)
    assert (~matches.box_ignored).sum() == result.counted
    assert ((matches.box_matched_by >= 0) & ~matches.box_ignored).sum() == right.sum()
    assert same([result.recall], [right.sum() / result.counted if result.counted else math.nan])
    assert len(result.fppi) == right.sum() + wrong.sum()
    assert result.images == 0 or same([wrong.sum() / result.images], [result.fppi[-1] if len(result.fppi) else 0])
    for box in np.flatnonzero(matches.box_matched_by >= 0):
        row = matches.box_matched_by[box]
        assert matches.outcome[row] == TP
        assert rows[row][0] == matcher.truth.box_image[box]
