"""Checkpoints as a run writes them, of small detectors that have learned nothing: quick to make, for tests."""

import dataclasses
from pathlib import Path

import torch

from ssd_effnet.build import build_detector
from ssd_effnet.config.loading import load_experiment

LITE0 = Path(__file__).parents[1] / "experiments" / "lite0.yaml"
SMALL = (
    *("input.size=[64,96]", "backbone.pretrained=none", "backbone.norm=batch", "adapter.channels=16"),
    *("extras.channels=16", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.panel_images=0", "data.workers=0"),
    *("trainer.batch_size=2", "trainer.epochs=1", "schedule.warmup_steps=0", "postprocess.top_k=20"),
)


def write_checkpoint(path: Path, *overrides: str) -> Path:
    """The file of a detector with random weights; ``key=value`` overrides of ``lite0``, made small."""
    torch.manual_seed(0)
    experiment = load_experiment(LITE0, [*SMALL, *overrides])
    detector, _ = build_detector(experiment, pretrained=False)
    weights = {f"detector.{name}": tensor for name, tensor in detector.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 0, "experiment": dataclasses.asdict(experiment), "state_dict": weights}, path)
    return path
