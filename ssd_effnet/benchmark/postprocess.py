"""Speed of decoding and NMS, against the loop "take the best, drop what overlaps it"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from ssd_effnet.benchmark import scene
from ssd_effnet.benchmark.reference import stages as reference
from ssd_effnet.benchmark.rows import Row, agree, compared
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training.runtime import in_turns


def benchmark_postprocess(
    *, runs: int = 5, candidates: Sequence[int] = (674, 4690), size: tuple[int, int] = scene.SIZE
) -> Iterator[Row]:
    """One row per number of candidates, around people and spread over the frame, without a limit before NMS."""
    anchors = scene.anchors(size)
    for spread in (False, True):
        for number in dict.fromkeys(min(number, len(anchors)) for number in candidates):
            logits, offsets = scene.found(anchors, number, spread=spread, size=size)
            post = PostProcess(pre_nms_top_k=len(anchors))
            own = partial(post, RawOutputs(logits, offsets, anchors), size)
            plain = partial(reference.postprocess, logits, offsets, anchors, size)
            boxes, scores, _ = own().image(0)
            plain_boxes, plain_scores = plain()[0]
            agreement = agree("scores", scores, plain_scores, 0) + ", " + agree("boxes", boxes, plain_boxes, 1e-3)
            where = "spread over the frame" if spread else "around 12 people"
            times = in_turns({"own": own, "reference": plain}, runs, release=True)
            case = f"{len(anchors):,} anchors, {number:,} candidates {where}, {len(boxes)} kept"
            yield compared("postprocess", case, times, agreement=agreement)
