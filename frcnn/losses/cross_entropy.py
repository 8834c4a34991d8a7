"""Cross entropy, the baseline at both sites (Fast R-CNN, arXiv 1504.08083, eq. 1)."""

import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.samples import Per, Samples, check_per, divisor


class CrossEntropy:
    """``-log softmax(logits)[label]``.

    At the RPN the logits are ``[0, x]``, whose softmax cross entropy is the binary cross entropy
    of ``sigmoid(x)``.

    Args:
        per: the loss is a mean over kept "sample"s (torchvision), over "positive"s, or is divided
            by a constant.
    """

    def __init__(self, per: Per = "sample") -> None:
        check_per(per)
        self.per = per

    def __call__(self, samples: Samples) -> Tensor:
        """[K] unweighted losses."""
        return F.cross_entropy(samples.logits, samples.labels, reduction="none")

    def normalizer(self, samples: Samples) -> float:
        """Scalar > 0 that the weighted sum is divided by."""
        return divisor(samples, self.per)

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] probabilities that sum to 1."""
        return logits.softmax(-1)
