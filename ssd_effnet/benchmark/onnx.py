"""Speed of an exported file in onnxruntime, against torch, NMS included."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from data_kaist.errors import Failure
from ssd_effnet.benchmark.forward import faster
from ssd_effnet.benchmark.rows import OWN, REFERENCE, Row, agree, compared
from ssd_effnet.build import build_detector, build_postprocess
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.inference.export import export_detector
from ssd_effnet.inference.predictor import load_detector
from ssd_effnet.training.runtime import in_turns


def benchmark_onnx(folder: Path, size: tuple[int, int] | None, *, runs: int = 5) -> Iterator[Row]:
    """Rows of lite0's file against the detector as it was trained, and as it is fastest in torch; on the CPU.

    The weights are random: they do not change the time.

    Args:
        folder: for the checkpoint and the file.
        size: (height, width); None: the experiment's own.

    Raises:
        Failure: onnxruntime is not installed.
        DisagreementError: it finds something else.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise Failure("onnxruntime is not installed: pip install '.[export]'") from None
    torch.manual_seed(0)
    e = load_experiment("lite0", ["backbone.pretrained=none", "backbone.norm=batch"])
    weights = {f"detector.{name}": value for name, value in build_detector(e, pretrained=False)[0].state_dict().items()}
    checkpoint = folder / "lite0.ckpt"
    torch.save({"epoch": 0, "experiment": dataclasses.asdict(e), "state_dict": weights}, checkpoint)
    file = export_detector(checkpoint, size=size).path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    predictor = load_detector(checkpoint, device="cpu")
    post = build_postprocess(predictor.experiment)
    _, channels, *sides = session.get_inputs()[0].shape
    size = (sides[0], sides[1])
    image = torch.randint(0, 256, (1, channels, *size), dtype=torch.uint8)
    last = image.to(memory_format=torch.channels_last)

    def eager(module: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = post(module(pixels), size).scores
        return scores

    def exported() -> torch.Tensor:
        return torch.from_numpy(session.run(["scores"], {"images": image.numpy()})[0])

    calls: dict[str, Callable[[], torch.Tensor]] = {
        REFERENCE: partial(eager, predictor.detector, last),
        "folded": partial(eager, faster(predictor.detector, image), last),
        OWN: exported,
    }
    with torch.inference_mode():
        wanted, found = calls[REFERENCE](), exported()
        most = min(wanted.shape[1], found.shape[1])
        agreement = agree("scores", found[:, :most], wanted[:, :most], 1e-4)
        times = in_turns(calls, runs)
    case = f"{predictor.experiment.name} {size[0]}x{size[1]} to detections: onnxruntime"
    yield compared("export", f"{case} against eager", times, agreement=agreement)
    yield compared("export", f"{case} against eager, folded", times, reference="folded", agreement=agreement)
