"""Varifocal loss (VarifocalNet, Zhang et al., CVPR 2021, arXiv 2008.13367).

Shape letters: K samples, C foreground classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frcnn.losses.activation import SigmoidLoss, binary
from frcnn.losses.focal import power
from frcnn.losses.samples import Per, Samples
from frcnn.losses.soft_targets import SoftTargets
from samplers.arguments import check_not_negative


class Varifocal(SigmoidLoss, nn.Module):
    """``q BCE(p, q)`` for the class of a positive, ``alpha p^gamma BCE(p, 0)`` for the others.

    q in [0, 1] says how good the positive's box is (``soft_targets``); p = sigmoid(x). Negatives
    lose weight as in focal loss. Positives do not: the better the box, the more they weigh. The
    least loss of a positive is at p = q and is not 0. Where q is 0, a positive counts as a
    negative, as in the paper.

    Scores become IoUs, as with ``QualityFocal``: low thresholds of scores suit them.

    Args:
        alpha: weight of negatives, >= 0. (Focal loss's alpha is that of positives.)
        gamma: exponent that reduces the loss of well-classified negatives, >= 0.
        start: training batches in which q goes from 1 to the quality; see ``SoftTargets``. The
            paper has none (0): it starts from trained weights, and from boxes that it refines.
        per, guided_scale: as for ``CrossEntropy``; released code divides by "positive"s.
        prior: probability that the untrained head gives each class, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range.

    q is 0.8 and p is 0.5:

    >>> from frcnn.losses.examples import few_samples
    >>> batch = few_samples([1, 0], deltas=[[0, 0, 10, 8]], objects=[[0, 0, 10, 10]])
    >>> Varifocal(start=0)(batch)  # 0.8 * -ln 0.5, and 0.75 * 0.5^2 * -ln 0.5
    tensor([0.5545, 0.1300])
    """

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        start: int = 100,
        per: Per = "positive",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_not_negative("alpha", alpha)
        check_not_negative("gamma", gamma)
        self.alpha, self.gamma = alpha, gamma
        self.soft_targets = SoftTargets(start)

    def forward(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples)
        targets = targets * self.soft_targets(samples).to(targets)[:, None]
        negative = self.alpha * power(logits.sigmoid(), self.gamma)
        weights = torch.where(targets > 0, targets, negative)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (weights * loss).sum(1)
