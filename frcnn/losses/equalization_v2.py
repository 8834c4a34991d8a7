"""Equalization loss v2 (Tan et al., CVPR 2021, arXiv 2012.08548).

Shape letters: K samples, C foreground classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frcnn.losses.activation import PriorLoss, sigmoid_bias
from frcnn.losses.counters import check_counters, finite_or_zero
from frcnn.losses.samples import Per, Samples, widened
from samplers.arguments import check_above_zero, check_not_negative

FIRST_RATIO = 100.0  # of a class that no sample has pushed yet: both weights are 1


class EqualizationV2(PriorLoss, nn.Module):
    """Binary cross entropies weighted by what each class was pushed up and down so far.

    Column 0 is a class "background" of its own, of weight 1. For class j, ``g_j`` is the sum of
    all gradients ``w |p - y|`` of its positives over that of its negatives, in all steps before
    this one. A negative weighs ``f(g_j) = 1 / (1 + exp(-gamma (g_j - mu)))``, a positive
    ``1 + alpha (1 - f(g_j))``. Inference multiplies the class scores by ``1 - p_0``.

    Differs from released code: the samples' weights count, in the loss and in the sums; the sums
    are over all processes (there one GPU by default) and are saved with the run. Column 0 starts
    at a probability of 0.5.

    With ``trainer.accumulate`` an optimizer step has several batches.

    Args:
        gamma, mu, alpha: of the weights; gamma > 0, alpha >= 0.
        per, guided_scale: as for ``CrossEntropy``; the paper divides by "sample"s.
        prior: probability that the untrained head gives each class, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range, or a loaded state that this cannot have had.

    An object of class 1 with all p = 0.5: three binary problems of -ln 0.5, all weights 1 in the
    first step. It pushes class 1 up and class 2 down by 0.5 each:

    >>> from frcnn.losses.examples import few_samples
    >>> loss, batch = EqualizationV2(), few_samples([1], logits=[[0, 0, 0]])
    >>> _, batch.training = loss.prepare(3), True
    >>> loss(batch), loss.pushed_up.tolist(), loss.pushed_down.tolist()
    (tensor([2.0794]), [0.5, 0.0], [0.0, 0.5])

    Class 2 was only pushed down, so its positives weigh 5 and its negatives nearly nothing now.
    """

    pushed_up: Tensor
    pushed_down: Tensor
    unfit = {"rpn": "it compares rare and common classes, and the RPN knows one class"}

    def __init__(
        self,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        per: Per = "sample",
        guided_scale: float = 1.0,
        prior: float | None = 0.001,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_above_zero("gamma", gamma)
        check_not_negative("alpha", alpha)
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        for name in ("pushed_up", "pushed_down"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))
        self.register_load_state_dict_post_hook(check_counters)

    def forward(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights; in training the sums grow, for later steps."""
        logits = samples.logits
        targets = F.one_hot(samples.labels, logits.shape[1]).to(logits)
        positive, negative = self.class_weights().to(logits)
        weights = torch.where(targets > 0, positive, negative)
        if samples.training:
            self._record(samples, weights * (logits.sigmoid() - targets).abs(), targets)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (weights * loss).sum(1)

    def class_weights(self) -> Tensor:
        """[2, C+1] weights of positives and of negatives, background first."""
        ratio = self.pushed_up / self.pushed_down
        ratio = torch.where(self.pushed_down > 0, ratio, FIRST_RATIO)
        negative = (self.gamma * (ratio - self.mu)).sigmoid()
        positive = 1 + self.alpha * (1 - negative)
        return F.pad(torch.stack([positive, negative]), (1, 0), value=1.0)

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] scores: sigmoids, those of objects times ``1 - p_0``."""
        wide = widened(logits)
        objects = wide[:, 1:].sigmoid() * (-wide[:, :1]).sigmoid()
        return torch.cat([wide[:, :1].sigmoid(), objects], 1)

    def prepare(self, columns: int) -> None:
        """Make a sum for each class."""
        self.pushed_up, self.pushed_down = torch.zeros(2, columns - 1, dtype=torch.float64)

    def initial_bias(self, columns: int) -> Tensor | None:
        """[C+1] for ``prior``."""
        return sigmoid_bias(self.prior, columns)

    @torch.no_grad()
    def _record(self, samples: Samples, gradients: Tensor, targets: Tensor) -> None:
        gradients = (samples.weights[:, None] * gradients)[:, 1:]
        own = targets[:, 1:]
        sums = torch.stack([(gradients * own).sum(0), (gradients * (1 - own)).sum(0)])
        up, down = finite_or_zero(samples.total(sums)).to(self.pushed_up)
        self.pushed_up, self.pushed_down = self.pushed_up + up, self.pushed_down + down
