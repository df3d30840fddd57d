"""Loads a checkpoint and predicts boxes in images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from data_kaist.dataset import collate
from data_kaist.errors import Doubt, ImageError, RequestError, warn_doubt
from data_kaist.images import NOTE, doubts, read_image, to_8_bits
from data_kaist.layouts import SIDES, Side
from data_kaist.structures import DetectionTable
from data_kaist.transforms import Sample
from ssd_effnet.build import as_size, build_detector, build_postprocess, build_reading, build_transforms
from ssd_effnet.config.loading import experiment_of
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.calibration import tempered
from ssd_effnet.inference.sources import file_of
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.folding import fold
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.models.weights import PREFIX, WeightsError, load_by_name, read_checkpoint
from ssd_effnet.training.environment import usable_device
from ssd_effnet.training.memory import enough_memory
from ssd_effnet.training.run_directory import checkpoint_file

Image: TypeAlias = np.ndarray | torch.Tensor | str | Path
"""One picture: a file, a uint8 array ``(H, W, 3)`` RGB or ``(H, W)`` LWIR, or a uint8 tensor ``(3, H, W)`` or
``(1, H, W)`` or ``(H, W)``, on any device; LWIR values may be of any type where the detector has a range for them."""

Pair: TypeAlias = tuple[Image, Image]
"""(visible, LWIR), of one size."""


def load_detector(path: str | Path = "people", *, device: str = "auto", zoom: float = 1.0) -> Predictor:
    """Load a trained detector from a checkpoint, which contains its experiment.

    Args:
        path: a checkpoint, or a run's directory, which stands for its tested checkpoint. In an unfinished run that is
            ``checkpoints/best.ckpt``, or ``last.ckpt`` if there is no best one. ``people`` and ``pairs``: those
            of the package, of visible pictures and of visible and LWIR pairs.
        device: ``cpu``, ``cuda``, ``cuda:1`` ..., or ``auto``: the GPU where there is one.
        zoom: factor of the input's sides relative to training, to multiples of 32; anchors keep their pixels. For
            smaller people than in training; time grows with the square.

    Raises:
        WeightsError, ConfigError: it is no checkpoint, or its experiment cannot be built.
        RequestError: no such device, or a zoom out of range.
        FoldError: see :class:`Predictor`.
    """
    if not 0.1 <= zoom <= 10:
        raise RequestError(f"zoom must lie in 0.1..10, not {zoom}")
    where = usable_device(device)
    file = checkpoint_file(Path(path))
    content = read_checkpoint(file)
    experiment = _zoomed(experiment_of(content["experiment"], str(file)), zoom)
    experiment.postprocess.temperature = content.get("temperature", experiment.postprocess.temperature)
    detector, _ = build_detector(experiment, pretrained=False)
    weights = {name.removeprefix(PREFIX): w for name, w in content["state_dict"].items() if name.startswith(PREFIX)}
    report = load_by_name(detector, weights, optional=(), source=str(file))
    if report.unexpected:
        raise WeightsError(f"{file}: its weights are not those of the experiment in it: {report}")
    return Predictor(experiment, detector, where)


class Predictor:
    """A detector with reading, resizing, normalisation, decoding and NMS.

    Transforms and thresholds are those of a run's test. Norms are folded into convolutions, which saves up to a third
    of the time; a FoldError names a module for which that would be another network. Computes in float32; a run with
    ``trainer.precision: bf16-mixed`` was tested in that.

    Attributes:
        experiment: as the detector was trained, apart from the input's size if it is zoomed.
        modality: ``visible``, ``lwir``, ``early`` or ``halfway``; the last two need pairs.
        classes: names of labels 1, 2, ...
        input_size: (height, width) to which every image is resized, padded with ``input.fit: letterbox``.
        reading: settings for decoding: upright, with the LWIR range of training.
        detector: as trained.
        folded: its copy with norms folded into convolutions, which detects.
    """

    def __init__(self, experiment: ExperimentConfig, detector: Detector, device: torch.device) -> None:
        self.experiment = experiment
        self.modality = experiment.input.modality
        self.classes = tuple(experiment.data.classes)
        self.device = usable_device(device)
        self.folded = self._fold(detector.eval()).to(self.device)
        self.folded = self.folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.detector = detector.to(self.device)
        self.reading = replace(build_reading(experiment), orientation="follow")
        self._transform = build_transforms(experiment, "test")
        self._postprocess = build_postprocess(experiment)

    def __repr__(self) -> str:
        height, width = self.input_size
        found = f"{', '.join(self.classes)} in {self.modality}"
        return f"Predictor({self.experiment.name}: {found}, {height}x{width}, {self.device})"

    def _fold(self, detector: Detector) -> Detector:
        """Folded copy, compared with the detector on a small input."""

        def noise(size: tuple[int, int]) -> torch.Tensor:
            shape = (1, len(CHANNELS[self.modality]), *size)
            pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator())
            return pixels.to(detector.normalize.mean.device)

        try:
            return fold(detector, noise((64, 96)))
        except (RuntimeError, ValueError):
            return fold(detector, noise(self.input_size))

    @property
    def input_size(self) -> tuple[int, int]:
        return as_size(self.experiment.input.size)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The images that the modality reads."""
        return SIDES[self.modality]

    def predict(
        self, images: Sequence[Image | Pair], *, score: float | None = None, batch_size: int = 8
    ) -> list[DetectionTable]:
        """Detections of each image, best first. Tables are in the order of the images, whose sizes may differ.

        A table has boxes in pixels of the image as it was given, scores in 0..1, ``class_names``, its ``size``, and as
        ``image_index`` its place in ``images``.

        Args:
            images: files, arrays or tensors as :data:`Image` says; pairs (visible, LWIR) for early and halfway fusion.
                Files are decoded as in training, an alpha channel is dropped, and orientation tags are followed: boxes
                are in the upright picture. Where only the high byte of 16 bits is used, a warning says so.
            score: detections below are left out; None: ``postprocess.score_threshold`` of the experiment, low for
                evaluation. For display, 0.3 to 0.5.
            batch_size: images per batch.

        Raises:
            ImageError: an image that cannot be read, has another shape or type, or is not what the modality reads.
            NonFiniteError, OutOfMemory, RequestError: see their sentences.
        """
        if isinstance(images, np.ndarray | torch.Tensor | str | Path):
            raise ImageError("predict takes a list of images, not a single one; write predict([image])")
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, not {batch_size}")
        found: list[DetectionTable] = []
        notes = np.zeros(len(images), NOTE)
        given = [x if isinstance(x, tuple | list) else (x,) for x in images]
        names = [[_name_of([x], f"image {i}") for x in of] or [f"image {i}"] for i, of in enumerate(given)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for start in range(0, len(images), batch_size):
                some = range(start, min(start + batch_size, len(images)))
                samples = pool.map(lambda i: self.prepare(given[i], names[i][0], notes[i : i + 1]), some)
                tables = self.detect(list(samples), score=score)
                found += [replace(t, image_index=np.full(len(t), i)) for i, t in zip(some, tables, strict=True)]
        for sentence in self.doubts(zip(names, notes, strict=True)):
            warnings.warn(sentence, Doubt, stacklevel=2)
        return found

    def doubts(self, notes: Iterable[tuple[Sequence[object], np.ndarray]]) -> list[str]:
        """Warnings about prepared images, given their files and :data:`~data_kaist.images.NOTE` rows."""
        return [sentence for kind, sentence in doubts(notes, self.reading).items() if kind != "orientation"]

    def prepare(
        self, image: Image | tuple[Image, ...], name: str = "the image", note: np.ndarray | None = None
    ) -> Sample:
        """Read and resize one image as for the test of a run.

        ``image`` is as for :meth:`predict`; a tuple holds as many as the modality has ``sides``. ``name`` is for
        messages; ``note``, one row of :data:`data_kaist.images.NOTE`, is filled in.
        """
        given = image if isinstance(image, tuple | list) else (image,)
        if len(given) != len(self.sides):
            wanted = "pairs (visible, lwir)" if len(self.sides) == 2 else f"{self.sides[0]} images alone"
            got = "a single one" if len(given) == 1 else f"{len(given)} together"
            raise ImageError(f"{_name_of(given, name)}: {self.modality} needs {wanted}, not {got}")
        pictures = {side: self._pixels(x, side, name, note) for side, x in zip(self.sides, given, strict=True)}
        sizes = [picture.shape[:2] for picture in pictures.values()]
        if len(set(sizes)) > 1:
            (h, w), (other_h, other_w) = sizes
            raise ImageError(f"{_name_of(given, name)}: visible is {w}x{h} pixels, but lwir {other_w}x{other_h}")
        sample = Sample(
            visible=pictures.get("visible"),
            lwir=pictures.get("lwir"),
            boxes_xyxy=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            ignore=np.zeros(0, bool),
            original_size=sizes[0],
            name=name,
        )
        return self._transform(sample, np.random.default_rng(0))

    @torch.inference_mode()
    def detect(self, samples: Sequence[Sample], *, score: float | None = None) -> list[DetectionTable]:
        """Detections of prepared samples, computed as one batch. Arguments and errors as in :meth:`predict`."""
        if score is not None and not 0 <= score <= 1:
            raise RequestError(f"score must lie in 0..1, not {score}")
        if not samples:
            return []
        postprocess = self._postprocess
        if score is not None:
            postprocess = replace(postprocess, score_threshold=float(tempered(score, 1 / postprocess.temperature)))
        height, width = self.input_size
        what = f"{len(samples)} images of {width}x{height} pixels at once"
        with enough_memory(what, "take fewer at a time (batch_size, --batch) or a smaller zoom (--zoom)"):
            batch = collate(samples).to(self.device)
            outputs = self.folded(batch.images)
            outputs.refuse_non_finite(batch.names)
            detections = postprocess(outputs, self.input_size, batch.original_sizes, batch.content_sizes)
        table = detections.table(range(len(samples)), self.classes)
        return [replace(table.of_image(i), size=sample.original_size) for i, sample in enumerate(samples)]

    def _pixels(self, image: Image, side: Side, name: str, note: np.ndarray | None) -> np.ndarray:
        """uint8 ``(H, W, 3)`` RGB for ``visible``, ``(H, W)`` for ``lwir``."""
        if isinstance(image, str | Path):
            return read_image(file_of(image), colour=side == "visible", reading=self.reading, note=note)
        pixels = _array(image, side, name, any_type=side == "lwir" and self.reading.lwir_range is not None)
        return pixels if side == "visible" else to_8_bits(pixels, name, self.reading, note)


def _zoomed(e: ExperimentConfig, zoom: float) -> ExperimentConfig:
    """The experiment with a larger input and the same anchors in pixels."""
    if zoom == 1:
        return e
    # multiples of the strides: else anchors lie beside the middle of what a position sees
    near = [[32 * max(1, int(zoom * side / 32) + up) for up in (0, 1)] for side in e.input.size]
    off = {(h, w): np.log(np.divide((h, w), e.input.size) / zoom) for h in near[0] for w in near[1]}
    size = min(off, key=lambda new: float(np.abs(off[new]).max() + np.ptp(off[new])))  # in zoom and in shape
    down, across = factors = np.divide(size, e.input.size)
    if np.abs(factors / zoom - 1).max() > 0.05:
        how = f"{size[1]}x{size[0]} pixels, {across:.2f} times as wide and {down:.2f} times as high as in training"
        warn_doubt(f"zoom {zoom:g}: images become {how}, because sides are multiples of 32")
    refer_to = e.anchors.reference_size and np.rint(factors * e.anchors.reference_size).astype(int).tolist()
    return replace(e, input=replace(e.input, size=list(size)), anchors=replace(e.anchors, reference_size=refer_to))


def _name_of(given: Sequence[Any], name: str) -> str:
    """The image's file name, or its number."""
    files = [str(x) for x in given if isinstance(x, str | Path)]
    return files[0] if files else name


def _array(image: np.ndarray | torch.Tensor, side: Side, name: str, *, any_type: bool) -> np.ndarray:
    """An image as a uint8 array, or of ``any_type``. ``(H, W, 3)`` RGB for ``visible``, ``(H, W)`` for ``lwir``."""
    wanted = "(H, W, 3) RGB" if side == "visible" else "(H, W)"
    if not isinstance(image, np.ndarray | torch.Tensor):
        kind = type(image).__name__
        raise ImageError(f"{name}: is a {kind}, not an image; give a file, a numpy array or a torch tensor")
    if str(image.dtype).removeprefix("torch.") != "uint8" and not any_type:
        raise ImageError(f"{name}: has values of type {image.dtype}; an image is uint8, 0..255")
    pixels = image if isinstance(image, np.ndarray) else image.detach().cpu().numpy()
    if isinstance(image, torch.Tensor):
        wanted = "(3, H, W) RGB" if side == "visible" else "(H, W) or (1, H, W)"
        if pixels.ndim == 3:
            pixels = pixels[0] if side == "lwir" and len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    right = pixels.ndim == 3 and pixels.shape[2] == 3 if side == "visible" else pixels.ndim == 2
    if not right or not pixels.size:
        raise ImageError(f"{name}: has the shape {tuple(image.shape)}, but a {side} image is {wanted}")
    return np.ascontiguousarray(pixels)
