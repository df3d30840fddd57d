"""What an experiment may name: arguments of entries, plugins, older schemas."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ssd_effnet import registry
from ssd_effnet.build import build_criterion, build_detector, build_skeleton, build_stream
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import ConfigError, differences, experiment_of, load_experiment, save_experiment
from ssd_effnet.models.cost import cost
from ssd_effnet.registry import BACKBONES, MATCHERS, Registry, RegistryError
from ssd_effnet.structures import Level

LITE0 = "lite0"


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_another_name_drops_the_arguments_of_the_old_one(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", "class_loss: {name: focal, gamma: 2}\nschedule: {gamma: 0.5, warmup_steps: 3}\n")
    child = load_experiment(written(tmp_path, "a.yaml", "base: base.yaml\nclass_loss: {name: multibox}\n"))
    assert "class_loss.gamma" not in settings(child) and settings(child)["class_loss.negative_ratio"] == 3
    other = "base: base.yaml\nschedule: {name: plateau, warmup_steps: 0}\n"
    child = load_experiment(written(tmp_path, "b.yaml", other))
    assert settings(child)["schedule.gamma"] == 0.1  # plateau's own, not multistep's
    same = load_experiment(written(tmp_path, "c.yaml", "base: base.yaml\nclass_loss: {name: focal}\n"))
    assert settings(same)["class_loss.gamma"] == 2
    lite2 = load_experiment(LITE0, ["backbone.name=efficientnet-lite2"])  # of one class
    assert settings(lite2)["backbone.strides"] == "published"
    assert "backbone.strides" not in settings(load_experiment(LITE0, ["backbone.name=vgg16", "backbone.norm=batch"]))
    assert differences(load_experiment(LITE0, ["class_loss.name=focal"]), load_experiment(LITE0)) == ["class_loss.name"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["class_loss.name=focl"], "multi_label, focal, quality_focal; did you mean `focal`?"),
        (["class_loss.gamma=2"], "(class_loss.name multibox has negative_ratio, min_negatives)"),
        (["class_loss.gama=2", "class_loss.name=focal"], "did you mean `class_loss.gamma`?"),
        (["class_loss.gamma=fast", "class_loss.name=focal"], "key `class_loss.gamma`: expected number, not 'fast'"),
        (["backbone.strides=even"], "'even' is not one of halving, published"),
        (["schedule.milestones=0.5"], "expected list of numbers, for example [0.5,0.9], not 0.5"),
        (["matcher.negative_iou=0.6"], "key `matcher`: negative_iou must be at most iou_threshold"),
        (["augment.names=[flip,crop]"], "'crop' is not one of jitter, resized_crop"),
        (["augment.names=flip"], "expected list of names"),
        (["augment.resized_crop.scale=[1]"], "must be 2 numbers"),
        (["neck.fusion=slow"], "is not one of"),
        (["adapter.kind=conv5x5"], "'conv5x5' is not one of none, conv1x1, conv3x3, separable"),
        (["head.layers=4"], "(head.kind ssd has no arguments)"),
        (["head.kind=efficientdet", "head.layers=0"], "key `head.layers`: must be at least 1, not 0"),
        (["optimizer.name=lion"], "is not one of sgd, rmsprop, adamw"),
    ],
)
def test_arguments_are_checked_as_the_schemas_own(overrides: list[str], says: str) -> None:
    base = ["schedule.name=multistep"] if "schedule" in overrides[0] else []
    with pytest.raises(ConfigError) as caught:
        load_experiment(LITE0, [*base, *overrides])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_keys_that_are_gone_are_left_out(tmp_path: Path) -> None:
    for kind, layers in (("ssd", None), ("efficientdet", 4)):  # runs of before wrote both keys
        old_head = {"name": "old", "head": {"kind": kind, "layers": 4}, "matcher": {"iou_threshold": 0.6}}
        read = settings(experiment_of(old_head, "best.ckpt"))
        assert (read.get("head.layers"), read["matcher.iou_threshold"]) == (layers, 0.6)
    gone = written(
        tmp_path,
        "gone.yaml",
        "base: lite0\ndata: {cache_folder: ''}\ntrainer: {runtime: manual, channels_last: false}\n",
    )
    assert differences(load_experiment(gone), load_experiment(LITE0)) == []
    with pytest.raises(ConfigError, match=r"`trainer\.runtime` is unknown"):
        load_experiment(LITE0, ["trainer.runtime=auto"])


PART = "from ssd_effnet.registry import MATCHERS\nfrom ssd_effnet.detection.matching import MaxIoUMatcher\n"
PART += "@MATCHERS.register('strict')\nclass Strict(MaxIoUMatcher):\n    pass\n"


def test_only_the_caller_imports_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(MATCHERS, "_own", dict(MATCHERS))
    written(tmp_path, "strict_part.py", PART)
    file = written(tmp_path, "mine.yaml", "base: lite0\nplugins: [strict_part]\nmatcher: {name: strict}\n")
    for read in (load_experiment, lambda path: experiment_of(yaml.safe_load(path.read_text()), str(path))):
        with pytest.raises(ConfigError, match=r"strict_part.*--plugins strict_part"):
            read(file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match="no such module"):
        registry.load_plugins(["nowhere_part"])
    assert "strict_part" not in sys.modules
    from ssd_effnet.cli import summarize

    summarize.parser().parse_args(["mine.yaml", "--plugins", "strict_part"])
    undeclared = "base: lite0\nmatcher: {name: strict, iou_threshold: 0.7}\n"
    e = load_experiment(written(tmp_path, "undeclared.yaml", undeclared))
    assert e.plugins == ["strict_part"] and type(build_criterion(e).matcher).__name__ == "Strict"
    save_experiment(e, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["plugins"] == ["strict_part"]
    del sys.modules["strict_part"], registry.plugins["strict_part"]


def test_what_cannot_be_registered_is_said() -> None:
    of = Registry("part", "ssd_effnet.registry", ("given",))

    @of.register("unknown")
    def unknown(given: int, tensor: torch.Tensor) -> None: ...

    with pytest.raises(RegistryError, match=r"'unknown'.*`tensor`"):
        of.arguments("unknown")
    with pytest.raises(RegistryError, match="registered twice"):
        of.register("unknown")(dataclasses.dataclass)


@pytest.mark.parametrize(
    ("module", "slow"),
    [("ssd_effnet.config.loading", "torch"), ("ssd_effnet.inference.predictor", "lightning"), ("ssd_effnet", "numpy")],
)
def test_what_starts_commands_leaves_slow_imports_alone(module: str, slow: str) -> None:
    code = f"import sys, {module}; print({{{slow!r}, 'lightning', 'scipy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


class Odd(nn.Module):
    """Returns all of its maps whatever is asked, in a tuple; no chain of modules."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(in_channels, 4, 9, 8, 4)
        self.b, self.c = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.levels = [Level("a", 4, 8), Level("b", 6, 16), Level("c", 8, 32)]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = self.a(images)
        b = self.b(a)
        return a, b, self.c(b)


def test_a_backbone_is_levels_and_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "odd", Odd)
    small = ["backbone.name=odd", "backbone.norm=batch", "backbone.pretrained=none", "input.normalize=false"]
    small += ["backbone.levels=null", "input.mean=[0,0,0,0]", "input.std=[1,1,1,1]"]
    whole = build_detector(load_experiment(LITE0, small))[0]
    assert whole(torch.zeros(1, 3, 128, 160, dtype=torch.uint8)).anchors_per_level[0] == 16 * 20 * 6
    backbone, _ = build_stream(load_experiment(LITE0, [*small, "backbone.levels=[0,1]"]), 3, False)
    assert [x.shape[1:] for x in backbone(torch.zeros(1, 3, 64, 64))] == [(4, 8, 8), (6, 4, 4)]
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"whole.c.weight", "whole.c.bias"}
    levels = ["backbone.levels=[0,1]", "anchors.sizes=[40,80,160,200,280]"]
    detector = build_skeleton(load_experiment(LITE0, [*small, *levels]))
    every = sum(p.numel() for p in detector.parameters())
    assert cost(detector, (64, 64)).parameters == every - sum(p.numel() for p in whole.backbone.c.parameters())
    with pytest.raises(ConfigError, match=r"key `backbone\.levels`: .*0 \(a\), 1 \(b\), 2 \(c\)"):
        build_detector(load_experiment(LITE0, [*small, "backbone.levels=[3]"]))
    halfway = [*small, "input.modality=halfway"]
    build_detector(load_experiment(LITE0, halfway))
    with pytest.raises(ConfigError, match=r"key `fusion\.up_to`: odd cannot be cut"):
        build_detector(load_experiment(LITE0, [*halfway, "fusion.up_to=1"]))
    torch.save(Odd(3).state_dict(), tmp_path / "odd.pth")
    _, report = build_detector(load_experiment(LITE0, [*small, f"backbone.pretrained={tmp_path / 'odd.pth'}"]))
    assert report is not None and not report.missing + report.misshapen and len(report.loaded) == 6


def test_levels_select_from_a_chain_without_the_rest() -> None:
    e = load_experiment("00_vgg16", ["backbone.levels=[0,1]", "backbone.pretrained=none"])
    backbone, _ = build_stream(e, 3, False)
    assert [level.name for level in backbone.levels] == ["conv4_3", "conv6"]
    assert not [name for name, _ in backbone.named_parameters() if "conv7" in name]
    halfway = ["input.modality=halfway", "backbone.levels=[0,1]", "anchors.sizes=[40,80,160,200,280]"]
    with pytest.raises(ConfigError, match=r"key `backbone\.levels`"):
        build_skeleton(load_experiment("00_vgg16", [*halfway, "fusion.shared_from=1"]))


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_norms_that_are_not_there_are_not_chosen(norm: str) -> None:
    with pytest.raises(ConfigError, match=r"key `backbone\.norm`: vgg16"):
        build_skeleton(load_experiment("00_vgg16", ["backbone.name=vgg16", f"backbone.norm={norm}"]))
