"""Exports a trained detector as ONNX, or its weights as safetensors."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import nn

from data_kaist.errors import Failure
from data_kaist.files import write_whole
from ssd_effnet.build import as_size, build_padding, build_postprocess
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.evaluation.calibration import tempered
from ssd_effnet.inference.predictor import load_detector
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.fusion import CHANNEL_NAMES, CHANNELS
from ssd_effnet.models.weights import PREFIX, SAFETENSORS
from ssd_effnet.training.environment import git_state
from ssd_effnet.training.run_directory import SHIPPED, RunDirectory, checkpoint_file

Nms = Literal["inside", "outside"]

_RESIZE = {
    "stretch": "bilinear, each side by itself (cv2.INTER_LINEAR)",
    "letterbox": "bilinear (cv2.INTER_LINEAR) to the largest size of the picture's shape that fits, sides rounded; "
    "then padded right and below. Boxes: clip to the picture, drop empty ones, scale each side back",
}


class ExportError(Failure, RuntimeError):
    """A detector cannot be exported."""


@dataclass(frozen=True)
class Exported:
    """Result of an export. File, shape of ``images`` without the batch, boxes per image (0: weights alone)."""

    path: Path
    input_shape: tuple[int, int, int]
    rows: int
    metadata: dict[str, str]


class ExportedDetector(nn.Module):
    """The exported module: normalisation, detector, decoding and, optionally, NMS.

    Args:
        detector: in evaluation mode.
        postprocess: of the same experiment.
        size: (height, width) of the images.
        nms: ``inside``: detections; ``outside``: boxes before NMS.
    """

    def __init__(self, detector: Detector, postprocess: PostProcess, size: tuple[int, int], nms: Nms) -> None:
        super().__init__()
        self.detector = detector
        self.postprocess = postprocess
        self.size = size
        self.nms = nms

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 ``(N, C, *size)`` to boxes, scores and labels, best first.

        Boxes are float32 ``(N, D, 4)`` xyxy in pixels of ``images``, scores float32 ``(N, D)``, labels int64
        ``(N, D)`` from 1. With NMS inside D is ``postprocess.top_k`` and rows of label 0 are padding; outside D is
        ``postprocess.pre_nms_top_k`` and every row is a box, whatever its score.
        """
        outputs = self.detector(images)
        if self.nms == "outside":
            scores, anchor, labels = self.postprocess.candidates(outputs)
            return self.postprocess.boxes(outputs, anchor, self.size), self.postprocess.tempered(scores), labels
        found = self.postprocess(outputs, self.size)
        return found.boxes_xyxy, found.scores, found.labels


def export_detector(
    checkpoint: str | Path, out: str | Path | None = None, *, size: tuple[int, int] | None = None, nms: Nms = "inside"
) -> Exported:
    """Export a checkpoint's detector to ONNX, float32, with a dynamic batch.

    ONNX is made by torch's exporter for exported programs (``dynamo=True``): it keeps the batch dynamic and turns the
    loop of NMS into an ONNX ``Loop``. The older exporter would fix the number of rounds.

    Args:
        checkpoint: a ``.ckpt``, or a run's directory (see :func:`ssd_effnet.inference.predictor.load_detector`).
        out: the file; None: beside the checkpoint, under its name, or here if it is of the package. One is replaced.
        size: (height, width) of the images; None: as in training. Anchors are stretched with the image.
        nms: see :class:`ExportedDetector`.

    Raises:
        ExportError: a package is missing, ``out`` is the checkpoint, the size is too small, or ONNX cannot hold a part.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ExportError(f"ONNX needs the Python packages {' and '.join(missing)}: pip install '.[export]'")
    file = checkpoint_file(Path(checkpoint))
    folder = Path() if file in SHIPPED.values() else file.parent  # nothing is written into the package
    path = folder / f"{file.stem}.onnx" if out is None else Path(out)
    if path.resolve() == file.resolve():
        raise ExportError(f"{path}: is the checkpoint, which would be replaced; choose another --out")
    predictor = load_detector(file, device="cpu")
    e, size = predictor.experiment, size or predictor.input_size
    detector = predictor.folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model = ExportedDetector(detector, build_postprocess(e), size, nms).eval()
    images = torch.zeros((2, len(CHANNELS[e.input.modality]), *size), dtype=torch.uint8)
    with torch.no_grad():
        try:
            detector(images)  # makes the anchors, which become constants of the export
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f"{file}: this detector cannot process images of {size[0]}x{size[1]}: {_first_line(error)}"
            ) from error
    try:
        with torch.no_grad(), _without_output():
            dynamic = {"images": {0: torch.export.Dim("batch", min=1)}}
            program = torch.export.export(model, (images,), dynamic_shapes=dynamic)
            onnx_program = torch.onnx.export(
                program, input_names=["images"], output_names=["boxes", "scores", "labels"], dynamo=True, verbose=False
            )
    except Exception as error:  # the exporters' errors have no common class
        raise ExportError(f"{file}: torch cannot export this detector: {_first_line(error)}") from error
    assert onnx_program is not None
    rows = program.graph.output_node().args[0][1].meta["val"].shape[1]  # of the scores
    metadata = describe(file, e, size, nms)
    onnx_program.model.metadata_props.update(metadata)
    write_whole(path, onnx_program.model_proto.SerializeToString())
    return Exported(path, (images.shape[1], *size), rows, metadata)


LICENCE = (
    "The code is under the MIT licence. Weights carry the terms of the data that they were trained on and of the "
    "weights that they began from; KAIST is under CC BY-NC-SA 4.0: not for commercial use."
)


def export_weights(checkpoint: str | Path, out: str | Path | None = None, *, half: bool = False) -> Exported:
    """Write a checkpoint's weights as safetensors with config and scores.

    :func:`.predictor.load_detector` and ``init_from`` read the file. Metadata are those of :func:`describe`, with the
    normalisation, the scores of the run's test, the fingerprints of its data and a note on licences.

    Args:
        checkpoint: a ``.ckpt``, or a run's directory, which stands for the checkpoint that was tested.
        out: the file; None: beside the checkpoint, under its name.
        half: kernels and matrices in float16; vectors (norms, biases) in float32.

    Raises:
        ExportError: a weight is too large for float16, or ``out`` does not end in ``.safetensors``.
    """
    file = checkpoint_file(Path(checkpoint))
    path = file.with_suffix(SAFETENSORS) if out is None else Path(out)
    if path.suffix != SAFETENSORS or path.resolve() == file.resolve():
        raise ExportError(f"{path}: weights are written to a new file that ends in {SAFETENSORS}")
    predictor = load_detector(file, device="cpu")
    tensors = {}
    for name, tensor in predictor.detector.state_dict().items():
        kept = tensor.half() if half and tensor.ndim > 1 and tensor.is_floating_point() else tensor
        if not kept.isfinite().all():
            raise ExportError(f"{file}: {name} has values too large for float16; export it without --half")
        tensors[f"{PREFIX}{name}"] = kept.clone(memory_format=torch.contiguous_format)
    e, directory = predictor.experiment, RunDirectory.holding(file)
    results = directory.results() if directory.results_file.is_file() else {}
    normalize = predictor.detector.normalize
    more = {
        "weights": "float16, vectors float32" if half else "float32",
        "normalisation": {"mean": normalize.mean.tolist(), "std": normalize.std.tolist()},  # of pixels / 255
        "test": results.get("test") if results.get("checkpoint") == file.name else None,
        "data": directory.environment().get("data") if directory.environment_file.is_file() else None,
        "licence": LICENCE,
    }
    metadata = describe(file, e, predictor.input_size, "outside") | {k: _as_text(v) for k, v in more.items()}
    write_whole(path, save(tensors, metadata))
    return Exported(path, (normalize.mean.numel(), *predictor.input_size), 0, metadata)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def describe(file: Path, e: ExperimentConfig, size: tuple[int, int], nms: Nms) -> dict[str, str]:
    """The metadata of a checkpoint's export for images of ``size``. Lists, numbers and objects as JSON."""
    p, directory = e.postprocess, RunDirectory.holding(file)
    environment = directory.environment() if directory.environment_file.is_file() else {}
    facts: dict[str, Any] = {
        "experiment": e.name,
        "description": e.description,
        "classes": ["background", *e.data.classes],  # by label
        "modality": e.input.modality,
        "channels": [CHANNEL_NAMES[c] for c in CHANNELS[e.input.modality]],
        "size": list(size),  # (height, width)
        "trained_size": list(as_size(e.input.size)),
        "boxes": "xyxy, pixels of the input",
        "lwir_range": e.data.lwir_range,  # LWIR values of more than 8 bits that become 0 and 255
        "fit": e.input.fit,
        "resize": _RESIZE[e.input.fit],
        "padding": [build_padding(e)[c] for c in CHANNELS[e.input.modality]],  # of letterbox, by channel
        "nms": nms,
        "nms_iou": p.nms_iou,
        "score_threshold": float(tempered(p.score_threshold, p.temperature)),
        "top_k": p.top_k,
        "commit": git_state()["commit"],  # of the code that exported
        "trained_commit": environment.get("git", {}).get("commit", ""),
        "checkpoint": file.name,
        "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "torch": str(torch.__version__),
        "config": dataclasses.asdict(e),
    }
    return {key: _as_text(value) for key, value in facts.items()}


@contextmanager
def _without_output() -> Iterator[None]:
    """Suppress the exporter's output about optional packages and whole graphs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: BaseException) -> str:
    """An error's first line, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
