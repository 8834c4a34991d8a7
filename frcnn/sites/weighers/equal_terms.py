"""Losses scaled to terms of one size: the control of ``SWN`` without learned weights.

Shape letters: K kept samples of the batch, P positives among them.
"""

import math

import torch
from torch import Tensor

from frcnn.losses import Samples
from frcnn.losses.samples import Normalizer
from frcnn.sites.weighers.contract import Weighed
from frcnn.sites.weighers.groups import group_sums, groups
from samplers.arguments import check_above_zero


class EqualTerms:
    """Scales the class loss of positives, that of negatives, and the box loss to ``size`` each.

    ``exp(-s) L + size s`` has its minimum where ``exp(-s) L = size``; the weights of ``SWN``
    converge there. Here the s of each group is this optimum for the batch, without gradient. (A
    comparison of this project's; the paper does not have it.)

    Args:
        size: of each of the three parts of the loss, > 0.
        by_label: scale positives and negatives apart; False = one class term of this size.
        limit: a weight is in [exp(-limit), exp(limit)], > 0, as in ``SWN``.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> batch = few_samples([1, 0, 0])
    >>> batch.class_values, batch.box_values = torch.tensor([2.0, 0.5, 0.5]), torch.tensor([0.2])
    >>> weighed = EqualTerms()(batch, batch.class_values, batch.box_values)
    >>> weighed.class_values, weighed.box_values
    (tensor([0.5000, 0.2500, 0.2500]), tensor([0.5000]))
    """

    def __init__(self, size: float = 0.5, by_label: bool = True, limit: float = 2.0) -> None:
        check_above_zero("size", size)
        check_above_zero("limit", limit)
        self.size, self.by_label, self.limit = size, by_label, limit

    def __call__(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        """[K] and [P] losses -> the same, scaled."""
        group = groups(samples, self.by_label)
        image = samples.image
        class_shares = shares(samples.class_values, image, samples.class_normalizer())
        box_shares = shares(samples.box_values, image[samples.positive], samples.box_normalizer())
        own = torch.cat([group_sums(class_shares, group), box_shares.sum()[None]])
        one = own.new_ones(())
        # The other batches of a step are not known yet: each stands for all of them.
        batches = samples.step_total(one) / samples.total(one)
        sums = samples.total(own) * batches
        weights = (self.size / sums).clamp(math.exp(-self.limit), math.exp(self.limit))
        return Weighed(weights[group] * class_values, weights[-1] * box_values)


def shares(values: Tensor, image: Tensor, normalizer: Normalizer) -> Tensor:
    """[K] losses, the [K] images that they belong to -> [K] their shares of the term."""
    if isinstance(normalizer, Tensor) and normalizer.dim():
        return values / normalizer[image]
    return values / normalizer
