"""Every experiment builds, and takes a step forward and back, without a wait for a device; settings of ``--tiny``."""

from pathlib import Path

import pytest
import torch
from waits import NoWaits

from data_kaist.structures import Targets
from ssd_effnet.build import build_criterion, build_detector, build_optimizer
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.fusion import CHANNELS

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))
KINDS = ("00_vgg16", "05_deconv", "08_bifpn", "10_nas_fpn", "efficientdet_d0", "lite0")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem in KINDS else pytest.mark.slow) for p in EXPERIMENTS]
)
def test_an_experiment_takes_a_step(path: Path) -> None:
    e = load_experiment(path, ["input.size=[64,96]"], tiny=True)
    assert e.name == f"{path.stem}-tiny"
    torch.manual_seed(0)
    detector = build_detector(e)[0].train()
    images = torch.randint(0, 256, (2, len(CHANNELS[e.input.modality]), *e.input.size), dtype=torch.uint8)
    boxes = torch.tensor([[[40.0, 30, 60, 80]], [[10, 10, 25, 50]]])
    targets = Targets(boxes, torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.bool))

    optimizer = build_optimizer(e, detector)
    before = {name: p.detach().clone() for name, p in detector.head.named_parameters()}
    criterion = build_criterion(e)
    with NoWaits():
        losses = criterion(detector(images), targets)
        losses.total.backward()
    optimizer.step()

    assert torch.isfinite(losses.total)
    bad = [name for name, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert bad == []  # distributed training stops at parameters without a gradient
    assert all(torch.isfinite(p).all() for p in detector.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in detector.head.named_parameters())
