"""What losses over rankings share: the pairs of a batch, and gradients that are errors.

Such a loss compares the logits of positives with those of negatives. "Negatives" are logits here:
those of background samples, and those of a positive's other classes. Each process ranks the logits
of all processes and gives the errors of its own samples.

Shape letters: K samples, C object classes, P positives of this process, Q of all processes, M
negatives of all processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frcnn.losses.activation import SigmoidLoss, binary
from frcnn.losses.samples import Per, Samples
from samplers.arguments import check_above_zero

LARGEST = 2**22  # elements of a table of positives and negatives that is made at once


class RankingLoss(SigmoidLoss):
    """A class loss over rankings.

    Args:
        delta: half the width of the step from "below" to "above", in logits, > 0.
        per, guided_scale, prior: as for ``QualityFocal``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        delta: float = 0.5,
        per: Per = "positive",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_above_zero("delta", delta)
        self.delta = delta


@dataclass
class Ranked:
    """The logits of a batch, without gradient.

    Attributes:
        positives: [Q] logit of the label's class.
        about_box: [Q] what the loss knows of the box: its quality, or its error; see ``ranked``.
        negatives: [M] logits that can stand above a positive.
        own_positives, own_negatives: those of this process.
        near: [K, C] bool, the places of this process's negatives.
    """

    positives: Tensor
    about_box: Tensor
    negatives: Tensor
    own_positives: slice
    own_negatives: slice
    near: Tensor


@torch.no_grad()
def ranked(samples: Samples, delta: float, about_box: Tensor | None = None) -> Ranked:
    """The logits to rank; a negative ``delta`` or more below every positive has no error.

    Args:
        about_box: [P] of this process, for ``Ranked.about_box``; None = 0.
    """
    logits, targets = binary(samples)
    own = logits[samples.positive, samples.labels[samples.positive] - 1]
    about_box = torch.zeros_like(own) if about_box is None else about_box.to(own)
    pairs, own_positives = samples.gather(torch.stack([own, about_box], 1))
    lowest = pairs[:, 0].amin() - delta if len(pairs) else torch.inf
    near = (targets == 0) & ~(logits <= lowest)  # NaN is near, so that it shows
    negatives, own_negatives = samples.gather(logits[near])
    return Ranked(pairs[:, 0], pairs[:, 1], negatives, own_positives, own_negatives, near)


def above(others: Tensor, logits: Tensor, delta: float) -> Tensor:
    """[A], [B] -> [B, A] in [0, 1]: is A above B? A step that is linear within ``delta``.

    RS loss, arXiv 2107.11669, eq. 5; a logit compared with itself gives 0.5.
    """
    return ((others[None] - logits[:, None]) / (2 * delta) + 0.5).clamp(0, 1)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``rows`` whose table with ``columns`` has at most ``LARGEST`` elements."""
    step = max(1, LARGEST // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def placed(found: Ranked, samples: Samples, positives: Tensor, negatives: Tensor) -> Tensor:
    """[Q] and [M] numbers -> [K, C], those of this process at the places of their logits."""
    table = positives.new_zeros(found.near.shape)
    labels = samples.labels[samples.positive]
    table[samples.positive, labels - 1] = positives[found.own_positives]
    table[found.near] = negatives[found.own_negatives]
    return table


def with_gradient(values: Tensor, samples: Samples, gradient: Tensor) -> Tensor:
    """[K] values whose sum has this [K, C] gradient with respect to the logits."""
    moved = (samples.logits[:, 1:] * gradient).sum(1)
    return values + (moved - moved.detach())
