"""Online foreground balanced sampling, OFB (Oksuz et al., WACV 2020, arXiv 1909.09777)."""

import torch
from torch import Tensor

from samplers.arguments import check_budget
from samplers.candidates import Candidates
from samplers.quota import take_quota
from samplers.random import noise


class OFB:
    """Positives evenly over the classes of the batch; negatives at random.

    The positives of an image are drawn without replacement with odds ``1 / n_c``, n_c the number
    of positives of the same class in the batch of all processes. So the odds of each class sum to 1
    over the batch, however many positives it has. At the RPN, which has one class, it draws at
    random.

    Differs from the paper: the quota of positives is per image here. So classes are not drawn
    equally often: an image with fewer positives than its quota has all of them drawn.

    One positive is drawn: the one of class 2 with odds 1, those of class 1 with 1/3 each.

    >>> from samplers.examples import one_image
    >>> weights = OFB(2, 0.5)(one_image(labels=[1, 1, 1, 2, 0, 0]))
    >>> weights[:4].sum().item(), weights[4:].sum().item()
    (1.0, 1.0)

    Args:
        batch_size_per_image: B, at least 1.
        positive_fraction: in [0, 1].

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        check_budget(batch_size_per_image, positive_fraction)
        self.budget = batch_size_per_image, positive_fraction

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        # The smallest of exponential numbers over the odds are a draw without replacement.
        exponential = -torch.log1p(-noise(candidates).double())
        return take_quota(candidates, -exponential * same_label(candidates), *self.budget)


def same_label(candidates: Candidates) -> Tensor:
    """[N] how many candidates of the batch, of all processes, have the same label."""
    labels, _ = candidates.gather(candidates.labels)
    ascending = labels.sort().values
    first = torch.searchsorted(ascending, candidates.labels)
    return torch.searchsorted(ascending, candidates.labels, right=True) - first
