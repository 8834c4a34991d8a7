"""Rank & Sort loss (Oksuz et al., ICCV 2021, arXiv 2107.11669).

Shape letters: K samples, Q positives and M negatives of all processes; see ``ranking``.
"""

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from frcnn.losses.ranking import (
    Ranked,
    RankingLoss,
    above,
    blocks,
    placed,
    ranked,
    with_gradient,
)
from frcnn.losses.samples import BOX_PER, Divided, Per, Samples
from frcnn.losses.soft_targets import quality


class RankSort(RankingLoss):
    """Positives above negatives, and among positives the better boxes above the worse ones.

    ``h(x) = clamp(x / (2 delta) + 0.5, 0, 1)`` says whether one logit is above another. For the
    logit s of a positive with quality t (IoU of its box):

    - ranking error (eq. 4): the sum of h over the negatives, divided by that over all logits;
    - sorting error (eq. 6, 7): the mean of 1 - t over the positives above it, itself included,
      minus the same mean over those of them that are not worse than it.

    The loss is the sum of both, divided by the positives. Its gradient is not the derivative: the
    errors themselves move the logits (eq. 8, identity update). The positive goes up by its error;
    the negatives above it go down by its ranking error in all, the worse positives above it by
    its sorting error, each in proportion to h.

    The value of a sample is half of the errors of its pairs, so that the sum over the samples is
    the paper's loss, and a sampler that ranks by loss sees which negatives are above positives.

    A positive at 0 below a negative at 0.5, which is above it by h = 1: 1 / (1 + 0.5). Half of it
    is the positive's, half the negative's:

    >>> from frcnn.losses.examples import few_samples
    >>> box = [[0, 0, 10, 10]]
    >>> RankSort()(few_samples([1, 0], [[0, 0], [0, 0.5]], deltas=box, objects=box))
    tensor([0.3333, 0.3333])
    """

    def __call__(self, samples: Samples) -> Tensor:
        """[K] halves of the errors of each sample's pairs."""
        found = ranked(samples, self.delta, quality(samples)[samples.positive])
        up, down, negatives = self.errors(found)
        raised = placed(found, samples, up, torch.zeros_like(negatives))
        lowered = placed(found, samples, down, negatives)
        return with_gradient((raised + lowered).sum(1) / 2, samples, lowered - raised)

    def errors(self, found: Ranked) -> tuple[Tensor, Tensor, Tensor]:
        """How much each logit moves.

        Returns:
            [Q] the errors of each positive, by which it goes up; [Q] by which it goes down for
            others; [M] by which each negative goes down.
        """
        ones = torch.ones_like(found.negatives)
        return rank_and_sort(found, found.negatives, ones, self.delta)


@torch.no_grad()
def rank_and_sort(
    found: Ranked, negatives: Tensor, counts: Tensor, delta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``RankSort.errors`` of [B] logits that stand for ``counts`` negatives each.

    The third tensor is [B], for one negative of each. In a table ``h_...`` a row is a positive of
    the block, and a column another logit: 1 = it is above the positive.
    """
    logits, box_quality = found.positives, found.about_box
    up, down = torch.zeros(2, len(logits)).to(logits)
    pushed = torch.zeros_like(negatives)
    for block in blocks(len(logits), len(negatives) + len(logits)):
        h_negatives = above(negatives, logits[block], delta)
        h_positives = above(logits, logits[block], delta)
        num_negatives, num_positives = (h_negatives * counts).sum(1), h_positives.sum(1)
        rank = num_positives + num_negatives
        h_worse = h_positives * (box_quality < box_quality[block, None])
        h_better = h_positives - h_worse
        current_error = (h_positives * (1 - box_quality)).sum(1) / num_positives
        target_error = (h_better * (1 - box_quality)).sum(1) / h_better.sum(1)
        none = current_error - current_error  # 0, but NaN stays NaN, so that it shows
        sorting = torch.where(h_worse.any(1), (current_error - target_error).clamp(min=0), none)
        up[block] = num_negatives / rank + sorting
        pushed += (h_negatives / rank[:, None]).sum(0)
        share = h_worse / h_worse.sum(1).clamp(min=torch.finfo(h_worse.dtype).tiny)[:, None]
        down += (share * sorting[:, None]).sum(0)
    return up, down, pushed


class RankedGIoU(Divided):
    """``p (1 - GIoU)``, p the highest sigmoid of the positive's logits, without gradient.

    The box loss of Rank & Sort (sec. 4). Divided ``per="class_term"`` it is as large as the class
    term in value; the factor has no gradient.

    Args:
        per: as for ``SmoothL1``.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> batch = few_samples([1], deltas=[[0, 0, 10, 10]], objects=[[0, 0, 10, 5]])
    >>> RankedGIoU()(batch)  # sigmoid(0) times 1 - 0.5
    tensor([0.2500])
    """

    def __init__(self, per: Per = "class_term") -> None:
        super().__init__(per, BOX_PER)

    def __call__(self, samples: Samples) -> Tensor:
        """[P] weighted losses of the positives."""
        boxes = samples.decode(samples.deltas)
        scores = samples.logits.detach()[samples.positive, 1:].sigmoid().amax(1)
        return scores * generalized_box_iou_loss(boxes, samples.objects, reduction="none")
