"""Weighers: both losses of the samples, with gradient -> weighted losses and terms of their own.

One paper per file.
"""

from frcnn.sites.weighers.assigner_weights import AssignerWeights
from frcnn.sites.weighers.contract import Weighed, Weigher
from frcnn.sites.weighers.moving_positives import MovingPositives

__all__ = ["AssignerWeights", "MovingPositives", "Weighed", "Weigher"]
