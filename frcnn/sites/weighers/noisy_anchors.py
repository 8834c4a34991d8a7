"""Weights of Noisy Anchors (Li et al., CVPR 2020, arXiv 1912.05086).

Shape letters: K samples, P positives among them.
"""

import torch
from torch import Tensor

from frcnn.losses import Samples
from frcnn.losses.activation import label_scores
from frcnn.losses.noisy_anchors import FORMS, SMALLEST, Form, image_means, relative_mix
from frcnn.losses.soft_targets import predicted_ious
from frcnn.sites.weighers.contract import Weighed
from samplers.arguments import check_choice, check_not_negative, check_share

# f(x) is 1 / this at most: an IoU or a score may be 1.
LEAST_ERROR = 1e-3


class NoisyAnchorWeights:
    """Both losses of a positive times r, which is high where box and class are right.

    With ``f(x) = 1 / (1 - x)`` of the predicted box's IoU and of the class's score:

    - "paper": ``r = (alpha f(IoU) + (1 - alpha) f(p))^gamma`` over its mean in the image.
    - "released": each f over its mean in the image, mixed, to the gamma. Then all class losses,
      also those of negatives, get one factor that keeps their sum, and so do all box losses.

    r has no gradient. Negatives have a weight of 1.

    Differs from released code: f is at most 1000 (there it may be infinite), and the sums that
    stay are those of all processes.

    Args:
        alpha: share of the IoU, in [0, 1].
        gamma: exponent, >= 0; 0 = no weights.
        weights: form of r.

    Raises:
        ValueError: an argument out of range.

    f(IoU) is 5 and 2, f(p) is 2:

    >>> from frcnn.losses.examples import few_samples
    >>> objects = [[0, 0, 10, 10]] * 2
    >>> batch = few_samples([1, 1], deltas=[[0, 0, 10, 8], [0, 0, 10, 5]], objects=objects)
    >>> NoisyAnchorWeights(alpha=1)(batch, torch.ones(2), torch.ones(2)).box_values  # 5 and 2 / 3.5
    tensor([1.4286, 0.5714])
    """

    def __init__(self, alpha: float = 0.75, gamma: float = 1.0, weights: Form = "paper") -> None:
        check_share("alpha", alpha)
        check_not_negative("gamma", gamma)
        check_choice("weights", weights, FORMS)
        self.alpha, self.gamma, self.weights = alpha, gamma, weights

    def __call__(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        """[K] and [P] losses -> weighted ones."""
        own = self._weights(samples).to(class_values)
        weights = torch.ones_like(class_values)
        weights[samples.positive] = own
        class_values, before = weights * class_values, class_values
        box_values, boxes_before = own * box_values, box_values
        if self.weights == "released":
            class_values = _same_sum(class_values, before, samples.weights, samples)
            box_values = _same_sum(box_values, boxes_before, torch.ones_like(own), samples)
        return Weighed(class_values, box_values)

    @torch.no_grad()
    def _weights(self, samples: Samples) -> Tensor:
        """[P] r."""
        scores = label_scores(samples)
        near, sure = (
            1 / (1 - values).clamp(min=LEAST_ERROR)
            for values in (predicted_ious(samples).to(scores), scores)
        )
        if self.weights == "released":
            return relative_mix(near, sure, self.alpha, samples) ** self.gamma
        mixed = (self.alpha * near + (1 - self.alpha) * sure) ** self.gamma
        return mixed / image_means(mixed, samples)


def _same_sum(values: Tensor, before: Tensor, weights: Tensor, samples: Samples) -> Tensor:
    """Values times a constant that gives them the weighted sum that they had before."""
    sums = torch.stack([(weights * before).sum(), (weights * values).sum()]).detach()
    sums = samples.total(sums)
    factor = torch.where(sums[1] == 0, 1, sums[0] / sums[1].clamp(min=SMALLEST))
    return factor * values
