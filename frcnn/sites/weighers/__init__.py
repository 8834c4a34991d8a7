"""Weighers: both losses of the samples, with gradient -> weighted losses and terms of their own.

One paper per file.
"""

from frcnn.sites.weighers.assigner_weights import AssignerWeights
from frcnn.sites.weighers.contract import Weighed, Weigher
from frcnn.sites.weighers.correlation import Correlation
from frcnn.sites.weighers.equal_terms import EqualTerms
from frcnn.sites.weighers.moving_positives import MovingPositives
from frcnn.sites.weighers.noisy_anchors import NoisyAnchorWeights
from frcnn.sites.weighers.swn import SWN

__all__ = [
    "SWN",
    "AssignerWeights",
    "Correlation",
    "EqualTerms",
    "MovingPositives",
    "NoisyAnchorWeights",
    "Weighed",
    "Weigher",
]
