"""Correlation Loss (Kahraman et al., AAAI 2023, arXiv 2301.01019).

Shape letters: P positives.
"""

from typing import Literal

import torch
from torch import Tensor

from frcnn.losses import Samples
from frcnn.losses.activation import label_scores
from frcnn.losses.samples import step_count, total_count
from frcnn.losses.soft_targets import predicted_ious
from frcnn.sites.weighers.contract import Weighed
from samplers.arguments import check_choice, check_not_negative

COEFFICIENTS = ("concordance", "pearson")
# What divides counts as this at least: all scores may be equal.
SMALLEST = 1e-12


class Correlation:
    """Adds ``weight (1 - r)``: r correlates scores of the positives with IoUs of predicted boxes.

    Both losses stay as they are, so any class loss goes with it. The score is that of the object's
    class as inference reads it, and it alone has a gradient; IoUs have none. With means m,
    variances v and the covariance over the positives of all images and processes, r is in [-1, 1],
    and the term in [0, 2 weight]:

    - "concordance": ``r = 2 cov / (v_score + v_IoU + (m_score - m_IoU)^2)``. It is 1 if scores
      equal IoUs.
    - "pearson": ``r = cov / sqrt(v_score v_IoU)``. It is 1 if scores are a rising line of IoUs.

    Released code also has Spearman's coefficient of soft ranks with a strength of 1. Soft ranks of
    numbers in [0, 1] differ from the numbers by a constant, so that coefficient is Pearson's.

    Without two positives the term is 0. Differs from released code: that takes r over one GPU, and
    for its RetinaNet over each pyramid level.

    Args:
        weight: of the term, >= 0.
        coefficient: "concordance" or "pearson".

    Raises:
        ValueError: an argument out of range.

    Scores 0.5 and 0.5 of boxes with IoUs 1 and 0.5 do not correlate:

    >>> from frcnn.losses.examples import few_samples
    >>> objects = [[0, 0, 10, 10]] * 2
    >>> batch = few_samples([1, 1], deltas=[[0, 0, 10, 10], [0, 0, 10, 5]], objects=objects)
    >>> Correlation(weight=0.2)(batch, torch.ones(2), torch.ones(2)).terms
    {'correlation': tensor(0.2000)}
    """

    def __init__(
        self,
        weight: float = 0.2,
        coefficient: Literal["concordance", "pearson"] = "concordance",
    ) -> None:
        check_not_negative("weight", weight)
        check_choice("coefficient", coefficient, COEFFICIENTS)
        self.weight, self.coefficient = weight, coefficient

    def __call__(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        """[K] and [P] losses -> the same, and the term ``correlation``."""
        scores = label_scores(samples)
        pairs = torch.stack([scores, predicted_ious(samples).to(scores)])
        count = total_count(samples, len(scores))
        means = samples.total(pairs.sum(1)) / count
        score, iou = pairs - means[:, None]
        products = torch.stack([score * score, iou * iou, score * iou]).sum(1)
        variances = samples.total(products) / (count - 1).clamp(min=1)
        term = torch.where(count > 1, 1 - self._correlation(means, variances), 0)
        # The shares of all processes and all batches of the step sum to the term.
        share = len(scores) / step_count(samples, len(scores))
        return Weighed(class_values, box_values, {"correlation": self.weight * share * term})

    def _correlation(self, means: Tensor, variances: Tensor) -> Tensor:
        """0-d r in [-1, 1], out of both means [2], and both variances and the covariance [3]."""
        first, second, covariance = variances
        if self.coefficient == "pearson":
            return covariance / (first * second).clamp(min=SMALLEST).sqrt()
        divisor = first + second + (means[0] - means[1]).square()
        return 2 * covariance / divisor.clamp(min=SMALLEST)
