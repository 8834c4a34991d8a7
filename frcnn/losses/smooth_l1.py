"""Smooth L1 on encoded box deltas (Fast R-CNN, arXiv 1504.08083, eq. 2 and 3)."""

import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.samples import BOX_PER, Divided, Per, Samples, check_per


class SmoothL1(Divided):
    """Quadratic below ``beta``, linear above, summed over the four deltas.

    Args:
        beta: where it turns linear, > 0. torchvision uses 1/9 at both sites; the paper 1.
        per: the loss is a sum over positives divided by the number of kept "sample"s
            (torchvision), of "positive"s, of their four "coordinate"s each, or by a constant.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, beta: float = 1 / 9, per: Per = "sample") -> None:
        if not beta > 0:
            raise ValueError(f"beta must be above 0, got {beta}")
        check_per(per, BOX_PER)
        self.beta = beta
        self.per = per

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses of the positives."""
        loss = F.smooth_l1_loss(samples.deltas, samples.targets, beta=self.beta, reduction="none")
        return loss.sum(1)
