"""The examples of docs/extending.md: each as a plugin, named in an experiment, takes a step of training."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_kaist.structures import Targets
from data_kaist.transforms import Sample
from ssd_effnet import registry
from ssd_effnet.build import build_criterion, build_detector, build_optimizer, build_schedule, build_transforms
from ssd_effnet.config.loading import ConfigError, load_experiment
from ssd_effnet.evaluation.metrics import METRICS

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
    assert len([line for line in code.splitlines() if line and not re.match(r"import|from|@|class", line)]) <= 10
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
    sample = Sample(
        np.full((200, 300, 3), 200, np.uint8), None, np.array([[40.0, 30, 100, 180]]), np.array([1]), np.array([False]),
        (200, 300),
    )  # fmt: skip
    seen = build_transforms(e, "train")(sample, np.random.default_rng(0)).visible
    assert seen is not None
    images = torch.from_numpy(seen).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    targets = Targets(
        torch.tensor([[[40.0, 30, 60, 80]], [[10, 10, 25, 50]]]), torch.ones(2, 1).long(), torch.zeros(2, 1).bool()
    )
    optimizer = build_optimizer(e, detector)
    schedule = build_schedule(e, optimizer, 10)
    losses = build_criterion(e)(detector(images), targets)
    losses.total.backward()
    optimizer.step()
    schedule.step()
    assert torch.isfinite(losses.total) and losses.positives > 0
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_the_page_has_every_kind() -> None:
    used = {name for _, code, _ in EXAMPLES for name in re.findall(r"registry import (\w+)", code)}
    kinds = {name for name, value in vars(registry).items() if isinstance(value, registry.Registry)}
    assert kinds - used == {"DOWNSAMPLINGS"} and any("@metric(" in code for _, code, _ in EXAMPLES)
