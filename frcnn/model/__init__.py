"""The detector: a torchvision Faster R-CNN whose two sites run through samplers and losses."""

from frcnn.model.detector import Detector, build_detector

__all__ = ["Detector", "build_detector"]
