"""Prime sample attention (PISA, Cao et al., CVPR 2020, arXiv 1904.04821).

Shape letters beside those of ``Candidates``: P drawn positives, Q positives of all processes,
M predicted negatives.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from samplers.arguments import (
    check_budget,
    check_choice,
    check_iou_threshold,
    check_not_negative,
    check_share,
)
from samplers.candidates import Candidates
from samplers.host import ask_rows
from samplers.iou import iou, share_inside
from samplers.local_rank import hierarchical_local_rank, score_hlr
from samplers.quota import count, quotas, rank_within, take_quota
from samplers.random import shuffled

RankScale = Literal["n_max", "n_j"]
# A weight that underflows to 0 would take its sample out of the batch.
SMALLEST_WEIGHT = 1e-12


class PISA:
    """Negatives by their score, and more weight on the samples that matter most for precision.

    Hierarchical local rank (HLR) orders samples within local groups, then ranks the first of all
    groups, the second of all groups, and so on:

    * IoU-HLR of positives: a group is an object, ordered by the IoU of the *decoded* box; ranks
      count within a class, over the batch.
    * Score-HLR of negatives: a group is what greedy NMS of the decoded boxes would merge, ordered
      by the highest foreground probability s; ranks count within an image. It chooses the
      negatives; those of s <= ``score_threshold`` only fill up, at random.

    ISR turns rank r of n into the weight ``w = ((1 - beta) u + beta)^gamma, u = (n - r) / n``. It
    scales w so that the total class loss does not change: ``w' = w sum(CE) / sum(w CE)``, over the
    positives of the batch (ISR-P) and over the negatives of an image (ISR-N). Positives are drawn
    at random. CARL, from the same paper, is a loss and not part of this sampler.

    As released (mmdetection), n of the positives is the size of the largest class, for all classes;
    arXiv v1 takes the size of each class (``rank_scale="n_j"``). For negatives, n is the number of
    ranked ones in the image or the number needed, whichever is larger; negatives that fill up weigh
    as much as the last ranked one (both as released).

    Differs from the released code: that gives objects of three or more images the same number, so
    that IoU-HLR merges some; here they are numbered over the batch. With random negatives
    (``score_hlr=False``) ISR-N ranks the drawn ones; the released code has no such choice. Ranks, n
    and total of ISR-P are over all processes; there, over one GPU.

    The totals are those of the preview. A class loss that looks at its batch
    (``class_weights="batch"``, GHM-C) sees only the drawn samples in training, with their weights,
    so its total does change. The preview runs a head with BatchNorm or dropout in eval mode; the
    released ISR-P reads the logits of the training pass.

    Positives 0 and 1 cover their object with IoU 0.9 and 0.8: u = 1 and 1/2, times 2 / 1.5.
    Negatives 2 and 3 form one cluster, row 4 another; the first of each are taken: u = 1 and 2/3,
    times 2 / (5/3):

    >>> from samplers.examples import one_image
    >>> boxes = [[0, 0, 10, 9], [0, 0, 10, 8], [50, 0, 60, 10], [50, 0, 60, 9], [90, 0, 99, 9]]
    >>> candidates = one_image([1, 1, 0, 0, 0], scores=[0.5, 0.5, 0.9, 0.8, 0.6], boxes=boxes)
    >>> weights = PISA(4, 0.5, gamma_p=1, gamma_n=1)(candidates)
    >>> print([round(weight, 2) for weight in weights.tolist()])
    [1.33, 0.67, 1.2, 0.0, 0.8]

    Args:
        batch_size_per_image: B, at least 1; None = every candidate that is not ignored, with
            ``score_hlr=False`` (the paper's one-stage form: ISR-P on all anchors).
        positive_fraction: in [0, 1].
        score_hlr: choose negatives by Score-HLR; False = at random.
        isr_p: weigh the positives; False = weight 1.
        isr_n: weigh the negatives; False = weight 1.
        gamma_p: exponent for the positives, >= 0. Released: 2.
        gamma_n: exponent for the negatives, >= 0. Released: 0.5.
        beta_p: importance of the last positive relative to the first, before the exponent, in
            [0, 1]; 1 = all equal. Released: 0.
        beta_n: the same for the negatives. Released: 0.
        rank_scale: "n_max" or "n_j".
        score_threshold: in [0, 1]; useful only if well above 1 / (C + 1), the score that an
            untrained head gives every class. Released: 0.05, for 80 classes.
        cluster_iou: IoU above which NMS merges, in (0, 1]. Released: 0.5.
        inside: exponent a of IoU-HLR by ``IoU e^a``, e the share of the decoded box that lies in
            its object. 0 is the paper's. Above 0, of two boxes of one IoU the one inside its
            object is first ("effective prime samples"); at a given IoU that is the smaller one.
            Below 0 the larger one is first: the control.

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: on call, if a prediction is not finite.
    """

    def __init__(
        self,
        batch_size_per_image: int | None,
        positive_fraction: float,
        score_hlr: bool = True,
        isr_p: bool = True,
        isr_n: bool = True,
        gamma_p: float = 2.0,
        gamma_n: float = 0.5,
        beta_p: float = 0.0,
        beta_n: float = 0.0,
        rank_scale: RankScale = "n_max",
        score_threshold: float = 0.05,
        cluster_iou: float = 0.5,
        inside: float = 0.0,
    ) -> None:
        if batch_size_per_image is None and score_hlr:
            raise ValueError("score_hlr needs a batch_size_per_image")
        budget = 1 if batch_size_per_image is None else batch_size_per_image
        check_budget(budget, positive_fraction)
        check_not_negative("gamma_p", gamma_p)
        check_not_negative("gamma_n", gamma_n)
        check_share("beta_p", beta_p)
        check_share("beta_n", beta_n)
        check_choice("rank_scale", rank_scale, get_args(RankScale))
        check_share("score_threshold", score_threshold)
        check_iou_threshold("cluster_iou", cluster_iou)
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.score_hlr = score_hlr
        self.isr_p = isr_p
        self.isr_n = isr_n
        self.gamma_p = gamma_p
        self.gamma_n = gamma_n
        self.beta_p = beta_p
        self.beta_n = beta_n
        self.rank_scale = rank_scale
        self.score_threshold = score_threshold
        self.cluster_iou = cluster_iou
        self.inside = inside

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 = not sampled."""
        random_key = shuffled(candidates)
        weights = self._drawn(candidates, random_key)
        if not (self.score_hlr or self.isr_p or self.isr_n):
            return weights
        positives, negatives = self._rows_to_predict(candidates, weights > 0)
        # One preview for both, and also without any row: the other processes wait for this one.
        seen = finite_predictions(candidates, torch.cat([positives, negatives]))
        p = len(positives)
        weights[positives] = self._isr_p(candidates, positives, seen.part(slice(0, p)))
        weights[negatives] = self._negatives(
            candidates, negatives, random_key[negatives], seen.part(slice(p, None))
        )
        return weights

    def _drawn(self, candidates: Candidates, random_key: Tensor) -> Tensor:
        """[N] 1 for the candidates drawn at random, or for all without a budget."""
        if self.batch_size_per_image is None:
            return (candidates.labels >= 0).float()
        return take_quota(candidates, random_key, self.batch_size_per_image, self.positive_fraction)

    def _rows_to_predict(self, candidates: Candidates, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [P] of the positives and [M] of the negatives whose prediction is needed."""
        positives = candidates.positive & drawn & self.isr_p
        negatives = candidates.negative & (self.score_hlr or self.isr_n)
        if not self.score_hlr:
            negatives &= drawn
        positive_rows, negative_rows = ask_rows(positives, negatives)()
        return positive_rows, negative_rows

    def _isr_p(self, candidates: Candidates, rows: Tensor, seen: "Predictions") -> Tensor:
        """[P] weights of the drawn positives, ranked among the positives of all processes."""
        num_classes = seen.scores.shape[1]  # with the background, which has no positives
        positives, local_rows = gathered_positives(candidates, rows, seen, self.inside)
        rank = iou_hlr(positives, num_classes)
        class_sizes = count(positives.label, num_classes)
        own_size, largest = class_sizes[positives.label], class_sizes.max()
        n = own_size if self.rank_scale == "n_j" else largest
        weights = importance(rank, n, self.gamma_p, self.beta_p)
        one_group = torch.zeros_like(positives.label)
        return keep_total(weights, positives.loss, one_group, 1)[local_rows]

    def _negatives(
        self, candidates: Candidates, rows: Tensor, random_key: Tensor, seen: "Predictions"
    ) -> Tensor:
        """[M] weights of the negatives, 0 for those not picked."""
        image, num_images = candidates.image[rows], candidates.num_images
        num_needed = self._num_negatives(candidates, count(image, num_images))
        rank, num_ranked = self._rank_negatives(image, random_key, seen, num_needed)
        picked = (rank < num_needed[image]).float()
        if not self.isr_n:
            return picked
        # Those that fill up weigh as much as the last ranked one.
        last_ranked = (num_ranked - 1).clamp(min=0)[image]
        n = num_ranked.maximum(num_needed).clamp(min=1)[image]
        weights = picked * importance(rank.minimum(last_ranked), n, self.gamma_n, self.beta_n)
        return keep_total(weights, picked * seen.loss, image, num_images)

    def _num_negatives(self, candidates: Candidates, available: Tensor) -> Tensor:
        """[I] negatives that each image keeps, of the [I] available ones."""
        if self.batch_size_per_image is None:
            return available
        _, quota = quotas(candidates, self.batch_size_per_image, self.positive_fraction)
        return quota.minimum(available)

    def _rank_negatives(
        self, image: Tensor, random_key: Tensor, seen: "Predictions", num_needed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[M] rank in the image, exact below ``num_needed`` [I], and [I] number by Score-HLR.

        First the negatives above the score threshold by Score-HLR, then the others by random key.
        """
        score = seen.scores[:, 1:].amax(1)
        above = score > self.score_threshold
        num_above = torch.zeros_like(num_needed).scatter_add_(0, image, above.long())
        by_score = score_hlr(seen.boxes, score, image, above, num_needed, self.cluster_iou)
        at_random = rank_within(image, random_key, len(num_needed), ~above)
        return torch.where(above, by_score, num_above[image] + at_random), num_above


class Predictions(NamedTuple):
    """What PISA reads of K predictions: [K, C+1] scores, [K, 4] decoded boxes, [K] class losses."""

    scores: Tensor
    boxes: Tensor
    loss: Tensor

    def part(self, rows: slice) -> "Predictions":
        """The predictions of some rows."""
        return Predictions(self.scores[rows], self.boxes[rows], self.loss[rows])


class Positives(NamedTuple):
    """Positives of all processes.

    Attributes:
        gt: [Q] number of the object, over all processes.
        label: [Q] 1..C.
        iou: [Q] IoU of the decoded box with the object, times e^``inside``.
        loss: [Q] class loss.
        num_objects: number of objects of all processes.
    """

    gt: Tensor
    label: Tensor
    iou: Tensor
    loss: Tensor
    num_objects: int


def finite_predictions(candidates: Candidates, rows: Tensor) -> Predictions:
    """The float32 predictions of some candidates.

    Raises:
        FloatingPointError: a prediction is not finite, so that nothing can be ranked by it; see
            ``Candidates.require``.
    """
    prediction = candidates.predict(rows)
    scores, boxes, loss = (
        getattr(prediction, name).float() for name in ("scores", "boxes", "class_loss")
    )
    # A sum is finite only if every term is, in one pass. A float32 sum may overflow by itself.
    sums = [values.sum(dtype=torch.float64) for values in (scores, boxes, loss)]
    candidates.require(torch.stack(sums).isfinite().all())
    return Predictions(scores, boxes, loss)


def gathered_positives(
    candidates: Candidates, rows: Tensor, seen: Predictions, inside: float = 0.0
) -> tuple[Positives, slice]:
    """The drawn positives of all processes, and the slice [P] of this process's own."""
    objects, local_objects = candidates.gather(candidates.gt_boxes)
    gt, label = candidates.gt[rows], candidates.labels[rows]
    boxes, own_objects = seen.boxes.T, candidates.gt_boxes[gt].float().T
    overlap = iou(boxes, own_objects)
    if inside:
        # Not 0, which an exponent below 0 would make infinite.
        share = share_inside(boxes, own_objects).clamp(min=SMALLEST_WEIGHT)
        overlap = overlap * share**inside
    # One table, since each gather waits for all processes; float64 holds every column exactly.
    local = torch.stack([gt + local_objects.start, label, overlap, seen.loss], 1).double()
    gathered, local_rows = candidates.gather(local)
    gt, label = gathered[:, :2].long().T
    overlap, loss = gathered[:, 2:].float().T
    return Positives(gt, label, overlap, loss, len(objects)), local_rows


def importance(rank: Tensor, n: Tensor, gamma: float, beta: float) -> Tensor:
    """[K] weights in (0, 1] of ranks 0..n-1: ``((1 - beta) u + beta)^gamma, u = (n - r) / n``."""
    u = (n - rank).float() / n
    return ((1 - beta) * u + beta).pow(gamma).clamp(min=SMALLEST_WEIGHT)


def keep_total(weights: Tensor, loss: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """[K] weights scaled so that ``sum(w loss) = sum(loss)`` in each group.

    A group with zero loss is not rescaled.

    Args:
        weights, loss: [K] >= 0.
        group: [K] int64 in 0..num_groups-1.
    """
    loss = loss.double()  # a sum of float32 losses may overflow float32
    plain, weighted = (
        torch.zeros(num_groups, dtype=loss.dtype, device=loss.device).index_add_(0, group, value)
        for value in (loss, weights * loss)
    )
    return weights * torch.where(weighted > 0, plain / weighted, 1).float()[group]


def iou_hlr(positives: Positives, num_classes: int) -> Tensor:
    """[Q] rank of each positive in its class by IoU-HLR, the local groups being the objects."""
    order = positives.iou.argsort(descending=True, stable=True)
    gt, label = positives.gt[order], positives.label[order]
    rank = torch.empty_like(order)
    rank[order] = hierarchical_local_rank(gt, label, positives.num_objects, num_classes)
    return rank
