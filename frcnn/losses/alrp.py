"""Average Localisation-Recall-Precision loss (Oksuz et al., NeurIPS 2020, arXiv 2009.13592).

Shape letters: K samples, P positives of this process, Q positives and M negatives of all processes;
see ``ranking``.
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
from samplers.arguments import check_above_zero

THRESHOLD = 0.5  # tau: localisation errors are over 1 - tau


class ALRP(RankingLoss):
    """The class part of aLRP: the share of negatives among what stands above each positive.

    With ``h(x) = clamp(x / (2 delta) + 0.5, 0, 1)``, rank(i) is 1 plus the sum of h over all other
    logits, and N(i) its part over the negatives. The loss of positive i is N(i) / rank(i) (eq. 9),
    divided by the positives. As in ``RankSort`` errors take the place of the derivative: i goes up
    by ``(N(i) + E(i)) / rank(i)``, E(i) the sum over the other positives above it of h times their
    localisation error, and the negatives above it go down by as much in all (sec. 3.3). A positive
    without any negative above it does not move.

    The localisation error is that of ``ALRPBox``, ``localisation_errors``, as in released code. An
    assigner's soft targets are not read.

    The value of a sample is half of the errors of its pairs; see ``RankSort``. ``box_loss=alrp``
    is the other part.

    Args:
        delta: as for ``RankSort``; the paper's is 1.
        per, guided_scale, prior: as for ``QualityFocal``.

    Raises:
        ValueError: an argument out of range.

    A positive at 0 and a negative at 1, above it by h = 1 with delta 1: 1 / 2 in all.

    >>> from frcnn.losses.examples import few_samples
    >>> box = [[0, 0, 10, 10]]
    >>> ALRP()(few_samples([1, 0], [[0, 0], [0, 1]], deltas=box, objects=box))
    tensor([0.2500, 0.2500])
    """

    def __init__(
        self,
        delta: float = 1.0,
        per: Per = "positive",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(delta, per, guided_scale, prior)

    def __call__(self, samples: Samples) -> Tensor:
        """[K] halves of the errors of each sample's pairs."""
        with torch.no_grad():
            errors = localisation_errors(samples)
        found = ranked(samples, self.delta, errors)
        positives, negatives, up, down = alrp_errors(found, self.delta)
        values = placed(found, samples, positives, negatives).sum(1) / 2
        return with_gradient(values, samples, placed(found, samples, -up, down))


@torch.no_grad()
def alrp_errors(found: Ranked, delta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[Q], [M] errors by positive and by negative, and [Q], [M] how much each logit moves.

    Args:
        found: ``about_box`` holds localisation errors.
    """
    logits, box_errors = found.positives, found.about_box
    errors, up = torch.zeros(2, len(logits)).to(logits)
    by_negative, down = torch.zeros(2, len(found.negatives)).to(logits)
    for block in blocks(len(logits), len(found.negatives) + len(logits)):
        h_negatives = above(found.negatives, logits[block], delta)
        h_positives = others_above(found, block, delta)
        num_negatives = h_negatives.sum(1)
        rank = 1 + h_positives.sum(1) + num_negatives
        errors[block] = num_negatives / rank
        with_boxes = (num_negatives + (h_positives * box_errors).sum(1)) / rank
        moved = torch.where(num_negatives > 0, with_boxes, errors[block])
        up[block] = moved
        by_negative += (h_negatives / rank[:, None]).sum(0)
        tiny = torch.finfo(h_negatives.dtype).tiny
        share = h_negatives / num_negatives.clamp(min=tiny)[:, None]
        down += (share * moved[:, None]).sum(0)
    return errors, by_negative, up, down


def others_above(found: Ranked, block: slice, delta: float) -> Tensor:
    """[B, Q] h of all positives above those of a block; 0 for a positive and itself."""
    h_positives = above(found.positives, found.positives[block], delta)
    rows = torch.arange(len(h_positives), device=h_positives.device)
    h_positives[rows, rows + block.start] *= 0  # NaN stays
    return h_positives


def localisation_errors(samples: Samples) -> Tensor:
    """[P] in [0, 2], with gradient: the paper's E_loc, ``(1 - GIoU) / (2 (1 - tau))``.

    It is 1 - GIoU at tau 0.5: 0 for a perfect box, 0.5 for a box whose IoU and GIoU are 0.5.
    """
    boxes = samples.decode(samples.deltas)
    loss = generalized_box_iou_loss(boxes, samples.objects, reduction="none")
    return loss / (2 * (1 - THRESHOLD))


class ALRPBox(Divided):
    """The box part of aLRP: GIoU losses, averaged over what stands above each positive.

    The loss of positive i is ``sum_k h_ik E(k) / rank(i)`` over the positives k above it and itself
    (eq. 8), with E of ``localisation_errors``; ranks as in ``ALRP`` and without gradient. So the
    box of k has the weight ``sum_i h_ik / rank(i)``: boxes of high score count more.

    Divided ``per="class_term"`` the term is as large as the class term in value, step by step.

    Differs from released code: there the term is multiplied by (class + box) / box, with means over
    an epoch, so it is as large as both together; and of two positives the higher one counts 1 and
    the lower one 0 in the sum over k, in place of h.

    Args:
        delta: as for ``ALRP``.
        per: as for ``SmoothL1``.

    Raises:
        ValueError: an argument out of range.

    One positive, rank 1, 1 - GIoU = 0.5, tau 0.5:

    >>> from frcnn.losses.examples import few_samples
    >>> ALRPBox()(few_samples([1], deltas=[[0, 0, 10, 10]], objects=[[0, 0, 10, 5]]))
    tensor([0.5000])
    """

    def __init__(self, delta: float = 1.0, per: Per = "class_term") -> None:
        super().__init__(per, BOX_PER)
        check_above_zero("delta", delta)
        self.delta = delta

    def __call__(self, samples: Samples) -> Tensor:
        """[P] weighted losses of the positives."""
        found = ranked(samples, self.delta)
        weights = box_weights(found, self.delta)[found.own_positives]
        return weights * localisation_errors(samples)


@torch.no_grad()
def box_weights(found: Ranked, delta: float) -> Tensor:
    """[Q] the sum over all positives of h / rank, of each positive as one that stands above."""
    weights = torch.zeros_like(found.positives)
    for block in blocks(len(weights), len(found.negatives) + len(weights)):
        h_positives = others_above(found, block, delta)
        h_negatives = above(found.negatives, found.positives[block], delta)
        rank = 1 + h_positives.sum(1) + h_negatives.sum(1)
        weights += (h_positives / rank[:, None]).sum(0)
        weights[block] += 1 / rank
    return weights
