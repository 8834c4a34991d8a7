"""Soft labels of Noisy Anchors (Li et al., CVPR 2020, arXiv 1912.05086).

Shape letters: K samples, P positives, C foreground classes, I images.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.activation import SigmoidLoss, binary
from frcnn.losses.focal import check_alpha, power
from frcnn.losses.samples import Per, Samples
from frcnn.losses.soft_targets import predicted_ious
from samplers.arguments import check_choice, check_not_negative, check_share

Form = Literal["paper", "released"]
FORMS = ("paper", "released")
# What divides counts as this at least: a mean or a range may be 0.
SMALLEST = 1e-12


class NoisyAnchors(SigmoidLoss):
    """Focal loss whose target for a positive's class is its cleanliness c, without gradient.

    ``-c a (1 - p)^g log p - (1 - c) (1 - a) p^g log(1 - p)``, summed over C binary problems with
    p = sigmoid(x), a = ``focal_alpha`` and g = ``focal_gamma``; c is 0 for every other class.

    c mixes the IoU of the predicted box and the score of the class:

    - "paper": ``alpha IoU + (1 - alpha) p``.
    - "released": each of the two over its mean in the image, then stretched, so that the best
      positive of an image has the label 1 and the worst one the mean IoU.

    ``assigner=top_n`` and ``weigher=noisy_anchors`` are the other parts of the method.

    Args:
        alpha: share of the IoU in c, in [0, 1].
        labels: form of c.
        focal_alpha: weight of the target's part in [0, 1], that of the rest is 1 - focal_alpha;
            None = 1 for both. 0.5 in released code.
        focal_gamma: exponent that reduces the loss of well-classified examples, >= 0.
        per, guided_scale, prior: as for ``FocalSigmoid``. (Released code divides by a moving
            average of the positives.)

    Raises:
        ValueError: an argument out of range.

    IoU 1 and p 0.5: c is 0.75 + 0.25 * 0.5 = 0.875.

    >>> from frcnn.losses.examples import few_samples
    >>> batch = few_samples([1, 0], deltas=[[0, 0, 10, 10]], objects=[[0, 0, 10, 10]])
    >>> NoisyAnchors()(batch)  # (0.875 + 0.125) * 0.5 * 0.5^2 * -ln 0.5, and the same
    tensor([0.0866, 0.0866])
    """

    def __init__(
        self,
        alpha: float = 0.75,
        labels: Form = "paper",
        focal_alpha: float | None = 0.5,
        focal_gamma: float = 2.0,
        per: Per = "positive",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_share("alpha", alpha)
        check_choice("labels", labels, FORMS)
        check_alpha(focal_alpha, "focal_alpha")
        check_not_negative("focal_gamma", focal_gamma)
        self.alpha, self.labels = alpha, labels
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples)
        clean = logits.new_zeros(len(logits))
        clean[samples.positive] = self._cleanliness(samples).to(clean)
        targets = targets * clean[:, None]
        gamma, alpha = self.focal_gamma, self.focal_alpha
        yes = power((-logits).sigmoid(), gamma) * -F.logsigmoid(logits)
        no = power(logits.sigmoid(), gamma) * -F.logsigmoid(-logits)
        shares = (1, 1) if alpha is None else (alpha, 1 - alpha)
        return (shares[0] * targets * yes + shares[1] * (1 - targets) * no).sum(1)

    @torch.no_grad()
    def _cleanliness(self, samples: Samples) -> Tensor:
        """[P] c in [0, 1]."""
        own = samples.labels[samples.positive][:, None]
        scores = samples.logits[samples.positive].sigmoid().gather(1, own)[:, 0]
        ious = predicted_ious(samples).to(scores)
        if self.labels == "paper":
            return self.alpha * ious + (1 - self.alpha) * scores
        mean = image_means(ious, samples)
        mixed = relative_mix(ious, scores, self.alpha, samples)
        return mean + (1 - mean) * _stretched(mixed, samples)


def relative_mix(first: Tensor, second: Tensor, alpha: float, samples: Samples) -> Tensor:
    """[P] alpha times the first and 1 - alpha times the second, each over its image's mean."""
    means = (image_means(values, samples).clamp(min=SMALLEST) for values in (first, second))
    return alpha * first / next(means) + (1 - alpha) * second / next(means)


def image_means(values: Tensor, samples: Samples) -> Tensor:
    """[P] values of the positives -> [P] their mean in the image of each."""
    image, none = samples.image[samples.positive], values.new_zeros(samples.num_images)
    counts = none.index_add(0, image, torch.ones_like(values))
    return (none.index_add(0, image, values) / counts.clamp(min=1))[image]


def _stretched(values: Tensor, samples: Samples) -> Tensor:
    """[P] in [0, 1]: 0 for the least of each image, 1 for the greatest; 1 where all are equal."""
    image, none = samples.image[samples.positive], values.new_zeros(samples.num_images)
    least, most = (
        none.scatter_reduce(0, image, values, how, include_self=False)[image]
        for how in ("amin", "amax")
    )
    spread = most - least
    return torch.where(spread > 0, (values - least) / spread.clamp(min=SMALLEST), 1)
