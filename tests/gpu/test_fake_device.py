"""Every experiment on a device that has shapes, dtypes and places but no values: no card is needed.

A mixture of devices, or a shape that depends on values, is an error there. torch's CUDA build without a card cannot
run backward on ``cuda:0``: then backward runs on ``meta``, where a mixture of devices is an error too.
"""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from data_kaist.structures import Targets
from ssd_effnet.build import build_criterion, build_detector, build_optimizer, build_postprocess
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training.callbacks import EMAWeightAveraging

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))
CUDA = torch.device("cuda:0")
BACKWARD = CUDA if torch.cuda.is_available() else torch.device("meta")

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")


def place(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Put tensors without values in the place of a module's own; within the mode."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, old in held.items():
                if old is not None:
                    new = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype, device=device)
                    parameter = isinstance(old, nn.Parameter)
                    held[name] = nn.Parameter(new, old.requires_grad) if parameter else new  # type: ignore[assignment]


def outputs(e: ExperimentConfig, detector: Detector, device: torch.device) -> tuple[RawOutputs, Targets]:
    shape = (2, len(CHANNELS[e.input.modality]), *e.input.size)
    boxes = torch.empty(2, 3, 4, device=device)
    labels = torch.ones(2, 3, dtype=torch.int64, device=device)
    raw: RawOutputs = detector(torch.empty(shape, dtype=torch.uint8, device=device))
    for tensor in (raw.cls_logits, raw.bbox_regression, raw.anchors_cxcywh):
        assert tensor.device == device
    return raw, Targets(boxes, labels, torch.zeros_like(labels, dtype=torch.bool))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_stays_on_its_device(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = load_experiment(path, tiny=True)
    detector, average = (build_detector(e, pretrained=False)[0].train() for _ in range(2))
    criterion, postprocess = build_criterion(e), build_postprocess(e)
    with FakeTensorMode(shape_env=ShapeEnv()):
        with pytest.raises(RuntimeError, match="device"):
            torch.empty(2, device=CUDA) + torch.empty(2)
        place(detector, BACKWARD)
        criterion(*outputs(e, detector, BACKWARD)).total.backward()
        assert {p.grad.device for p in detector.parameters() if p.grad is not None} == {BACKWARD}
        assert all(p.grad is not None for p in detector.parameters())

        place(detector, CUDA)
        losses = criterion(*outputs(e, detector, CUDA))
        assert (losses.total.device, losses.total.shape, losses.total.dtype) == (CUDA, (), torch.float32)
        optimizer = build_optimizer(e, detector)
        for parameter in detector.parameters():
            parameter.grad = torch.empty_like(parameter)
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        place(average, CUDA)
        EMAWeightAveraging(0.9).follow(average, detector, 7)
        assert {tensor.device for tensor in average.state_dict().values()} == {CUDA}

        detector.eval()
        raw, _ = outputs(e, detector, CUDA)
        with monkeypatch.context() as patch:  # the rounds of NMS are then one loop, whose end needs no value
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            found = postprocess(raw, tuple(e.input.size), torch.empty(2, 2))
        assert found.boxes_xyxy.shape == (2, e.postprocess.top_k, 4)
        for tensor in (found.boxes_xyxy, found.scores, found.labels, found.anchor_index):
            assert tensor.device == CUDA

        # autocast switches itself off without a card: the casts are explicit
        for part in (*detector.parts.values(), detector.head):
            place(part, CUDA, torch.bfloat16)
        detector.normalize.register_forward_hook(lambda module, given, image: image.bfloat16())
        raw, targets = outputs(e, detector.train(), CUDA)
        assert raw.cls_logits.dtype == torch.bfloat16 and raw.anchors_cxcywh.dtype == torch.float32
        assert criterion(raw, targets).total.dtype == torch.float32
