"""Detectors: torchvision's networks, which learn through sites."""

from typing import Any

from frcnn.model.cascade import build_cascade_rcnn
from frcnn.model.detector import Detector
from frcnn.model.faster_rcnn import SamplingFasterRCNN, build_faster_rcnn
from frcnn.model.retinanet import SamplingRetinaNet, build_retinanet

__all__ = [
    "Detector",
    "SamplingFasterRCNN",
    "SamplingRetinaNet",
    "build_cascade_rcnn",
    "build_detector",
    "build_faster_rcnn",
    "build_retinanet",
]


def build_detector(
    num_classes: int, name: str = "fasterrcnn_resnet50_fpn", **options: Any
) -> Detector:
    """A detector by the name of its network.

    Args:
        num_classes: C + 1, background counted, as in torchvision.
        name: a network of ``build_faster_rcnn``, ``build_retinanet`` or ``build_cascade_rcnn``.
        options: see these.
    """
    builders: dict[str, Any] = {"retinanet": build_retinanet, "cascade_rcnn": build_cascade_rcnn}
    found = [build for prefix, build in builders.items() if name.startswith(prefix)]
    build = found[0] if found else build_faster_rcnn
    return build(num_classes, name, **options)
