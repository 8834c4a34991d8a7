"""Smooth L1 on encoded box deltas (Fast R-CNN, arXiv 1504.08083, eq. 2 and 3)."""

import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.samples import BOX_PER, Divided, Per, Samples
from samplers.arguments import check_above_zero


class SmoothL1(Divided):
    """Quadratic below ``beta``, linear above, summed over the four deltas.

    Args:
        beta: where it turns linear, > 0. torchvision's Faster R-CNN uses 1/9; the
            paper 1.
        per: what the sum is divided by: kept samples ("sample", torchvision's Faster R-CNN),
            positives ("positive"), their coordinates ("coordinate", four each), per image by its
            positives ("image", torchvision's RetinaNet), so that the term is as large as the class
            term ("class_term"), or a constant.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> SmoothL1(beta=1)(few_samples([1], deltas=[[0.5, -2, 0, 0]]))  # 0.5^2 / 2 + (2 - 1 / 2)
    tensor([1.6250])
    """

    def __init__(self, beta: float = 1 / 9, per: Per = "sample") -> None:
        super().__init__(per, BOX_PER)
        check_above_zero("beta", beta)
        self.beta = beta

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses of the positives."""
        loss = F.smooth_l1_loss(samples.deltas, samples.targets, beta=self.beta, reduction="none")
        return loss.sum(1)
