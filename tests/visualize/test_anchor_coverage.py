"""How well anchors cover objects, and anchors fitted to them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command

from data_kaist.layouts import Frame
from data_kaist.structures import Annotations
from ssd_effnet.config.keys import unlike
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.visualize.anchor_coverage import Fit, anchor_coverage, fit_anchors, write_fitted

# Levels of stride 8, 16, 32 and so on, of which the finest has anchors of 20x40 pixels and the next of 40x80.
ANCHORS = ("anchors.sizes=[28.284271,56.568542,200,220,240,260]", "anchors.ratios=[0.5]", "anchors.scales=[1.0]")


def experiment(*overrides: str) -> ExperimentConfig:
    size = ("input.size=[128,160]", "anchors.reference_size=[128,160]")
    return load_experiment("lite0", [*size, *ANCHORS, *overrides])


def frame(
    *boxes_cxcywh: tuple[float, float, float, float], size: tuple[int, int] = (128, 160), **more: object
) -> Frame:
    boxes = [(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in boxes_cxcywh]
    return Frame("a", None, None, Annotations.from_rows(boxes, size=size, **more))  # type: ignore[arg-type]


def test_coverage_by_hand() -> None:
    """An anchor itself, one of half its height, one 4 pixels away from the nearest centre in x and in y."""
    same, half, apart = (36.0, 60.0, 20.0, 40.0), (84.0, 60.0, 20.0, 20.0), (120.0, 64.0, 20.0, 40.0)
    found = anchor_coverage(experiment(), [frame(same, half, daytime="day"), frame(apart, daytime="night")])
    assert found is not None
    shifted = (20 - 4) * (40 - 4)
    expected = [1, 0.5, shifted / (2 * 800 - shifted)]
    np.testing.assert_allclose(found.best_iou, expected, rtol=1e-5)
    assert found.level.tolist() == [0, 0, 0]
    rows = {name: row for name, *row in found.rows()}
    assert rows["all"] == ["3", f"{np.mean(expected):.3f}", "100.0"]
    assert rows["day"][0] == "2" and rows["night"] == ["1", f"{expected[2]:.3f}", "100.0"]
    assert rows["height 12 to 45"][0] == rows["stage3, stride 8"][0] == "3"


def test_bounds() -> None:
    """AP of perfect scores: of bare anchors it is that of their IoU; NMS takes one of two people in one place."""
    apart = anchor_coverage(experiment(), [frame((36, 60, 20, 40), (84, 60, 20, 20))])
    assert apart is not None and apart.bounds["exact offsets"]["AP"] == pytest.approx(100)
    assert apart.bounds["no offsets"]["AP75"] == pytest.approx(100 * 51 / 101)  # one of two is met at 0.75
    together = anchor_coverage(experiment(), [frame((36, 60, 20, 40), (38, 60, 20, 40))])
    assert together is not None and together.bounds["exact offsets"]["AP50"] == pytest.approx(100 * 51 / 101)
    focal = anchor_coverage(experiment("class_loss.name=focal"), [frame((36, 60, 20, 40))])  # no background class
    assert focal is not None and focal.bounds["exact offsets"]["AP"] == pytest.approx(100)


def test_objects_are_those_of_training() -> None:
    """Sizes are of the network's input, heights of the file; ignore regions and frames of them are left out."""
    flagged = frame((36, 60, 20, 40), ignore=[True])
    found = anchor_coverage(experiment(), [frame((72, 120, 40, 80), size=(256, 320)), flagged])
    assert found is not None and found.best_iou.tolist() == pytest.approx([1]) and found.height.tolist() == [80]
    assert anchor_coverage(experiment(), [flagged]) is None
    small = frame((28.8, 48, 16, 32), size=(64, 128))  # letterboxed by 1.25 to 80x160 of 128x160
    found = anchor_coverage(experiment("input.fit=letterbox"), [small])
    assert found is not None and found.best_iou.tolist() == pytest.approx([1])
    assert found.bounds["exact offsets"]["AP"] == pytest.approx(100)


def test_fit(tmp_path: Path) -> None:
    """Objects of two shapes at anchor centres are found again; a level more is never worse."""
    e = experiment("anchors.ratios=[0.7]")
    small = [(36.0 + 8 * i, 60.0, 12.0, 24.0) for i in range(6)]
    large = [(40.0 + 16 * i, 56.0, 30.0, 60.0) for i in range(3)]
    frames = [frame(box) for box in [*small, *large]]
    coverage = anchor_coverage(e, frames)
    assert coverage is not None
    fits = fit_anchors(e, coverage)
    means = [float(fit.best_iou.mean()) for fit in fits]
    assert len(fits) == 6 and means == sorted(means)
    torch.testing.assert_close(fits[1].sizes, torch.tensor([288.0, 1800.0]).sqrt())
    torch.testing.assert_close(fits[1].ratios, torch.tensor([0.5]))
    assert means[1] == pytest.approx(1)
    write_fitted(tmp_path / "fitted.yaml", "lite0", e, fits[-1])
    fitted = load_experiment(tmp_path / "fitted.yaml")
    assert fitted.anchors.ratios == [0.5] and fitted.ancestors == ["lite0", "00_vgg16"]
    again = anchor_coverage(fitted, frames)
    assert again is not None and again.best_iou.min() > 0.8


@pytest.mark.parametrize("base", ["lite0", "efficientdet_d0"])
def test_fitted_anchors_keep_what_they_were_fitted_for(base: str, tmp_path: Path) -> None:
    e = load_experiment(base, ["input.size=[128,160]", "data.classes={car: [car, van]}", "data.min_height=20"])
    sizes = torch.tensor(e.anchors.sizes) * 1.5
    write_fitted(tmp_path / "fitted.yaml", base, e, Fit(sizes, torch.tensor([0.3, 0.6]), torch.ones(1)))
    fitted = load_experiment(tmp_path / "fitted.yaml")
    assert set(unlike(e, fitted)) == {"anchors.ratios", "anchors.sizes"} and fitted.ancestors[0] == base
    assert fitted.anchors.ratios == pytest.approx([0.3, 0.6])


def test_command(synthetic: Path, few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--split", "train-all-06", "--pictures", 0, "--anchors", "lite0", "input.size=[64,80]")
    done = command("inspect", synthetic, *given)
    assert done.returncode == 0 and "IoU >= 0.5" in done.stdout and "exact offsets" in done.stdout
    assert "lite0_anchors.yaml" in done.stdout and len(load_experiment("lite0_anchors.yaml").anchors.sizes) == 6
    done = command("inspect", few_pairs, *given[2:])
    assert "five.json: best anchors" in done.stdout and "train.json: anchors fitted" in done.stdout, done.stderr
