"""The absolute error of encoded box deltas."""

import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.samples import BOX_PER, Divided, Per, Samples


class L1(Divided):
    """``|d|`` summed over the four deltas.

    Args:
        per: as for ``SmoothL1``.

    Raises:
        ValueError: an unknown divisor.

    >>> from frcnn.losses.examples import few_samples
    >>> L1()(few_samples([1], deltas=[[1, -2, 0, 0.5]]))
    tensor([3.5000])
    """

    def __init__(self, per: Per = "sample") -> None:
        super().__init__(per, BOX_PER)

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses of the positives."""
        return F.l1_loss(samples.deltas, samples.targets, reduction="none").sum(1)
