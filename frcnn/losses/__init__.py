"""Losses of the two sites: unreduced values, their normalizer and their inference activation."""

from frcnn.losses.cross_entropy import CrossEntropy
from frcnn.losses.samples import BoxLoss, ClassLoss, Samples
from frcnn.losses.smooth_l1 import SmoothL1

__all__ = ["BoxLoss", "ClassLoss", "CrossEntropy", "Samples", "SmoothL1"]
