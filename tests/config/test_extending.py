"""The examples of docs/extending.md: each as a plugin, named in an experiment, takes a step of training."""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_kaist.dataset import collate
from data_kaist.structures import Targets
from data_kaist.transforms import Sample
from ssd_effnet import registry
from ssd_effnet.build import (
    build_criterion,
    build_dataset,
    build_detector,
    build_optimizer,
    build_schedule,
    build_transforms,
)
from ssd_effnet.config.loading import EXPERIMENTS, ConfigError, load_experiment
from ssd_effnet.detection.losses import LossNameError
from ssd_effnet.evaluation.metrics import METRICS
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text("utf-8")
EXAMPLES = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```\n\n```yaml\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone afterwards."""
    for of in (value for value in vars(registry).values() if isinstance(value, registry.Registry)):
        len(of)  # its home is imported
        monkeypatch.setattr(of, "_own", dict(of._own))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)
    for name in [name for name in sys.modules if name.startswith("parts_of_")]:
        del sys.modules[name]
        registry.plugins.pop(name, None)


@pytest.mark.parametrize(("title", "code", "yaml"), EXAMPLES, ids=[title for title, _, _ in EXAMPLES])
def test_an_example_of_the_page_trains(title: str, code: str, yaml: str, tmp_path: Path, forgotten: None) -> None:
    assert len([line for line in code.splitlines() if line and not re.match(r"import|from|@|class", line)]) <= 13
    module = f"parts_of_{re.sub(r'[^a-z]', '_', title.lower())}"
    (tmp_path / f"{module}.py").write_text(code)
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: 00_vgg16.yaml\nplugins: [{module}]\n{yaml}")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{module}.*--plugins {module}"):
        load_experiment(file)
    assert module not in sys.modules
    registry.load_plugins([module], tmp_path)
    small = ["backbone.name=efficientnet-lite0", "adapter.l2_norm=false", "backbone.strides=published"]
    e = load_experiment(file, [] if "backbone:" in yaml else small, tiny=True)
    assert e.plugins == [module]
    torch.manual_seed(0)
    detector = build_detector(e)[0].train()
    lwir = np.full((200, 300), 90, np.uint8) if e.input.modality == "halfway" else None
    person = (np.array([[40.0, 30, 100, 180]]), np.array([1]), np.array([False]))
    sample = Sample(np.full((200, 300, 3), 200, np.uint8), lwir, *person, (200, 300))
    batch = collate([build_transforms(e, "train")(sample, np.random.default_rng(0))] * 2)
    boxes = torch.tensor([[[40.0, 30, 60, 80]], [[10, 10, 25, 50]]])
    targets = Targets(boxes, torch.ones(2, 1).long(), torch.zeros(2, 1).bool())
    optimizer = build_optimizer(e, detector)
    schedule = build_schedule(e, optimizer, 10)
    losses = build_criterion(e)(detector(batch.images), targets).with_own(detector, batch)
    losses.total.backward()
    optimizer.step()
    schedule.step()
    assert torch.isfinite(losses.total) and losses.positives > 0
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_a_loss_of_its_own_is_learned_logged_and_written(
    few_pairs: Path, tmp_path: Path, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's illumination loss in a run: day and night arrive, its gradient reaches, the files have it."""
    (code,) = [code for title, code, _ in EXAMPLES if "loss of a part" in title]
    (tmp_path / "parts_of_light.py").write_text(code)
    registry.load_plugins(["parts_of_light"], tmp_path)
    shutil.copytree(few_pairs, tmp_path, dirs_exist_ok=True)
    for split in ("train", "val"):
        content = json.loads((few_pairs / f"{split}.json").read_text())
        for image, time in zip(content["images"], ["day", "night", None, "day"], strict=False):
            image["daytime"] = time
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    own = ["data.kind=coco", f"data.root={tmp_path}", "data.train=train.json", "data.val=val.json", "data.test="]
    own += ["input.modality=halfway", "fusion.name=illumination_gated", "augment.names=[]", "trainer.accelerator=cpu"]
    e = load_experiment(EXPERIMENTS / "lite0.yaml", [*own, "trainer.panel_images=0", "data.min_height=0"], tiny=True)
    assert collate([build_dataset(e, "train")[i] for i in range(4)]).daytime.tolist() == [1, 0, -1, 1]
    run(e, tmp_path / "runs", echo=lambda _: None)
    directory = RunDirectory.of(e, tmp_path / "runs")
    (row,) = directory.metrics()
    for stage in ("train_epoch", "val"):
        parts = [row[f"{stage}/loss_{name}"] for name in ("cls", "loc", "illumination")]
        assert parts[2] > 0 and row[f"{stage}/loss_total"] == pytest.approx(sum(parts), rel=1e-4)
    # three levels, each with a loss of about ln 2 of every pair by day or night, none of the others: 3/4 and 2/2
    assert row["val/loss_illumination"] == pytest.approx(3 * math.log(2), rel=0.2)
    assert row["train_epoch/loss_illumination"] == pytest.approx(3 / 4 * 3 * math.log(2), rel=0.2)
    batch, detector = collate([build_dataset(e, "train")[i] for i in range(2)]), build_detector(e)[0]
    losses = build_criterion(e)(detector(batch.images), batch.targets).with_own(detector, batch)
    losses.own["illumination"].backward()
    fusion: Any = detector.backbone.fuse
    assert all(gate.gate.weight.grad.abs().max() > 0 for gate in fusion)
    monkeypatch.setattr(type(fusion[0]), "losses", lambda *_: {"cls": losses.total})
    with pytest.raises(LossNameError, match="'cls' of IlluminationGated"):
        losses.with_own(detector, batch)


def test_a_metric_that_is_watched_names_its_plugin(tmp_path: Path, forgotten: None) -> None:
    (code,) = [code for _, code, _ in EXAMPLES if "@metric(" in code]
    (tmp_path / "parts_of_a_metric.py").write_text(code)
    registry.load_plugins(["parts_of_a_metric"], tmp_path)
    watched = f"monitor=val/{list(METRICS)[-1]}"
    for own in ([f"trainer.{watched}"], ["schedule.name=plateau", "schedule.warmup_steps=0", f"schedule.{watched}"]):
        assert load_experiment("lite0", own).plugins == ["parts_of_a_metric"]
    assert load_experiment("lite0").plugins == []


def test_the_page_has_every_kind() -> None:
    used = set(re.findall(r"registry import (\w+)", PAGE))
    kinds = {name for name, value in vars(registry).items() if isinstance(value, registry.Registry)}
    assert kinds - used == {"DOWNSAMPLINGS"} and any("@metric(" in code for _, code, _ in EXAMPLES)
