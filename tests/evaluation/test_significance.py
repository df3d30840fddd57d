"""Blocks, jackknife and verdicts: cases worked out by hand, data sets written out, and how often verdicts are wrong."""

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from data_kaist.structures import Annotations, Daytime, DetectionTable
from ssd_effnet.evaluation.average_precision import AveragePrecision
from ssd_effnet.evaluation.ground_truth import GroundTruth, load_ground_truth
from ssd_effnet.evaluation.miss_rate import Curve, Matcher, MissRateEvaluator
from ssd_effnet.evaluation.significance import (
    TooFewVideosError,
    blocks,
    compare,
    estimate,
    holm,
    image_variance,
    jackknife,
    replicates,
    seeds_to_tell,
)
from ssd_effnet.evaluation.subsets import RULES

PLACES = [(x, y, x + 40.0, y + 100.0) for x in (20, 120, 220, 320) for y in (20, 150, 280)]  # apart from each other
BOX, ELSEWHERE = PLACES[0], PLACES[-1]


def image(*boxes: Sequence[float], labels: list[str] | None = None, daytime: Daytime | None = "day") -> Annotations:
    return Annotations.from_rows(boxes, labels, size=(512, 640), daytime=daytime)


def table(rows: Sequence[tuple[int, Sequence[float], float]]) -> DetectionTable:
    """Rows of (image, box xyxy, score)."""
    boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
    return DetectionTable(np.array([row[0] for row in rows], np.int64), boxes, np.array([row[2] for row in rows]))


def random_case(seed: int, n: int) -> tuple[list[Annotations], DetectionTable]:
    """Up to three persons or groups per image; some are found, false alarms lie anywhere, no two scores are equal."""
    random = np.random.default_rng(seed)
    truth, rows = [], []
    for i in range(n):
        places = random.permutation(len(PLACES))[: random.integers(4)]
        labels = random.choice(["person", "person", "people"], len(places)).tolist()
        truth.append(image(*[PLACES[k] for k in places], labels=labels, daytime="day" if i % 3 else "night"))
        rows += [(i, PLACES[k], 0.0) for k in places if random.random() < 0.7]
        rows += [(i, PLACES[k], 0.0) for k in random.integers(len(PLACES), size=random.poisson(0.7))]
    scores = random.permutation(len(rows)).astype(float)
    return truth, table([(i, box, score) for (i, box, _), score in zip(rows, scores, strict=True)])


def test_videos_are_cut_into_stretches_of_about_thirty() -> None:
    names = [f"set{s:02}/V{v:03}/I{i:05}" for s in range(7) for v in range(3) for i in range(44 if v else 46)]
    block = blocks(names)  # 46 frames are two stretches (46 / 30 rounds to 2), 44 are one
    assert len(set(block)) == 7 * 4
    assert [int((block == b).sum()) for b in range(4)] == [23, 23, 44, 44]
    assert len(set(blocks(names, videos=True))) == 21
    mixed = np.random.default_rng(0).permutation(len(names))  # as by ids that follow no video
    of_mixed = blocks([names[i] for i in mixed])
    assert {frozenset(mixed[of_mixed == b]) for b in of_mixed} == {frozenset(np.flatnonzero(block == b)) for b in block}


def test_few_blocks_are_cut_shorter_and_other_images_stand_alone() -> None:
    names = [f"set00/V000/I{i:05}" for i in range(100)] + ["a.jpg", "b.jpg", "set00/V000x"]
    assert np.bincount(blocks(names)).tolist() == [10] * 10 + [1, 1, 1]
    assert blocks(["x", "x"]).tolist() == [0, 1]
    with pytest.raises(TooFewVideosError, match="4 videos"):
        blocks(names, videos=True)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("subset", ["reasonable_all", "reasonable_night"])
def test_leaving_out_is_scoring_the_rest(rules: str, subset: str) -> None:
    truth, found = random_case(1, 60)
    block = np.arange(60) // 7
    ours = jackknife(MissRateEvaluator(truth).match(found), block, subset, rules)
    theirs = []
    for left_out in (-1, *range(9)):
        kept = np.flatnonzero(block != left_out)
        of = found.rows(np.isin(found.image_index, kept))
        rows = zip(np.searchsorted(kept, of.image_index).tolist(), of.boxes_xyxy, of.scores.tolist(), strict=True)
        of = table(list(rows))
        theirs.append(100 * MissRateEvaluator([truth[i] for i in kept]).match(of).result(subset, rules).mr)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_only_blocks_of_the_subset_are_left_out() -> None:
    truth, found = random_case(2, 30)
    for i, of in enumerate(truth):
        object.__setattr__(of, "daytime", "night" if i < 12 else "day")
    matcher = MissRateEvaluator(truth).match(found)
    assert jackknife(matcher, np.arange(30) // 3, "reasonable_night").shape == (1 + 4,)


def test_a_reading_of_zero_is_no_figure() -> None:
    matcher = MissRateEvaluator([image(BOX)] * 3).match(table([(i, BOX, 0.9) for i in range(3)]))
    found = jackknife(matcher, np.arange(3))
    assert found[0] < 1e-6 and np.isnan(found[1:]).all()
    perfect = compare(found, np.full(4, 50.0))
    assert math.isnan(perfect.p) and not perfect.readable and "reads zero" in perfect.doubt()


def test_average_precision_by_images() -> None:
    """An image that counts twice is an image that stands there twice; all once is what pycocotools says."""
    from pycocotools.cocoeval import COCOeval

    truth, found = random_case(3, 25)
    matched = AveragePrecision(truth, found)
    accumulate = []
    of = COCOeval.evaluate

    def evaluate(self: COCOeval) -> None:
        of(self)
        self.accumulate()
        accumulate.append(100 * self.eval["precision"][:, :, 0, 0, 0].mean(axis=1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(COCOeval, "evaluate", evaluate)
        AveragePrecision(truth, found)
    theirs = accumulate[0]
    assert list(matched.figures().values()) == [theirs.mean(), theirs[0], theirs[5]]
    weight = np.random.default_rng(0).integers(3, size=25)
    drawn = np.repeat(np.arange(25), weight)
    of_drawn = [(place, found.of_image(i)) for place, i in enumerate(drawn)]
    rows = [(place, *one) for place, of in of_drawn for one in zip(of.boxes_xyxy, of.scores, strict=True)]
    written_out = AveragePrecision([truth[i] for i in drawn], table(rows)).figures()
    assert matched.figures(weight.astype(float)) == pytest.approx(written_out, abs=1e-9)


def test_the_formula_by_hand() -> None:
    """Three seeds against three, three blocks: every part of the variance written out."""
    a = np.array([[10.0, 9, 10, 11], [12, 12, 11, 13], [11, 10, 11, 12]])
    b = np.array([[20.0, 20, 19, 21], [21, 20, 22, 21], [22, 23, 21, 22]])

    def j(x: np.ndarray) -> float:
        return float(2 / 3 * ((x[1:] - x[1:].mean()) ** 2).sum())

    img = j(a.mean(0) - b.mean(0))
    own = sum(j(s - x.mean(0)) / 6 for x in (a, b) for s in x)
    va = vb = 1 / 3
    rest = max(img - own, 0)
    variance = va + vb + rest
    freedom = variance**2 / (va**2 / 2 + vb**2 / 2 + rest**2 / 2)
    found = compare(a, b)
    assert found.difference == -10 and found.pairs == 9 and found.blocks == 3
    assert found.freedom == pytest.approx(freedom)
    assert found.high - found.difference == pytest.approx(student.ppf(0.975, freedom) * math.sqrt(variance))
    assert found.p == pytest.approx(2 * student.sf(10 / math.sqrt(variance), freedom))
    assert found.of_seeds == pytest.approx((va + vb) / variance)
    assert found.doubt() == "" and "by chance" in found.doubt(p=0.06)


def test_few_seeds_have_no_verdict() -> None:
    random = np.random.default_rng(5)
    a, b = random.normal(10, 0.1, (5, 31)), random.normal(50, 0.1, (5, 31))
    assert "too few seeds" in compare(a[:2], b).doubt() and compare(a[:2], b).p < 0.05
    one = compare(a[:1], b)
    assert "too few seeds" in one.doubt() and math.isnan(one.p) and math.isnan(one.low)
    weights = compare(a[0], b[0])
    assert weights.p < 0.05 and "too few seeds" in weights.doubt()  # of these weights, by the images alone


def test_no_variance_is_no_evidence() -> None:
    same, other = np.full((3, 11), 20.0), np.full((3, 11), 21.0)
    assert (compare(same, same).p, compare(same, other).p) == (1, 1)
    assert compare(same, other).doubt()


def test_how_many_seeds_would_tell() -> None:
    random = np.random.default_rng(6)

    def seeds(n: int, spread: float, images: float) -> np.ndarray:
        of_block = random.normal(0, images * math.sqrt(30), 30)
        values = random.normal(0, spread, (n, 1)) + of_block
        return np.concatenate([values.mean(1, keepdims=True), (values.sum(1, keepdims=True) - values) / 29], axis=1)

    few, low, high = seeds_to_tell(seeds(5, 1.0, 0.01), seeds(5, 1.0, 0.01)) or (0, 0, 0)
    assert 3 <= low <= few <= high and 4 <= few <= 9
    assert seeds_to_tell(seeds(5, 1.0, 3.0), seeds(5, 1.0, 3.0)) is None  # the images alone forbid it


def equal_pair(random: np.random.Generator, seeds: int, images: float, spread: float) -> list[np.ndarray]:
    """Two experiments without a true difference; the seeds of the second spread so many times as much.

    Both see the same blocks. What a block does to one experiment it does to all its seeds, and a little to each; the
    variance of the difference that comes from it is ``images`` times that from the seeds.
    """
    number = 40
    shared = random.normal(0, 3, number)
    of_images = math.sqrt(images * (1 + spread**2) / seeds / 2 * number)
    sides = []
    for scale in (1.0, spread):
        own = random.normal(0, 0.3 * scale, (seeds, number))
        values = random.normal(0, scale, (seeds, 1)) + shared + random.normal(0, of_images, number) + own
        rest = (values.sum(1, keepdims=True) - values) / (number - 1)
        sides.append(np.concatenate([values.mean(1, keepdims=True), rest], axis=1))
    return sides


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("images", [0, 3])
@pytest.mark.parametrize("spread", [1, 8])
def test_equal_experiments_are_told_apart_as_rarely_as_is_said(seeds: int, images: float, spread: float) -> None:
    random = np.random.default_rng(1)
    apart = [compare(*equal_pair(random, seeds, images, spread)).p <= 0.05 for _ in range(600)]
    assert 0.02 <= np.mean(apart) <= 0.08


def test_a_chain_of_ten_without_a_difference() -> None:
    random = np.random.default_rng(8)
    wrong = 0
    for _ in range(200):
        found = [compare(*equal_pair(random, 3, 1, 1)).p for _ in range(10)]
        wrong += min(holm(found)) <= 0.05
    assert wrong / 200 <= 0.08


@pytest.fixture(scope="module")
def truth(shared: Path) -> GroundTruth:
    return load_ground_truth(shared / "reference/kaist/KAIST_annotation.json")


@pytest.fixture(scope="module")
def published(shared: Path, truth: GroundTruth) -> dict[str, Matcher]:
    evaluator = MissRateEvaluator(truth.annotations)
    names = json.loads((shared / "reference/kaist/expected_miss_rates.json").read_text())
    return {n: evaluator.match(truth.read_detections(shared / f"reference/kaist/results/{n}.txt")) for n in names}


def test_published_detectors_by_blocks(truth: GroundTruth, published: dict[str, Matcher]) -> None:
    """All are told apart but the two that come apart by single images only (p .001; .12 by blocks, .33 by videos)."""
    block, videos = blocks(truth.names), blocks(truth.names, videos=True)
    assert (block.max() + 1, videos.max() + 1) == (76, 16)
    rates = {name: jackknife(matcher, block) for name, matcher in published.items()}
    apart = {frozenset(pair): compare(*(rates[name] for name in pair)).p for pair in combinations(rates, 2)}
    alike = frozenset(("TC-Det-thermal", "YOLOv3-visible"))
    assert apart.pop(alike) == pytest.approx(0.12, abs=0.01)
    assert max(apart.values()) < 0.05
    assert compare(*(jackknife(published[name], videos) for name in alike)).p == pytest.approx(0.33, abs=0.01)


def test_jackknife_against_bootstrap(truth: GroundTruth, published: dict[str, Matcher]) -> None:
    """Standard errors of miss rates: the ratio to 300 draws of blocks lies at 1.03, 0.98 to 1.08."""
    block, random = blocks(truth.names), np.random.default_rng(9)
    ratios = []
    for matcher in published.values():
        curve = matcher.curve("reasonable_all")
        weights = (np.bincount(random.integers(76, size=76), minlength=76)[block] for _ in range(300))
        drawn = [100 * curve.read(weight.astype(float))[0] for weight in weights]
        ratios.append(math.sqrt(image_variance(jackknife(matcher, block)[None])) / np.std(drawn, ddof=1))
    assert 0.9 <= np.mean(ratios) <= 1.2


@pytest.mark.slow
def test_halves_of_the_videos_agree(truth: GroundTruth, published: dict[str, Matcher]) -> None:
    """A difference of detectors on one half of the videos against that on the other: rms z at most 1.4."""
    block, videos = blocks(truth.names), blocks(truth.names, videos=True)
    random, z = np.random.default_rng(10), []
    curves = {name: matcher.curve("reasonable_all") for name, matcher in published.items()}

    def of_half(curve: Curve, images: np.ndarray) -> np.ndarray:
        return replicates(lambda weight: 100 * curve.read(weight * images)[0], block, np.flatnonzero(images))

    for _ in range(8):
        half = np.isin(videos, random.permutation(16)[:8])
        for a, b in combinations(published, 2):
            found = []
            for images in (half, ~half):
                sides = [of_half(curves[name], images) for name in (a, b)]
                difference = sides[0] - sides[1]
                found.append((difference[0], image_variance(difference[None])))
            z.append((found[0][0] - found[1][0]) / math.sqrt(found[0][1] + found[1][1]))
    assert math.sqrt(np.mean(np.square(z))) <= 1.4


@pytest.mark.slow
def test_jittered_scores_as_seeds(shared: Path, truth: GroundTruth) -> None:
    """A detector against itself, seeds made by noise on its scores: told apart in 1 to 10 %."""
    evaluator, block = MissRateEvaluator(truth.annotations), blocks(truth.names)
    found = truth.read_detections(shared / "reference/kaist/results/MLPD.txt")
    random, apart = np.random.default_rng(11), []

    def seeds() -> np.ndarray:
        logits = np.log(np.clip(found.scores, 1e-6, 1 - 1e-6) / (1 - np.clip(found.scores, 1e-6, 1 - 1e-6)))
        jittered = [logits + random.normal(0, 1.5, len(found)) for _ in range(3)]
        tables = [DetectionTable(found.image_index, found.boxes_xyxy, scores) for scores in jittered]
        return np.stack([jackknife(evaluator.match(t), block) for t in tables])

    for _ in range(100):
        apart.append(compare(seeds(), seeds()).p <= 0.05)
    assert 0.01 <= np.mean(apart) <= 0.1


def test_one_experiment_alone() -> None:
    a = np.array([[10.0, 9, 10, 11], [12, 12, 11, 13], [11, 10, 11, 12]])
    alone = estimate(a)
    assert alone.value == 11 and alone.low < 11 < alone.high
    of_images = estimate(a[0])
    assert of_images.high - 10 == pytest.approx(student.ppf(0.975, 2) * math.sqrt(2 / 3 * 2))
    assert math.isnan(estimate(np.full((1, 4), math.nan)).low)
