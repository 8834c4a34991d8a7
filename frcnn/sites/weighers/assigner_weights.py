"""The weights of an assigner on the box losses (TOOD, arXiv 2108.07755)."""

from torch import Tensor

from frcnn.losses import Samples
from frcnn.sites.weighers.contract import Weighed


class AssignerWeights:
    """Box losses times the assigner's weights; both terms over the sum of these weights.

    The sum is over the positives of the step, in all processes, and at least 1; it takes the place
    of ``per``. Without weights it changes nothing but the normalizer: every positive weighs 1.

    >>> import torch
    >>> from frcnn.losses.examples import few_samples
    >>> batch = few_samples([1, 1, 0])
    >>> batch.assigner_weights = torch.tensor([0.5, 1.5, 1.0])
    >>> weighed = AssignerWeights()(batch, torch.ones(3), torch.ones(2))
    >>> weighed.box_values, weighed.normalizer
    (tensor([0.5000, 1.5000]), tensor(2.))
    """

    def __call__(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        """[K] and [P] losses -> the first as they are, the others weighted."""
        weights = box_values.new_ones(len(samples.positive))
        if samples.assigner_weights is not None:
            weights = samples.assigner_weights[samples.positive].to(box_values)
        total = samples.step_total(weights.sum()).clamp(min=1)
        return Weighed(class_values, weights * box_values, normalizer=total)
