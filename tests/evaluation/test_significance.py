"""The bootstrap: cases worked out by hand, properties, and the resampled data sets written out one by one."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_kaist.structures import Annotations, Daytime, DetectionTable
from ssd_effnet.evaluation.miss_rate import Matcher, MissRateEvaluator
from ssd_effnet.evaluation.scores import load_ground_truth
from ssd_effnet.evaluation.significance import Interval, compare, interval, resampled, seed_margin, spread
from ssd_effnet.evaluation.subsets import RULES, SUBSETS

PLACES = [(x, y, x + 40.0, y + 100.0) for x in (20, 120, 220, 320) for y in (20, 150, 280)]  # apart from each other
BOX, ELSEWHERE = PLACES[0], PLACES[-1]


def image(*boxes: Sequence[float], labels: list[str] | None = None, daytime: Daytime | None = "day") -> Annotations:
    return Annotations.from_rows(boxes, labels, size=(512, 640), daytime=daytime)


def table(rows: Sequence[tuple[int, Sequence[float], float]]) -> DetectionTable:
    """Rows of (image, box xyxy, score)."""
    boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
    return DetectionTable(np.array([row[0] for row in rows], np.int64), boxes, np.array([row[2] for row in rows]))


def joined(*tables: DetectionTable) -> DetectionTable:
    return DetectionTable(
        np.concatenate([t.image_index for t in tables]),
        np.concatenate([t.boxes_xyxy for t in tables]),
        np.concatenate([t.scores for t in tables]),
    )


def random_truth(random: np.random.Generator, n: int) -> list[Annotations]:
    """Up to three persons or groups per image, by day or by night."""
    annotations = []
    for _ in range(n):
        places = random.permutation(len(PLACES))[: random.integers(4)]
        labels = random.choice(["person", "person", "person", "people"], len(places)).tolist()
        daytime: Daytime = "day" if random.random() < 0.6 else "night"
        annotations.append(image(*[PLACES[i] for i in places], labels=labels, daytime=daytime))
    return annotations


def random_table(
    random: np.random.Generator, truth: Sequence[Annotations], recall: float = 0.7, false_an_image: float = 1.0
) -> DetectionTable:
    """Some of the objects are found, false ones lie anywhere; some images stay silent. No two scores are equal."""
    rows: list[tuple[int, Sequence[float], float]] = []
    for i in np.flatnonzero(random.random(len(truth)) < 0.8).tolist():
        rows += [(i, box, 0.0) for box in truth[i].boxes_xyxy if random.random() < recall]
        rows += [(i, PLACES[j], 0.0) for j in random.integers(len(PLACES), size=random.poisson(false_an_image))]
    without_scores = table(rows)
    return DetectionTable(
        without_scores.image_index, without_scores.boxes_xyxy, random.permutation(len(rows)).astype(float)
    )


def written_out(
    truth: Sequence[Annotations], tables: Sequence[DetectionTable], subset: str, rules: str, resamples: int, seed: int
) -> np.ndarray:
    """Miss rates ``(tables, resamples)``, from data sets in which the drawn images stand one after the other."""
    images = np.flatnonzero(MissRateEvaluator(truth).image_is[SUBSETS[subset].daytime])
    random = np.random.default_rng(seed)
    rates = np.full((len(tables), resamples), np.nan)
    for i in range(resamples if len(images) else 0):
        drawn = images[random.integers(len(images), size=len(images))]
        evaluator = MissRateEvaluator([truth[j] for j in drawn])
        for k, of_detector in enumerate(tables):
            parts = [of_detector.of_image(j) for j in drawn]
            place = np.repeat(np.arange(len(drawn)), [len(part) for part in parts])
            rates[k, i] = (
                evaluator.match(
                    DetectionTable(place, *(getattr(joined(*parts), name) for name in ("boxes_xyxy", "scores")))
                )
                .result(subset, rules)
                .mr
            )
    return rates


# ------------------------------------------------------------------------------------------------- worked by hand


def test_two_images_one_person_found() -> None:
    """The found person is drawn twice, once or not at all: a quarter, a half, a quarter of all resamples."""
    evaluator = MissRateEvaluator([image(BOX), image(BOX)])
    one, none = evaluator.match(table([(0, BOX, 0.9)])), evaluator.match(DetectionTable.empty())
    rates = resampled([[one], [none]])
    assert rates.shape == (2, 2000)
    assert (rates[1] == 1).all()
    shares = [np.isclose(rates[0], rate, atol=1e-9).mean() for rate in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    assert sum(shares) == pytest.approx(1)
    result = compare([one], [none])
    assert (result.a.value, result.a.low, result.a.high) == pytest.approx((0.5, 0, 1), abs=1e-9)
    assert result.b == Interval(1, 1, 1)
    assert (result.difference.value, result.difference.low, result.difference.high) == pytest.approx((-0.5, -1, 0))
    assert result.p == pytest.approx(2 * (np.count_nonzero(rates[0] == 1) + 1) / 2001)
    assert result.resamples == 2000


def test_the_interval_is_that_of_order_statistics() -> None:
    random = np.random.default_rng(5)
    truth = random_truth(random, 30)
    matcher = MissRateEvaluator(truth).match(random_table(random, truth))
    ordered = np.sort(resampled([[matcher]])[0])
    assert interval([matcher]) == Interval(matcher.result("reasonable_all").mr, ordered[49], ordered[1950])


def test_an_image_drawn_by_chance_may_hold_nobody() -> None:
    """Only the first of three images counts a person: 8 of 27 draws leave it out, and are left out themselves."""
    evaluator = MissRateEvaluator([image(BOX), image(), image(BOX, labels=["people"])])
    found, missed = evaluator.match(table([(0, BOX, 0.9)])), evaluator.match(table([(0, ELSEWHERE, 0.9)]))
    result = compare([found], [missed])
    assert result.resamples == pytest.approx(2000 * 19 / 27, abs=80)
    assert result.p == 2 / (result.resamples + 1)
    assert result.difference.value == result.difference.low == result.difference.high == pytest.approx(-1)
    assert interval([found]) == Interval(result.a.value, result.a.low, result.a.high)


def test_spread_over_seeds() -> None:
    evaluator = MissRateEvaluator([image(BOX, ELSEWHERE)])
    seeds = [evaluator.match(table([(0, box, 0.9) for box in boxes])) for boxes in ([BOX, ELSEWHERE], [BOX], [])]
    assert spread(seeds) == pytest.approx((0.5, 0.5))
    mean, deviation = spread(seeds[1:2])
    assert mean == pytest.approx(0.5)
    assert np.isnan(deviation)


# ------------------------------------------------------------------------------------------ the draws, written out


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 25),
    st.sampled_from(["reasonable_all", "reasonable_day", "reasonable_night", "medium", "all_h20"]),
    st.sampled_from(list(RULES)),
)
def test_agreement_with_data_sets_written_out(number: int, n: int, subset: str, rules: str) -> None:
    random = np.random.default_rng(number)
    truth = random_truth(random, n)
    tables = [random_table(random, truth), random_table(random, truth, 0.9, 3), DetectionTable.empty()]
    evaluator = MissRateEvaluator(truth)
    ours = resampled([[evaluator.match(t)] for t in tables], subset, rules, resamples=20, seed=number)
    theirs = written_out(truth, tables, subset, rules, 20, number)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rules", RULES)
def test_a_long_tail_of_false_positives_does_not_matter(rules: str) -> None:
    """The surest false ones lie on few images: a draw without these has to look far down the curve."""
    random = np.random.default_rng(1)
    truth = random_truth(random, 120)
    found = random_table(random, truth)
    crowded = table([(i, PLACES[i % 12], 1000 + i + j / 100) for i in range(2) for j in range(50)])
    tail = table([(i, PLACES[j % 12], -1 - j - i / 200) for i in range(120) for j in range(30)])
    loud = joined(crowded, found, tail)
    evaluator = MissRateEvaluator(truth)
    ours = resampled([[evaluator.match(loud)]], rules=rules, resamples=40)
    np.testing.assert_allclose(ours, written_out(truth, [loud], "reasonable_all", rules, 40, 0), rtol=0, atol=1e-12)
    assert len(np.unique(ours)) > 20


def test_only_images_of_the_subset_are_drawn() -> None:
    random = np.random.default_rng(2)
    truth = random_truth(random, 40)
    found = random_table(random, truth)
    night = [i for i, of_image in enumerate(truth) if of_image.daytime == "night"]
    parts = [found.of_image(i) for i in night]
    of_night = joined(*(DetectionTable(np.full(len(p), i), p.boxes_xyxy, p.scores) for i, p in enumerate(parts)))
    alone = MissRateEvaluator([truth[i] for i in night]).match(of_night)
    within = MissRateEvaluator(truth).match(found)
    assert (resampled([[within]], "reasonable_night") == resampled([[alone]])).all()


# ---------------------------------------------------------------------------------------------------- properties


@pytest.fixture(scope="module")
def matched() -> tuple[MissRateEvaluator, list[Matcher]]:
    """Three tables of detections on 150 images."""
    random = np.random.default_rng(3)
    truth = random_truth(random, 150)
    evaluator = MissRateEvaluator(truth)
    return evaluator, [evaluator.match(random_table(random, truth, recall)) for recall in (0.6, 0.7, 0.7)]


@pytest.mark.parametrize("rules", RULES)
def test_the_same_detections_never_differ(matched: tuple[MissRateEvaluator, list[Matcher]], rules: str) -> None:
    first = matched[1][0]
    rates = resampled([[first], [first]], rules=rules)
    assert (rates[0] == rates[1]).all()
    result = compare([first], [first, first], rules=rules)
    assert result.difference == Interval(0, 0, 0)
    assert result.p == 1


def test_further_hits_are_better_nearly_always() -> None:
    random = np.random.default_rng(4)
    truth = [image(BOX) for _ in range(200)]
    false = table([(i, ELSEWHERE, random.random()) for i in range(0, 200, 2)])
    evaluator = MissRateEvaluator(truth)
    fewer, more = (
        evaluator.match(joined(table([(i, BOX, 0.5 + i / 1000) for i in range(found)]), false)) for found in (120, 150)
    )
    for rules in RULES:
        rates = resampled([[more], [fewer]], rules=rules)
        assert (rates[0] < rates[1]).mean() > 0.99
        result = compare([more], [fewer], rules=rules)
        assert result.difference.low < result.difference.value < result.difference.high < 0
        assert result.p < 0.01


def test_an_experiment_is_the_mean_of_its_seeds(matched: tuple[MissRateEvaluator, list[Matcher]]) -> None:
    first, second, third = matched[1]
    one, two, three = resampled([[first], [second], [third]], resamples=300)
    pooled = resampled([[first], [second, third]], resamples=300)
    assert (pooled == [one, (two + three) / 2]).all()
    result = compare([first], [second, third], resamples=300)
    assert result.b.value == spread([second, third])[0]
    assert result.difference.value == result.a.value - result.b.value
    assert interval([second, third], resamples=300) == result.b


def test_sides_swapped(matched: tuple[MissRateEvaluator, list[Matcher]]) -> None:
    a, b = [matched[1][0]], matched[1][1:]
    one, other = compare(a, b, resamples=500), compare(b, a, resamples=500)
    assert (one.a, one.b, one.p) == (other.b, other.a, other.p)
    there, back = one.difference, other.difference
    assert (there.value, there.low, there.high) == (-back.value, -back.high, -back.low)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(39, 300))
def test_p_and_interval_say_the_same(number: int, resamples: int) -> None:
    random = np.random.default_rng(number)
    truth = [image(BOX)] * 20
    evaluator = MissRateEvaluator(truth)
    a, b = ([evaluator.match(random_table(random, truth, recall, 0.1))] for recall in (0.5, 0.8))
    result = compare(a, b, resamples=resamples)
    assert (result.p <= 0.05) == (result.difference.high < 0 or result.difference.low > 0)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_lines_does_not_matter(number: int) -> None:
    random = np.random.default_rng(number)
    truth = random_truth(random, 15)
    found = random_table(random, truth)
    order = random.permutation(len(found))
    shuffled = DetectionTable(found.image_index[order], found.boxes_xyxy[order], found.scores[order])
    evaluator = MissRateEvaluator(truth)
    for rules in RULES:
        rates = resampled([[evaluator.match(found)], [evaluator.match(shuffled)]], rules=rules, resamples=50)
        np.testing.assert_array_equal(rates[0], rates[1])


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (2, 5), (8, 8)])
def test_seeds_alone_part_two_equal_experiments_as_rarely_as_is_said(seeds: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    apart = 0
    for _ in range(2000):
        a, b = (rng.normal(0.5, 0.04, n) for n in seeds)
        apart += abs(a.mean() - b.mean()) > seed_margin(a.tolist(), b.tolist())
    assert 0.03 < apart / 2000 < 0.07  # 5 %; twice the standard error: 18, 12, 15 and 7 %


def test_the_margin_of_seeds_is_students() -> None:
    # G. W. Snedecor and W. G. Cochran, "Statistical Methods", table of t: 2.776 with four degrees of freedom
    assert seed_margin([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]) == pytest.approx(2.776 * np.sqrt(0.005 * 2 / 3))
    assert seed_margin([0.1], [0.2]) == np.inf


def test_the_seed_chooses_the_draws(matched: tuple[MissRateEvaluator, list[Matcher]]) -> None:
    first, second, _ = matched[1]
    again, alone, other = (
        resampled(experiments, resamples=50, seed=seed)[0]
        for experiments, seed in (([[first]], 7), ([[first], [second]], 7), ([[first]], 8))
    )
    assert (again == alone).all()
    assert (again != other).any()


# ------------------------------------------------------------------------------------------- nothing, and bad input


def test_no_detections_at_all(matched: tuple[MissRateEvaluator, list[Matcher]]) -> None:
    evaluator, (first, _, _) = matched
    silent = evaluator.match(DetectionTable.empty())
    result = compare([silent], [silent], rules="matlab")
    assert result.a == result.b == Interval(1, 1, 1)
    assert (result.difference, result.p) == (Interval(0, 0, 0), 1)
    assert compare([first], [silent], rules="matlab").difference.high < 0
    no_number = compare([first], [silent], rules="python")  # no image of B counts
    assert no_number.resamples == 0
    assert no_number.a.value == first.result("reasonable_all", "python").mr
    assert np.isnan([no_number.b.value, no_number.difference.value, no_number.difference.low, no_number.p]).all()


def test_no_images_of_the_subset() -> None:
    matcher = MissRateEvaluator([image(BOX, daytime=None)]).match(table([(0, BOX, 0.9)]))
    result = compare([matcher], [matcher], "reasonable_night")
    assert result.resamples == 0
    assert np.isnan([result.p, result.a.value, result.a.low, result.difference.high]).all()


def test_what_cannot_be_compared_is_refused(matched: tuple[MissRateEvaluator, list[Matcher]]) -> None:
    first = matched[1][0]
    other = MissRateEvaluator([image(BOX)]).match(DetectionTable.empty())
    with pytest.raises(ValueError, match="one MissRateEvaluator"):
        compare([first], [other])
    with pytest.raises(ValueError, match="one MissRateEvaluator"):
        interval([first, other])
    with pytest.raises(ValueError, match="without detections of any seed"):
        compare([first], [])


# -------------------------------------------------------------------------------------------- published detectors


def test_published_detectors_differ_as_published(shared: Path) -> None:
    """The least of the ten differences is 3.6 points: all are told apart, the better one as published."""
    expected = json.loads((shared / "reference/kaist/expected_miss_rates.json").read_text())
    truth = load_ground_truth(shared / "reference/kaist/KAIST_annotation.json")
    evaluator = MissRateEvaluator(truth.annotations)
    matchers = {
        name: evaluator.match(truth.read_detections(shared / f"reference/kaist/results/{name}.txt"))
        for name in expected
    }
    for a, b in combinations(expected, 2):
        result = compare([matchers[a]], [matchers[b]], resamples=400)
        published = [expected[name]["kaist_matlab_rule"]["reasonable_all"] for name in (a, b)]
        assert [round(100 * side.value, 2) for side in (result.a, result.b)] == published
        assert result.difference.low < result.difference.value < result.difference.high
        assert result.resamples == 400
        assert result.p <= 0.05
        assert np.sign(result.difference.value) == np.sign(published[0] - published[1])
