"""Speed of whole training steps and inferences: what the loss and NMS cost beside the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from data_kaist.structures import Targets
from ssd_effnet.benchmark import scene
from ssd_effnet.benchmark.reference import stages as reference
from ssd_effnet.benchmark.rows import Row, agree, compared
from ssd_effnet.build import build_criterion, build_detector, build_postprocess
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.structures import Detections, RawOutputs
from ssd_effnet.training.runtime import in_turns


def benchmark_whole(
    *, runs: int = 5, batch: int = 2, size: tuple[int, int] = (256, 320), names: tuple[str, ...] = ("lite0", "00_vgg16")
) -> Iterator[Row]:
    """Rows of forward, loss and backward, and of inference of one image, with 3 and with 50 people per image.

    Both sides run the same network; the reference has loops over images and boxes for the loss and NMS. Another
    version of these is worth its lines where it gains 5 % here.

    Args:
        runs: rounds.
        batch: images of a training step.
        size: (height, width) of the input.
        names: experiments.
    """
    for name in names:
        yield from _rows(name, runs, batch, size)


def _rows(name: str, runs: int, batch: int, size: tuple[int, int]) -> Iterator[Row]:
    """The rows of one experiment."""
    e = load_experiment(name, ["backbone.pretrained=none", "backbone.norm=batch", "class_loss.name=multibox"])
    detector, criterion, post = build_detector(e)[0], build_criterion(e), build_postprocess(e)
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8).to(memory_format=torch.channels_last)
    anchors = detector(images).anchors_cxcywh
    case = f"{name} {size[0]}x{size[1]}"

    def step(targets: Targets, *, own: bool) -> torch.Tensor:
        torch.manual_seed(0)  # of drop-connect
        detector.zero_grad()
        out = detector(images)
        if own:
            total: torch.Tensor = criterion(out, targets).total
        else:
            objects = list(targets.boxes_xyxy), list(targets.labels)
            cls, loc = reference.multibox_loss(out.cls_logits, out.bbox_regression, anchors, *objects)
            total = cls + loc
        total.backward()
        return total.detach()

    def infer(logits: torch.Tensor, offsets: torch.Tensor, *, own: bool) -> torch.Tensor:
        """Scores; an untrained network finds nothing of its own, so boxes come from the scene."""
        with torch.inference_mode():
            detector(images[:1])
            if own:
                found: Detections = post(RawOutputs(logits, offsets, anchors), size)
                return found.image(0)[1]
            return reference.postprocess(logits, offsets, anchors, size)[0][1]

    for people in (3, 50):
        detector.train()
        pair = [partial(step, scene.targets(batch, people, size), own=own) for own in (True, False)]
        what = f"training step, {case}, batch {batch}, {people} people per image"
        yield _row(what, pair, lambda own, plain: agree("loss", own / plain, torch.ones(()), 1e-5), runs)
        detector.eval()
        for few in (True, False):
            number = 20 * people if few else min(1000, len(anchors))
            found = scene.found(anchors, number, spread=not few, size=size, persons=people)
            pair = [partial(infer, *found, own=own) for own in (True, False)]
            what = f"inference, {case}, {people} people, {number:,} candidates{'' if few else ' over the whole image'}"
            yield _row(what, pair, lambda own, plain: agree("scores", own, plain, 1e-6), runs)


def _row(
    case: str,
    pair: Sequence[Callable[[], torch.Tensor]],
    same: Callable[[torch.Tensor, torch.Tensor], str],
    runs: int,
) -> Row:
    """The project's own way and the reference's, in turns."""
    own, plain = pair
    agreement = same(own(), plain())
    return compared("whole", case, in_turns({"own": own, "reference": plain}, runs), agreement=agreement)
