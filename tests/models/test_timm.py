"""Backbones of timm by name."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from data_kaist.structures import Targets
from ssd_effnet.build import build_criterion, build_detector
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.models.backbones import BACKBONES
from ssd_effnet.models.backbones.check import check_backbone
from ssd_effnet.models.backbones.timm_models import TimmError

MODELS = ("resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny")
SMALL = (
    *("input.mean=null", "input.std=null", "input.size=[96,128]"),
    *("extras.strides=[]", "anchors.sizes=[30,60,120]", "backbone.pretrained=none"),
)
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="needs timm: make test-timm")


def experiment(model: str, *overrides: str) -> ExperimentConfig:
    return load_experiment("02_widen_3x3", [f"backbone.name=timm/{model}", *SMALL, *overrides])


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_without_timm() -> None:
    with pytest.raises(TimmError, match=r"pip install .*timm"):
        experiment("resnet50")
    e = experiment("resnet50", "input.mean=[0.5,0.5,0.5,0.5]", "input.std=[0.5,0.5,0.5,0.5]")
    with pytest.raises(ConfigError, match=r"backbone.*pip install .*timm"):
        build_detector(e, pretrained=False)


@needs_timm
@pytest.mark.parametrize("model", [*MODELS, "rexnet_100", "hrnet_w18_small", "dla34"])
def test_maps(model: str) -> None:
    """Map sizes at 512x640 and at odd sizes, channels, strides, gradients and independence of the batch."""
    backbone = check_backbone(lambda in_channels=3: BACKBONES[f"timm/{model}"](f"timm/{model}", in_channels)).eval()
    assert [level.stride for level in backbone.levels] == [8, 16, 32]
    with torch.no_grad():
        for height, width in ((512, 640), (97, 131)):
            maps = backbone(torch.randn(1, 3, height, width))
            for level, x in zip(backbone.levels, maps, strict=True):
                assert x.shape == (1, level.channels, -(-height // level.stride), -(-width // level.stride))


@needs_timm
@pytest.mark.parametrize("model", ["mambaout_femto", "inception_v3"])
def test_maps_of_other_axes_or_sizes_are_refused(model: str) -> None:
    with pytest.raises(TimmError, match=model):
        BACKBONES[f"timm/{model}"](f"timm/{model}", 3)


FROZEN = [(model, "frozen") for model in MODELS[:-1]]  # the last has no batch norms


@needs_timm
@pytest.mark.parametrize(("model", "norm"), [*((model, "batch") for model in MODELS), *FROZEN])
def test_a_training_step(model: str, norm: str) -> None:
    """A step moves the weights; a frozen batch norm keeps the activation within it."""
    torch.manual_seed(0)
    e = experiment(model, "backbone.pretrained=imagenet", f"backbone.norm={norm}", "input.modality=early")
    detector, criterion = build_detector(e, pretrained=False)[0], build_criterion(e)
    if norm == "frozen":
        images = torch.randn(1, 4, 96, 128)
        other = build_detector(experiment(model, "input.modality=early"), pretrained=False)[0]
        other.load_state_dict(detector.state_dict())
        with torch.no_grad():
            for a, b in zip(detector.eval().backbone(images), other.eval().backbone(images), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    boxes = torch.tensor([[[40.0, 20, 60, 70]], [[10, 10, 30, 60]]])
    targets = Targets(boxes, torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.bool))
    batch = torch.randint(0, 256, (2, 4, 96, 128), dtype=torch.uint8)
    before = {name: p.detach().clone() for name, p in detector.named_parameters() if p.requires_grad}
    loss = criterion(detector.train()(batch), targets).total
    loss.backward()
    assert torch.isfinite(loss) and all(detector.get_parameter(name).grad is not None for name in before)
    torch.optim.SGD(map(detector.get_parameter, before), 1e-3).step()
    moved = [name for name, was in before.items() if not torch.equal(detector.get_parameter(name), was)]
    assert {name.partition(".")[0] for name in moved} == {"backbone", "adapter", "head"}


@needs_timm
@pytest.mark.parametrize("channels", [3, 4])
def test_weights_of_a_file(tmp_path: Path, channels: int) -> None:
    """A file of timm's whole model fills every tensor; of four channels the stem answers a grey image as before."""
    import timm

    from ssd_effnet.models.backbones.pretrained import load_pretrained
    from ssd_effnet.models.weights import WeightsError

    for model in ("convnext_tiny", "mobilenetv3_large_100"):  # the first joins names by underscores
        whole = timm.create_model(model).eval()
        torch.save(whole.state_dict(), tmp_path / "whole.pth")
        backbone = BACKBONES[f"timm/{model}"](f"timm/{model}", channels).eval()
        report = load_pretrained(backbone, f"timm/{model}", str(tmp_path / "whole.pth"))
        assert report is not None and not report.missing + report.misshapen and len(report.adapted) == (channels == 4)
        grey = torch.randn(1, 1, 64, 96)
        with torch.no_grad():
            wanted = whole.forward_intermediates(grey.expand(1, 3, 64, 96), intermediates_only=True)[-1]
            torch.testing.assert_close(backbone(grey.expand(1, channels, 64, 96))[-1], wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(WeightsError, match=r"whole.pth"):
        load_pretrained(BACKBONES["timm/resnet50"]("timm/resnet50", 3), "timm/resnet50", str(tmp_path / "whole.pth"))


@needs_timm
@pytest.mark.parametrize(
    ("ours", "theirs"), [("efficientnet-lite0", "tf_efficientnet_lite0"), ("efficientnet-b0", "tf_efficientnet_b0")]
)
def test_parity(ours: str, theirs: str) -> None:
    """Lite0 under the packaged ImageNet weights, B0 under the same random ones: equal maps."""
    torch.manual_seed(0)
    plain = ["backbone.norm=batch", "input.mean=[0,0,0,0]", "input.std=[1,1,1,1]"]
    e = load_experiment("lite0", [f"backbone.name={ours}", *plain])
    mine = build_detector(e, pretrained=ours == "efficientnet-lite0")[0].backbone.eval()
    other = BACKBONES[f"timm/{theirs}"](f"timm/{theirs}", 3).eval()
    tensors = [tensor for name, tensor in mine.state_dict().items() if "num_batches" not in name]
    names = [name for name in other.state_dict() if "num_batches" not in name]  # both in the order of the layers
    other.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        for a, b in zip(mine(images), other(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


@needs_timm
@pytest.mark.parametrize("model", MODELS)
def test_export(model: str, tmp_path: Path) -> None:
    """onnxruntime returns what torch does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = BACKBONES[f"timm/{model}"](f"timm/{model}", 3).eval()
    images = torch.randn(1, 3, 96, 128)
    torch.onnx.export(backbone, (images,), tmp_path / "b.onnx", dynamo=True)
    found = onnxruntime.InferenceSession(tmp_path / "b.onnx").run(None, {"images": images.numpy()})
    with torch.no_grad():
        for a, b in zip(backbone(images), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(b), a, rtol=1e-3, atol=1e-3)
