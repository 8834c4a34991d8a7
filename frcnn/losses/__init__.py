"""Losses: unreduced values, their normalizer, and the scores that inference reads."""

from frcnn.losses.alrp import ALRP, ALRPBox
from frcnn.losses.balanced_l1 import BalancedL1
from frcnn.losses.bucketed_rank_sort import BucketedRankSort
from frcnn.losses.carl import CARL
from frcnn.losses.class_weights import ClassWeights
from frcnn.losses.cross_entropy import CrossEntropy
from frcnn.losses.dynamic_smooth_l1 import DynamicSmoothL1
from frcnn.losses.equalization import Equalization
from frcnn.losses.equalization_v2 import EqualizationV2
from frcnn.losses.federated import Federated
from frcnn.losses.focal import Focal, FocalSigmoid, FocalStar
from frcnn.losses.ghm import GHMC, GHMR
from frcnn.losses.giou import GIoU
from frcnn.losses.l1 import L1
from frcnn.losses.noisy_anchors import NoisyAnchors
from frcnn.losses.quality_focal import QualityFocal
from frcnn.losses.rank_sort import RankedGIoU, RankSort
from frcnn.losses.samples import BoxLoss, ClassLoss, Samples
from frcnn.losses.seesaw import Seesaw
from frcnn.losses.smooth_l1 import SmoothL1
from frcnn.losses.varifocal import Varifocal

__all__ = [
    "ALRP",
    "CARL",
    "GHMC",
    "GHMR",
    "L1",
    "ALRPBox",
    "BalancedL1",
    "BoxLoss",
    "BucketedRankSort",
    "ClassLoss",
    "ClassWeights",
    "CrossEntropy",
    "DynamicSmoothL1",
    "Equalization",
    "EqualizationV2",
    "Federated",
    "Focal",
    "FocalSigmoid",
    "FocalStar",
    "GIoU",
    "NoisyAnchors",
    "QualityFocal",
    "RankSort",
    "RankedGIoU",
    "Samples",
    "Seesaw",
    "SmoothL1",
    "Varifocal",
]
