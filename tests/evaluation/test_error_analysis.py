"""Kinds of error and what each costs: worked out by hand, and the table edited by hand scored by the evaluator."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.evaluation.error_analysis import Errors, Kind, groups, is_miss, nearest_box
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator

SIZE = (512, 640)
PERSON = (100.0, 100.0, 140.0, 200.0)
Box = tuple[float, float, float, float]
Row = tuple[int, Box, float]  # image, xyxy, score


def shifted(share: float, box: Box = PERSON) -> Box:
    """A box moved to the right by a share of its width: an IoU of (1 - share) / (1 + share)."""
    x1, y1, x2, y2 = box
    return (x1 + (x2 - x1) * share, y1, x2 + (x2 - x1) * share, y2)


def table(*rows: Row) -> DetectionTable:
    images, boxes, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return DetectionTable(np.array(images, np.int64), np.array(boxes, float).reshape(-1, 4), np.array(scores, float))


def images(*boxes: list[Box]) -> list[Annotations]:
    return [Annotations.from_rows(of_image, size=SIZE, daytime="day") for of_image in boxes]


def errors(annotations: list[Annotations], *rows: Row, **how: float) -> Errors:
    return Errors(MissRateEvaluator(annotations), table(*rows), **how)


def mr(annotations: list[Annotations], *rows: Row) -> float:
    return MissRateEvaluator(annotations).match(table(*rows)).result("reasonable_all").mr


FAR = (400.0, 300.0, 440.0, 400.0)
RIGHT: Row = (0, PERSON, 0.9)
DOUBLE: Row = (0, shifted(0.2), 0.8)  # IoU 2/3
BADLY: Row = (1, shifted(0.5), 0.7)  # IoU 1/3
NOTHING: Row = (2, FAR, 0.6)
UNSURE: Row = (2, PERSON, 0.2)
JUNK: Row = (0, FAR, 0.1)
FOUR = images([PERSON], [PERSON], [PERSON], [PERSON])
ROWS = (RIGHT, DOUBLE, BADLY, NOTHING, UNSURE, JUNK)


def test_each_error_has_its_kind() -> None:
    found = errors(FOUR, *ROWS, min_score=0.5)
    at_point = {kind: found.at_point(kind).tolist() for kind in Kind}
    assert at_point == {
        Kind.DUPLICATE: [1],
        Kind.MISPLACED: [2],
        Kind.BACKGROUND: [3],  # not the junk, whose score is too low
        Kind.MISSED_MISPLACED: [1],
        Kind.MISSED_UNSURE: [2],
        Kind.MISSED_UNSEEN: [3],
    }
    assert found.kinds[Kind.BACKGROUND].tolist() == [False, False, False, True, False, True]
    assert found.fppi == 3 / 4 and found.min_score == 0.6 and found.missed.sum() == 3
    assert found.overlap[:4] == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_what_if_a_kind_were_gone() -> None:
    found = errors(FOUR, *ROWS, min_score=0.5)
    assert found.miss_rate() == mr(FOUR, *ROWS)
    assert found.miss_rate_without(Kind.DUPLICATE) == mr(FOUR, RIGHT, BADLY, NOTHING, UNSURE, JUNK)
    assert found.miss_rate_without(Kind.MISPLACED) == mr(FOUR, RIGHT, DOUBLE, NOTHING, UNSURE, JUNK)
    assert found.miss_rate_without(Kind.BACKGROUND) == mr(FOUR, RIGHT, DOUBLE, BADLY, UNSURE)  # at all scores
    sure = (3, PERSON, 1.0)
    assert found.miss_rate_without(Kind.MISSED_UNSEEN) == mr(FOUR, sure, *ROWS)
    without_unsure = (RIGHT, DOUBLE, BADLY, NOTHING, JUNK)  # it is no duplicate of the one that is put in its place
    assert found.miss_rate_without(Kind.MISSED_UNSURE) == mr(FOUR, (2, PERSON, 1.0), *without_unsure)
    assert found.miss_rate_if_put_right() == mr(FOUR, RIGHT, DOUBLE, (1, PERSON, 0.7), NOTHING, UNSURE, JUNK)


def test_by_hand() -> None:
    """Four images and FPPI in quarters: three quarters are missed at the references below 1/4, and so on."""
    found = errors(FOUR, RIGHT, DOUBLE, UNSURE, min_score=0.5)
    # 0.01 to 0.178 (six references): one of four found. 0.316, 0.562 and 1: two, behind one false alarm
    assert found.miss_rate() == pytest.approx(math.exp((6 * math.log(0.75) + 3 * math.log(0.5)) / 9))
    assert found.miss_rate_without(Kind.DUPLICATE) == pytest.approx(0.5)
    assert found.miss_rate_without(Kind.MISSED_UNSURE) == pytest.approx(0.5)
    unseen = math.exp((6 * math.log(0.25) + 3 * math.log(1e-10)) / 9)
    assert found.miss_rate_without(Kind.MISSED_UNSEEN) == pytest.approx(unseen)


def test_badly_placed_upon_one_who_does_not_count() -> None:
    ignored = [Annotations.from_rows([PERSON], ["people"], size=SIZE)]
    found = errors(ignored, (0, (130, 100, 200, 200), 0.9), (0, shifted(0.1), 0.8), min_score=0.5)
    assert found.overlap[0] == pytest.approx(1 / 10)
    assert found.at_point(Kind.MISPLACED).tolist() == [0]  # the other one is dropped: no error at all
    assert sum(len(found.at_point(kind)) for kind in Kind) == 1 and math.isnan(found.miss_rate())
    assert not found.counted.any()


def test_the_operating_point_keeps_within_its_fppi() -> None:
    ten = images(*[[PERSON]] * 10)
    alarms = [(i, FAR, 0.5 + i / 100) for i in range(10)]
    found = errors(ten, (0, PERSON, 0.585), *alarms, fppi=0.3)
    assert found.fppi == 0.3 and found.min_score == pytest.approx(0.57)
    assert len(found.at_point(Kind.BACKGROUND)) == 3
    assert found.missed.sum() == 9
    assert errors(ten, *alarms, fppi=0.001).fppi == 0.1  # a set too small for it allows one
    alike = errors(ten, *[(i, FAR, 0.5) for i in range(10)], fppi=0.1)
    assert alike.shown.all() and alike.fppi == 1
    nobody = errors(ten)
    assert math.isnan(nobody.min_score) and nobody.missed.all() and nobody.miss_rate() == 1


def test_groups() -> None:
    mixed = [
        Annotations.from_rows([PERSON, (200, 100, 230, 160)], occlusion=[0, 1], size=SIZE, daytime="day"),
        Annotations.from_rows([PERSON], ["people"], size=SIZE, daytime="night"),
    ]
    found = groups(errors(mixed, RIGHT, min_score=0.5))
    told = {sort: [(g.words, g.people, g.missed) for g in parts] for sort, parts in found.items()}
    assert told == {
        "time of day": [("day", 2, 1)],
        "height in pixels": [("55 to 80", 1, 1), ("80 to 115", 1, 0)],
        "occlusion": [("none", 1, 0), ("partial", 1, 1)],
    }
    assert found["occlusion"][0].miss_rate_if_found == pytest.approx(0.5)
    assert found["occlusion"][1].miss_rate_if_found == pytest.approx(1e-10)  # the evaluator's floor


boxes = st.tuples(st.integers(10, 200), st.integers(10, 200), st.integers(20, 60), st.integers(56, 120)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)


@given(
    st.lists(st.lists(boxes, max_size=3), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), boxes, st.integers(1, 9).map(lambda s: s / 10)), max_size=14),
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from([0, 0.1, 0.3, 0.5, 0.7]), st.integers(1, 9)), max_size=14),
)
def test_every_error_has_one_kind_and_no_repair_hurts(
    people: list[list[Box]], rows: list[Row], near: list[tuple[int, float, int]]
) -> None:
    """Of boxes anywhere, and of boxes moved from a person's."""
    annotations, persons = images(*people), [(i, box) for i, of_image in enumerate(people) for box in of_image]
    rows = [row for row in rows if row[0] < len(people)]
    for k, share, score in near if persons else []:
        i, box = persons[k % len(persons)]
        rows.append((i, shifted(share, box), score / 10))
    found = errors(annotations, *rows, min_score=0.5)
    alarms = np.sum([found.kinds[kind] for kind in Kind if not is_miss(kind)], axis=0)
    misses = np.sum([found.kinds[kind] for kind in Kind if is_miss(kind)], axis=0)
    np.testing.assert_array_equal(alarms, found.matches.outcome == 0)
    np.testing.assert_array_equal(misses, found.missed)
    if found.counted.any():
        for repaired in [*(found.miss_rate_without(kind) for kind in Kind), found.miss_rate_if_put_right()]:
            assert repaired <= found.miss_rate() + 1e-12
        assert found.miss_rate_if_found(found.counted) == pytest.approx(1e-10)


def test_nearest_box() -> None:
    truth = MissRateEvaluator(images([], [FAR, PERSON]))
    nearest, overlap = nearest_box(truth, table((1, shifted(0.5), 1), (0, PERSON, 1), (1, (0, 0, 9, 9), 1)))
    assert nearest.tolist() == [1, -1, -1] and overlap == pytest.approx([1 / 3, 0, 0])
