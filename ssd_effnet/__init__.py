"""SSD pedestrian detectors: backbones, necks and recipes compared as experiments.

As a library::

    from ssd_effnet import load_detector

    detector = load_detector("runs/lite0/seed0")
    for found in detector.predict(["street.jpg"], score=0.5):
        print(found.boxes_xyxy, found.scores, found.class_names)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssd_effnet.inference.predictor import load_detector

__all__ = ["load_detector"]


def __getattr__(name: str) -> Any:
    """Import the detector on first access: the evaluator starts without torch."""
    if name == "load_detector":
        from ssd_effnet.inference.predictor import load_detector

        return load_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
