"""CARL, the classification-aware regression loss of PISA (Cao et al., arXiv 1904.04821).

Shape letters: P positives.
"""

import torch
from torch import Tensor, nn

from frcnn.losses.activation import label_scores
from frcnn.losses.samples import BOX_PER, BoxLoss, Divided, Per, Samples, total_count
from samplers.arguments import check_not_negative, check_share

# Scores and what divides them count as this at least: below it a gradient may leave float32.
SMALLEST = 1e-12


class CARL(Divided, nn.Module):
    """``c_i L_i`` with ``c = v / mean(v)`` and ``v = ((1 - b) p + b)^k``.

    p is the score of the object's class, with gradient: a badly placed box pushes its score down.
    The weights c average 1.

    Args:
        base: the box loss L. Only its values are used: the sum is divided by CARL's own ``per``,
            not by that of the base.
        k, bias: a score of 0 has v = b^k (b in [0, 1]); a larger k >= 0 makes the score matter
            more.
        added: True: the loss is L + c L, as in released code, about twice the gradient of L.
            False: it is c L, as the paper's text says, with c scaled so that the sum stays that
            of L. The scale is a constant there: with its gradient, a sum that cannot change
            would leave the scores none.
        per: as for ``SmoothL1``.

    Raises:
        ValueError: an argument out of range.

    The scores of the two objects are 0.75 and 0.25, so c is 1.5 and 0.5:

    >>> from frcnn.losses.examples import few_samples
    >>> from frcnn.losses.l1 import L1
    >>> logits, deltas = [[0, 1.0986], [1.0986, 0]], [[1, 0, 0, 0], [1, 0, 0, 0]]
    >>> CARL(L1(), bias=0.0)(few_samples([1, 1], logits, deltas))
    tensor([2.5000, 1.5000])
    """

    def __init__(
        self,
        base: BoxLoss,
        k: float = 1.0,
        bias: float = 0.2,
        added: bool = True,
        per: Per = "sample",
    ) -> None:
        super().__init__(per, BOX_PER)
        check_not_negative("k", k)
        check_share("bias", bias)
        self.base, self.added = base, added
        self.k, self.bias = k, bias

    def forward(self, samples: Samples) -> Tensor:
        """[P] losses of the positives."""
        loss = self.base(samples)
        weighted = self._weights(samples) * loss
        if self.added:
            return loss + weighted
        sums = samples.total(torch.stack([loss.sum(), weighted.sum()]).detach())
        return sums[0] / sums[1].clamp(min=SMALLEST) * weighted

    def _weights(self, samples: Samples) -> Tensor:
        """[P] c, with gradient."""
        value = ((1 - self.bias) * label_scores(samples) + self.bias).clamp(min=SMALLEST) ** self.k
        mean = samples.total(value.sum()) / total_count(samples, len(value))
        return value / mean.clamp(min=SMALLEST)
