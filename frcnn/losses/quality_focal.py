"""Quality focal loss (GFL, Li et al., NeurIPS 2020, arXiv 2006.04388).

Shape letters: K samples, P positives, C foreground classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from frcnn.losses.activation import SigmoidLoss, binary
from frcnn.losses.focal import power
from frcnn.losses.samples import Per, Samples
from frcnn.losses.soft_targets import SoftTargets
from samplers.arguments import check_not_negative


class QualityFocal(SigmoidLoss, nn.Module):
    """``|t - p|^beta BCE(p, t)`` summed over C binary problems, p = sigmoid(x).

    For the class of a positive, t in [0, 1] says how good its box is: the assigner's soft target if
    it has one (``task_aligned``), else the IoU of the decoded box with the object. t has no
    gradient. For every other class t is 0. The factor has a gradient, as in focal loss.

    The loss is 0 at p = t, so scores become IoUs: low thresholds of scores suit them. A positive
    whose box is bad is nearly a background example.

    Args:
        beta: exponent that reduces the loss of scores near t, >= 0; 0 = cross entropy.
        start: training batches in which t goes from 1 to this quality; see ``SoftTargets``. The
            paper has none.
        per, guided_scale: as for ``CrossEntropy``; the paper divides by "positive"s.
        prior: probability that the untrained head gives each class, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range.

    t is the IoU, 1 and 0.5, and p is 0.5:

    >>> from frcnn.losses.examples import few_samples
    >>> boxes = [[0, 0, 10, 10], [0, 0, 10, 10]]
    >>> batch = few_samples([1, 1], deltas=boxes, objects=[[0, 0, 10, 10], [0, 0, 10, 5]])
    >>> QualityFocal()(batch)  # (1 - 0.5)^2 * -ln 0.5, and 0
    tensor([0.1733, 0.0000])
    """

    def __init__(
        self,
        beta: float = 2.0,
        start: int = 0,
        per: Per = "positive",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_not_negative("beta", beta)
        self.beta = beta
        self.soft_targets = SoftTargets(start)

    def forward(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples)
        targets = targets * self.soft_targets(samples).to(targets)[:, None]
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (power((targets - logits.sigmoid()).abs(), self.beta) * loss).sum(1)
