"""Balanced L1 on encoded box deltas (Libra R-CNN, arXiv 1904.02701, sec. 3.3)."""

import math

from torch import Tensor

from frcnn.losses.samples import BOX_PER, Divided, Per, Samples
from samplers.arguments import check_above_zero


class BalancedL1(Divided):
    """A smooth L1 whose gradient is larger for small errors, summed over the four deltas.

    ``dL/d|d| = alpha ln(b |d| / beta + 1)`` below ``beta``, ``gamma`` above with
    ``alpha ln(b + 1) = gamma``, so that both meet. Hence for |d| < beta

        L = alpha ((|d| + beta / b) ln(b |d| / beta + 1) - |d|),

    which is the paper's at its beta of 1. Differs from released code at another beta: there the
    loss keeps the factors of beta = 1, and its gradient is no longer the above.

    Args:
        alpha: the smaller, the more gradient small errors have; > 0.
        gamma: gradient of errors of ``beta`` and more, > 0.
        beta: where the gradient stops growing, > 0.
        per: as for ``SmoothL1``.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> BalancedL1()(few_samples([1, 1], deltas=[[1, 0, 0, 0], [2, 0, 0, 0]]))
    tensor([1.0786, 2.5786])

    With b = e^3 - 1 = 19.1 the first is 0.5 (3 (1 + 1 / b) - 1); above 1 the gradient is 1.5.
    """

    def __init__(
        self, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0, per: Per = "sample"
    ) -> None:
        super().__init__(per, BOX_PER)
        for name, value in (("alpha", alpha), ("gamma", gamma), ("beta", beta)):
            check_above_zero(name, value)
        self.alpha, self.gamma, self.beta = alpha, gamma, beta

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses of the positives."""
        error = (samples.deltas - samples.targets).abs()
        b = math.exp(self.gamma / self.alpha) - 1
        inner = error.clamp(max=self.beta)
        curved = (inner + self.beta / b) * (b * inner / self.beta).log1p() - inner
        straight = self.gamma * (error - inner)
        return (self.alpha * curved + straight).sum(1)
