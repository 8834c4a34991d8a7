"""Focal loss in its three forms (RetinaNet, arXiv 1708.02002).

Shape letters: K samples, C foreground classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.activation import SigmoidLoss, SoftmaxLoss, binary, sigmoid_bias
from frcnn.losses.class_weights import Counts, Scheme
from frcnn.losses.samples import Per, Samples
from samplers.arguments import check_above_zero, check_not_negative


class Focal(SoftmaxLoss):
    """Over a softmax with background as a class: ``-alpha_y (1 - q)^gamma log q``, q = softmax[y].

    Equation 5 with the probability of the label in place of p_t; the paper has the sigmoid form
    only. At the RPN, whose logits are ``[0, x]``, both are the same.

    Args:
        gamma: exponent that reduces the loss of well-classified examples, >= 0; 0 = cross entropy.
        per, guided_scale, class_weights, class_counts, effective_beta, keep_scale, prior: as for
            ``CrossEntropy``.

    Raises:
        ValueError: an argument out of range, or counts that are needed and missing.

    >>> from frcnn.losses.examples import few_samples
    >>> Focal(gamma=2)(few_samples([1, 0]))  # 0.5^2 * -ln 0.5
    tensor([0.1733, 0.1733])
    """

    def __init__(
        self,
        gamma: float = 2.0,
        per: Per = "sample",
        guided_scale: float = 1.0,
        class_weights: Scheme = None,
        class_counts: Counts = None,
        effective_beta: float = 0.999,
        keep_scale: bool = False,
        prior: float | None = None,
    ) -> None:
        super().__init__(
            per, guided_scale, class_weights, class_counts, effective_beta, keep_scale, prior
        )
        check_not_negative("gamma", gamma)
        self.gamma = gamma

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        log_q = -F.cross_entropy(samples.logits, samples.labels, reduction="none")
        return self.alpha(samples) * power(-log_q.expm1(), self.gamma) * -log_q


class FocalSigmoid(SigmoidLoss):
    """RetinaNet's: ``-alpha_t (1 - p_t)^gamma log p_t`` (eq. 5), summed over C binary problems.

    p_t is sigmoid(x) for the class of the label, 1 - sigmoid(x) for every other. For background
    every class counts as "other". Meant for all candidates: with a sampler before it, negatives are
    thinned out twice.

    Args:
        gamma: exponent that reduces the loss of well-classified examples, >= 0.
        alpha: weight of the label's class in [0, 1], the others' is 1 - alpha; None = 1 for both.
        per, guided_scale: as for ``CrossEntropy``; the paper divides by "positive"s.
        prior: probability that the untrained head gives each class, in (0, 1); None = keep the
            layer's own initialization.
        background_column: train column 0 as a class that no sample has, as torchvision's RetinaNet
            does; not at the RPN, which has no such column.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> FocalSigmoid()(few_samples([1, 0]))  # 0.25 and 0.75 times 0.5^2 * -ln 0.5
    tensor([0.0433, 0.1300])
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | None = 0.25,
        per: Per = "positive",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
        background_column: bool = False,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_not_negative("gamma", gamma)
        check_alpha(alpha)
        self.gamma, self.alpha = gamma, alpha
        self.first_column = 0 if background_column else 1
        self.unfit = {"rpn": "it has no background column"} if background_column else {}

    def initial_bias(self, columns: int) -> Tensor | None:
        """[C+1] for ``prior``."""
        return sigmoid_bias(self.prior, columns, self.first_column)

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples, self.first_column)
        right = signed(logits, targets)
        loss = power((-right).sigmoid(), self.gamma) * -F.logsigmoid(right)
        return (alpha_t(targets, self.alpha) * loss).sum(1)


class FocalStar(SigmoidLoss):
    """FL* (appendix A): ``-alpha_t log sigmoid(gamma x_t + beta) / gamma``, x_t = x or -x.

    Inference reads sigmoid(x): gamma and beta shape the loss alone.

    Args:
        gamma: steepness, > 0.
        beta: shift; above 0 it lowers the loss of examples that are already right.
        alpha, per, guided_scale, prior: as for ``FocalSigmoid``; the appendix has no alpha.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> FocalStar(gamma=2, beta=0)(few_samples([1, 0]))  # -ln 0.5 / 2
    tensor([0.3466, 0.3466])
    """

    def __init__(
        self,
        gamma: float = 2.0,
        beta: float = 1.0,
        alpha: float | None = None,
        per: Per = "positive",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_above_zero("gamma", gamma)
        check_alpha(alpha)
        self.gamma, self.beta, self.alpha = gamma, beta, alpha

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples)
        shifted = self.gamma * signed(logits, targets) + self.beta
        return (alpha_t(targets, self.alpha) * -F.logsigmoid(shifted) / self.gamma).sum(1)


def signed(logits: Tensor, targets: Tensor) -> Tensor:
    """[K, C] logits and targets -> [K, C] x_t: x where the target is 1, -x where it is 0."""
    return torch.where(targets > 0, logits, -logits)


def alpha_t(targets: Tensor, alpha: float | None) -> Tensor:
    """[K, C] targets -> [K, C] alpha where the target is 1, 1 - alpha where it is 0.

    Without an alpha it is 1.
    """
    if alpha is None:
        return torch.ones_like(targets)
    return alpha * targets + (1 - alpha) * (1 - targets)


def power(wrong: Tensor, gamma: float) -> Tensor:
    """[...] values in [0, 1] -> [...] ``wrong^gamma``.

    For a gamma below 1 the slope at 0 would be infinite, so 0 counts as the smallest number.
    """
    return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** gamma


def check_alpha(alpha: float | None, name: str = "alpha") -> None:
    """Raise ValueError unless alpha is None or in [0, 1]."""
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"{name} must be in [0, 1] or null, got {alpha}")
