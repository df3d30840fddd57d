"""Stages of training and inference, timed in turns with the plain way of doing the same.

A stage is a function of :class:`Settings` that yields rows; :data:`STAGES` names them.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from data_kaist.dataset import DetectionDataset
from data_kaist.errors import Failure
from data_kaist.layouts import DataSource
from data_kaist.structures import Targets
from data_kaist.synthetic import write_dataset
from ssd_effnet.benchmark import reference, scene
from ssd_effnet.build import (
    as_size,
    build_criterion,
    build_detector,
    build_optimizer,
    build_postprocess,
    build_transforms,
)
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.detection.losses import DetectionLoss, MultiBoxLoss
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.inference.export import export_detector
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.folding import fold
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training.runtime import bfloat16_pays, in_turns


class DisagreementError(Failure, RuntimeError):
    """A stage and its reference give different results, so their ratio means nothing."""


@dataclass(frozen=True)
class Row:
    """One thing measured.

    Attributes:
        stage: ``data``, ``loss`` ...
        case: the measured case.
        own_ms: median of the project's code, milliseconds.
        reference_ms: median of the reference; None without one.
        ratio: reference : own, the median of the ratios round by round; None without a reference.
        goal: that the ratio should reach.
    """

    stage: str
    case: str
    own_ms: float
    reference_ms: float | None = None
    ratio: float | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a stage measures.

    Attributes:
        folder: for files; a data set in KAIST's layout is read there, synthetic pairs are written where there is none.
        runs: rounds.
        device: of ``forward`` and ``train``.
        size: (height, width) of the images; None: as published.
        batch: images of a training step.
        compiled: measure ``torch.compile`` of a training step too; it takes a minute or more.
    """

    folder: Path
    runs: int = 5
    device: str = "cpu"
    size: tuple[int, int] | None = None
    batch: int = 2
    compiled: bool = False


def compared(
    stage: str,
    case: str,
    times: Mapping[str, list[float]],
    own: str = "own",
    reference: str | None = "reference",
    *,
    goal: float | None = None,
    per: int = 1,
) -> Row:
    """A row of two of the ``times`` that :func:`ssd_effnet.training.runtime.in_turns` took.

    Args:
        reference: None: only the time is stated.
        per: images of a call; milliseconds are stated for one.
    """
    own_ms = statistics.median(times[own]) / per
    if reference is None:
        return Row(stage, case, own_ms)
    ratio = statistics.median(b / a for a, b in zip(times[own], times[reference], strict=True))
    return Row(stage, case, own_ms, statistics.median(times[reference]) / per, ratio, goal)


def agree(what: str, own: torch.Tensor, reference: torch.Tensor, tolerance: float) -> None:
    """Compare two results before their times are.

    Raises:
        DisagreementError: further than ``tolerance``, or of different shapes.
    """
    if own.shape != reference.shape:
        raise DisagreementError(f"{what}: shapes {tuple(own.shape)} and {tuple(reference.shape)} differ")
    apart = float((own.double() - reference.double()).abs().max()) if own.numel() else 0.0
    if not apart <= tolerance:
        raise DisagreementError(f"{what}: differs from the reference by {apart:.3g}, more than {tolerance:.3g}")


def _data(s: Settings) -> Iterator[Row]:
    """Training and test pairs, from files and from decoded frames in memory."""
    pairs, size = 8, s.size or scene.SIZE
    if not (s.folder / "images").is_dir():
        write_dataset(s.folder, 6, size, seed=0)
    source = DataSource("kaist", s.folder)
    training = any((s.folder / "images" / f"set{number:02}").is_dir() for number in range(6))
    frames = source.frames("train-all-01" if training else "test-all-01", modality="early")
    experiment = ExperimentConfig()
    experiment.input.size, experiment.input.modality = list(size), "early"
    cv2.setNumThreads(0)

    def read(dataset: DetectionDataset) -> None:
        for i in range(pairs):
            dataset[i // len(frames), i % len(frames)]

    calls: dict[str, Callable[[], object]] = {}
    for stage, what in (("train", "read, jitter, crop, resize, flip"), ("test", "read, resize")):
        transforms = build_transforms(experiment, stage)
        calls[f"{stage} pair: {what}"] = partial(read, DetectionDataset(frames, "early", transforms))
        kept = DetectionDataset(frames, "early", transforms, cache="memory")
        calls[f"{stage} pair: {what}; data.cache: memory"] = partial(read, kept)
    times = in_turns(calls, s.runs)
    for case in times:
        yield compared("data", f"{case} ({size[0]}x{size[1]})", times, case, None, per=pairs)


def _loss(s: Settings) -> Iterator[Row]:
    """MultiBox, forward and backward; gradients agree too."""
    size, batch, people = s.size or scene.SIZE, 8, 3
    anchors, targets = scene.anchors(size), scene.targets(batch, people, size)
    random = torch.Generator().manual_seed(1)
    logits, offsets = (torch.randn(batch, len(anchors), n, generator=random).requires_grad_() for n in (2, 4))
    criterion = DetectionLoss(MultiBoxLoss())

    def call(*, own: bool) -> torch.Tensor:
        logits.grad = offsets.grad = None
        out = RawOutputs(logits, offsets, anchors)
        total: torch.Tensor = criterion(out, targets).total if own else _plain_loss(out, targets)
        total.backward()
        return total.detach()

    calls = {"own": partial(call, own=True), "reference": partial(call, own=False)}
    results = []
    for name in calls:
        total = calls[name]()
        assert logits.grad is not None and offsets.grad is not None
        results.append((total, logits.grad.clone(), offsets.grad.clone()))
    for what, mine, plain in zip(("loss", "gradient of logits", "gradient of offsets"), *results, strict=True):
        agree(what, mine, plain, 1e-6 * max(1.0, float(plain.abs().max())))
    case = f"MultiBox, {len(anchors):,} anchors, batch {batch}, {people} boxes, forward + backward"
    yield compared("loss", case, in_turns(calls, s.runs))


def _plain_loss(out: RawOutputs, targets: Targets) -> torch.Tensor:
    objects = list(targets.boxes_xyxy), list(targets.labels)
    cls, loc = reference.multibox_loss(out.cls_logits, out.bbox_regression, out.anchors_cxcywh, *objects)
    return cls + loc


def _postprocess(s: Settings) -> Iterator[Row]:
    """Decoding and NMS of few and many candidates, around people and spread over the frame, without a limit."""
    size = s.size or scene.SIZE
    anchors = scene.anchors(size)
    post = PostProcess(pre_nms_top_k=len(anchors))
    for spread in (False, True):
        for number in dict.fromkeys(min(number, len(anchors)) for number in (674, 4690)):
            logits, offsets = scene.found(anchors, number, spread=spread, size=size)
            own = partial(post, RawOutputs(logits, offsets, anchors), size)
            plain = partial(reference.postprocess, logits, offsets, anchors, size)
            boxes, scores, _ = own().image(0)
            plain_boxes, plain_scores = plain()[0]
            agree("scores", scores, plain_scores, 0)
            agree("boxes", boxes, plain_boxes, 1e-3)
            times = in_turns({"own": own, "reference": plain}, s.runs)
            where = "spread over the frame" if spread else "around 12 people"
            case = f"{len(anchors):,} anchors, {number:,} candidates {where}, {len(boxes)} kept"
            yield compared("postprocess", case, times)


def _whole(s: Settings) -> Iterator[Row]:
    """Training steps and inferences of one network, with the project's loss and NMS or with loops.

    Another version of these is worth its lines where it gains 5 % here.
    """
    size = s.size or (256, 320)
    for name in ("lite0", "00_vgg16"):
        e, detector = _untrained(name, torch.channels_last)
        images = _images(s.batch, size)
        step, infer = partial(_step, e, detector, images), partial(_infer, e, detector, images[:1])
        case = f"{name} {size[0]}x{size[1]}"
        anchors = detector(images).anchors_cxcywh
        for people in (3, 50):
            detector.train()
            calls = {side: partial(step, scene.targets(s.batch, people, size), side) for side in ("own", "reference")}
            agree("loss", calls["own"]() / calls["reference"](), torch.ones(()), 1e-5)
            what = f"training step, {case}, batch {s.batch}, {people} people per image"
            yield compared("whole", what, in_turns(calls, s.runs))
            detector.eval()
            for spread, number in ((False, 20 * people), (True, min(1000, len(anchors)))):
                found = RawOutputs(*scene.found(anchors, number, spread=spread, size=size, persons=people), anchors)
                calls = {side: partial(infer, found, side) for side in ("own", "reference")}
                agree("scores", calls["own"](), calls["reference"](), 1e-6)
                what = f"inference, {case}, {people} people, {number:,} candidates{' over the image' if spread else ''}"
                yield compared("whole", what, in_turns(calls, s.runs))


def _step(e: ExperimentConfig, detector: Detector, images: torch.Tensor, targets: Targets, side: str) -> torch.Tensor:
    torch.manual_seed(0)  # of drop-connect
    detector.zero_grad()
    out = detector(images)
    total: torch.Tensor = build_criterion(e)(out, targets).total if side == "own" else _plain_loss(out, targets)
    total.backward()
    return total.detach()


def _infer(e: ExperimentConfig, detector: Detector, image: torch.Tensor, found: RawOutputs, side: str) -> torch.Tensor:
    """Scores; an untrained network finds nothing of its own, so boxes come from the scene."""
    size = (image.shape[-2], image.shape[-1])
    with torch.inference_mode():
        detector(image)
        if side == "own":
            scores: torch.Tensor = build_postprocess(e)(found, size).image(0)[1]
            return scores
        return reference.postprocess(found.cls_logits, found.bbox_regression, found.anchors_cxcywh, size)[0][1]


def _forward(s: Settings) -> Iterator[Row]:
    """Networks alone, then from a JPEG to detections: folded, channels_last; against NCHW as trained."""
    for name in ("00_vgg16", "01_effnet_b4", "lite0"):
        yield from _forward_of(name, s)


def _forward_of(name: str, s: Settings) -> Iterator[Row]:
    e, detector = _untrained(name)
    post, size = build_postprocess(e), s.size or as_size(e.input.size)
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8), size[::-1])
    jpeg = cv2.imencode(".jpg", picture)[1]
    folded = _folded(detector.eval().to(s.device))

    def network(way: str, pixels: np.ndarray = picture) -> RawOutputs:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(s.device).contiguous(memory_format=_layout(way))
        with _bfloat16(s.device, way == "bf16"):
            out: RawOutputs = (detector if way == "reference" else folded)(image)
        return out

    def detect(way: str) -> torch.Tensor:
        scores: torch.Tensor = post(network(way, np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB))), size).scores
        return scores.cpu()

    ways = ["reference", "own", *(["bf16"] if s.device != "cpu" or bfloat16_pays() else [])]
    with torch.inference_mode():
        agree("logits", network("own").cls_logits, network("reference").cls_logits, 1e-4)
        times = [in_turns({way: partial(call, way) for way in ways}, s.runs, s.device) for call in (network, detect)]
    for what, goal, of_call in zip(("network", "JPEG to detections"), (None, 1.2), times, strict=True):
        for way in ways[1:]:
            case = f"{what}, {name} {size[0]}x{size[1]}{', bf16' if way == 'bf16' else ''}"
            yield compared("forward", case, of_call, way, goal=goal if way == "own" else None)


def _export(s: Settings) -> Iterator[Row]:
    """An ONNX file of lite0 in onnxruntime, NMS included; against torch as trained, and folded. On the CPU.

    Raises:
        Failure: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise Failure("onnxruntime is not installed: pip install '.[export]'") from None
    e, detector = _untrained("lite0", torch.channels_last)
    weights = {f"detector.{name}": value for name, value in detector.state_dict().items()}
    checkpoint = s.folder / "lite0.ckpt"
    torch.save({"epoch": 0, "experiment": dataclasses.asdict(e), "state_dict": weights}, checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    file = export_detector(checkpoint, size=s.size).path
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    post, (height, width) = build_postprocess(e), session.get_inputs()[0].shape[2:]
    image = _images(1, (height, width))

    def eager(module: nn.Module) -> torch.Tensor:
        scores: torch.Tensor = post(module(image), (height, width)).scores
        return scores

    def exported() -> torch.Tensor:
        return torch.from_numpy(session.run(["scores"], {"images": image.numpy()})[0])

    calls = {"as trained": partial(eager, detector.eval()), "folded": partial(eager, _folded(detector))}
    with torch.inference_mode():
        wanted, found = calls["as trained"](), exported()
        most = min(wanted.shape[1], found.shape[1])
        agree("scores", found[:, :most], wanted[:, :most], 1e-4)
        times = in_turns({**calls, "own": exported}, s.runs)
    for name in calls:
        case = f"{e.name} {height}x{width} to detections: onnxruntime against torch, {name}"
        yield compared("export", case, times, reference=name)


def _train(s: Settings) -> Iterator[Row]:
    """Steps of 01: forward, loss, backward, optimiser. The reference is in NCHW with the loss as loops (on a CPU)."""
    name, batch = "01_effnet_b4", s.batch
    e, _ = _untrained(name)
    size, criterion = s.size or as_size(e.input.size), build_criterion(e)
    images, targets = _images(batch, size).to(s.device), scene.targets(batch, 3, size).to(s.device)
    detectors = {side: _untrained(name, _layout(side))[1].to(s.device).train() for side in ("own", "reference")}
    optimizers = {side: build_optimizer(e, detector) for side, detector in detectors.items()}
    programs: dict[str, Callable[..., RawOutputs]] = {**detectors, "bf16": detectors["own"]}
    if s.compiled:
        programs["compiled"] = torch.compile(detectors["own"])

    def step(way: str) -> torch.Tensor:
        torch.manual_seed(0)
        optimizer = optimizers.get(way, optimizers["own"])
        optimizer.zero_grad()
        with _bfloat16(s.device, way == "bf16"):
            out = programs[way](images.contiguous(memory_format=_layout(way)))
        plain = way == "reference" and s.device == "cpu"
        total: torch.Tensor = _plain_loss(out, targets) if plain else criterion(out, targets).total
        total.backward()
        optimizer.step()
        return total.detach()

    agree("loss of the first step", step("own") / step("reference"), torch.ones((), device=s.device), 1e-3)
    times = in_turns({way: partial(step, way) for way in programs}, s.runs, s.device)
    case = f"training step, {name} {size[0]}x{size[1]}, batch {batch}"
    yield compared("train", f"{case}: channels_last", times, per=batch)
    for way in [way for way in programs if way not in detectors]:
        yield compared("train", f"{case}: {way} (its ratio to fp32)", times, way, "own", per=batch)


def _untrained(name: str, layout: torch.memory_format = torch.contiguous_format) -> tuple[ExperimentConfig, Detector]:
    """An experiment with random weights, batch norms and MultiBox."""
    torch.manual_seed(0)
    overrides = ["backbone.pretrained=none", "backbone.norm=batch", "class_loss.name=multibox"]
    e = load_experiment(name, overrides)
    detector: Detector = build_detector(e, pretrained=False)[0].to(memory_format=layout)  # type: ignore[call-overload]
    return e, detector


def _folded(detector: Detector) -> nn.Module:
    """A copy for inference: norms folded (compared on a small image), channels_last."""
    image = _images(1, (64, 96)).to(next(detector.parameters()).device)
    folded: nn.Module = fold(detector, image).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded


def _images(count: int, size: tuple[int, int]) -> torch.Tensor:
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def _layout(way: str) -> torch.memory_format:
    return torch.contiguous_format if way == "reference" else torch.channels_last


def _bfloat16(device: str, on: bool) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=on)


STAGES: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "data": _data,
    "loss": _loss,
    "postprocess": _postprocess,
    "whole": _whole,
    "forward": _forward,
    "export": _export,
    "train": _train,
}
