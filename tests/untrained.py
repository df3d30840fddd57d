"""Small detectors and runs for tests, and checkpoints as a run writes them, of weights that have learned nothing."""

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from ssd_effnet.build import build_detector
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig

loaded = cache(load_experiment)  # to look at, not to change
LITE0 = Path(__file__).parents[1] / "experiments" / "lite0.yaml"
# of lite0: its three levels and three extra ones
SIX_LEVELS = (
    *("input.size=[64,96]", "backbone.pretrained=none", "backbone.norm=batch", "adapter.channels=16"),
    *("extras.channels=16", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.panel_images=0", "data.workers=0"),
    *("trainer.batch_size=2", "trainer.epochs=1", "schedule.warmup_steps=0", "postprocess.top_k=20"),
)
# five of its sixteen blocks and a hundredth of its weights: a third of the time to train, and small checkpoints
SMALL = (*SIX_LEVELS, "backbone.levels=[2]", "extras.strides=[2,2]", "anchors.sizes=[25,60,140]")


def splits(root: Path, train: str = "train.json", val: str = "", test: str = "val.json") -> tuple[str, ...]:
    """The keys of a COCO data set, as the fixture ``few_pairs`` is one."""
    return ("data.kind=coco", f"data.root={root}", f"data.train={train}", f"data.val={val}", f"data.test={test}")


def of_pairs(root: Path, *overrides: str) -> ExperimentConfig:
    """``lite0``, made small, on the fixture ``few_pairs``: four pairs to train on, two to validate, no test."""
    return load_experiment(LITE0, [*SMALL, *splits(root, val="val.json", test=""), *overrides])


class Stop(Exception):
    """Stands for whatever ends a run."""


def stop_at(epoch: int) -> Callable[[str], None]:
    """Prints what a run says until an epoch is over and its checkpoint not yet written."""

    def echo(line: str) -> None:
        print(line)
        if line.startswith(f"epoch {epoch}/"):
            raise Stop

    return echo


def write_checkpoint(path: Path, *overrides: str, small: tuple[str, ...] = SMALL) -> Path:
    """The file of a detector with random weights; ``key=value`` overrides of ``lite0``, made small."""
    torch.manual_seed(0)
    experiment = load_experiment(LITE0, [*small, *overrides])
    detector, _ = build_detector(experiment, pretrained=False)
    weights = {f"detector.{name}": tensor for name, tensor in detector.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 0, "experiment": dataclasses.asdict(experiment), "state_dict": weights}, path)
    return path
