"""The two ways to read class logits, and the starting bias of each.

Shape letters: K samples, P positives, C foreground classes; column 0 of the logits is the
background's.
"""

import math

import torch
from torch import Tensor

from frcnn.losses.class_weights import ClassWeights, Counts, Scheme
from frcnn.losses.samples import CLASS_PER, Divided, Per, Samples, widened


def softmax_scores(logits: Tensor) -> Tensor:
    """[K, C+1] logits -> [K, C+1] probabilities that sum to 1."""
    return widened(logits).softmax(-1)


def sigmoid_scores(logits: Tensor) -> Tensor:
    """[K, C+1] logits -> [K, C+1] scores in [0, 1]: each class by itself, column 0 unread.

    Background gets what the likeliest class leaves.
    """
    classes = widened(logits)[:, 1:].sigmoid()
    return torch.cat([1 - classes.amax(1, keepdim=True), classes], 1)


class PriorLoss(Divided):
    """A class loss with scores that the untrained head shall give.

    Args:
        per, guided_scale: see ``Divided``.
        prior: the scores, in (0, 1); None = keep the layer's own initialization.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, per: Per, guided_scale: float, prior: float | None) -> None:
        super().__init__(per, CLASS_PER, guided_scale)
        if prior is not None and not 0 < prior < 1:
            raise ValueError(f"prior must be above 0 and below 1, got {prior}")
        self.prior = prior


class SoftmaxLoss(PriorLoss):
    """What class losses over a softmax share: the arguments of ``CrossEntropy``."""

    def __init__(
        self,
        per: Per = "sample",
        guided_scale: float = 1.0,
        class_weights: Scheme = None,
        class_counts: Counts = None,
        effective_beta: float = 0.999,
        keep_scale: bool = False,
        prior: float | None = None,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        self.alpha = ClassWeights(class_weights, class_counts, effective_beta, keep_scale)

    def prepare(self, columns: int) -> None:
        """Raise ValueError if the class weights are of other classes."""
        self.alpha.check(columns)

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] probabilities that sum to 1."""
        return softmax_scores(logits)

    def initial_bias(self, columns: int) -> Tensor | None:
        """[C+1] for ``prior``."""
        return softmax_bias(self.prior, columns)


class SigmoidLoss(PriorLoss):
    """What class losses over C binary problems share."""

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] sigmoids, background what the likeliest class leaves."""
        return sigmoid_scores(logits)

    def initial_bias(self, columns: int) -> Tensor | None:
        """[C+1] for ``prior``."""
        return sigmoid_bias(self.prior, columns)


def binary(samples: Samples, first: int = 1) -> tuple[Tensor, Tensor]:
    """The binary problems of every sample: [K, C] logits and their [K, C] targets, 0 or 1.

    At the RPN, where the logits are ``[0, x]``, this is x against "object or not".

    Args:
        first: column of the first problem; 0 adds column 0, whose target is always 0.
    """
    logits = samples.logits[:, first:]
    classes = torch.arange(first, samples.logits.shape[1], device=logits.device)
    own = (samples.labels[:, None] == classes) & (classes > 0)
    return logits, own.to(logits.dtype)


def label_scores(samples: Samples) -> Tensor:
    """[P] scores of the positives' own classes, as inference reads them, with gradient."""
    scores = samples.scores(samples.logits[samples.positive])
    return scores.gather(1, samples.labels[samples.positive][:, None])[:, 0]


def softmax_bias(prior: float | None, columns: int) -> Tensor | None:
    """[C+1] bias with which zero features give objects a probability of ``prior`` in all."""
    if prior is None:
        return None
    bias = torch.zeros(columns)
    bias[0] = math.log(columns - 1) - log_odds(prior)
    return bias


def sigmoid_bias(prior: float | None, columns: int, first: int = 1) -> Tensor | None:
    """[C+1] bias with which zero features give every class the probability ``prior``.

    ``first`` is the first column that gets it, as in ``binary``.

    RetinaNet, arXiv 1708.02002, sec. 4.1: ``-log((1 - pi) / pi)``.
    """
    if prior is None:
        return None
    bias = torch.full((columns,), log_odds(prior))
    bias[:first] = 0
    return bias


def log_odds(prior: float) -> float:
    """The logit whose sigmoid is ``prior``."""
    return math.log(prior / (1 - prior))
