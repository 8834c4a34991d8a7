"""Prime sample attention (PISA, Cao et al., CVPR 2020, arXiv 1904.04821).

Shape letters beside those of ``Candidates``: P positives drawn, M negatives looked at.
"""

import torch
from torch import Tensor

from samplers.candidates import Candidates
from samplers.clusters import iou, local_clusters, starts
from samplers.quota import check_budget, count, quotas, rank_within, take_quota
from samplers.random import shuffled

RANK_SCALES = ("n_max", "n_j")
# A weight that underflows to 0 would take its sample out of the batch.
SMALLEST_WEIGHT = 1e-12


class PISA:
    """Negatives by their score, and more weight on the samples that decide the precision.

    Hierarchical local rank (HLR) orders samples within local groups, then the first of all groups,
    the second of all groups, ...:

    * IoU-HLR of positives: a group is an object, ordered by the IoU of the *decoded* box; a rank
      counts within a class, over the batch.
    * Score-HLR of negatives: a group is what greedy NMS of the decoded boxes would merge, ordered
      by the highest foreground probability s; a rank counts within an image. It chooses the
      negatives: those of s <= ``score_threshold`` only fill up, at random.

    ISR turns rank r of n into the weight ``w = ((1 - beta) u + beta)^gamma, u = (n - r) / n`` and
    scales it so that the class loss of its part stays what it was:
    ``w' = w sum(CE) / sum(w CE)``, over the positives of the batch (ISR-P), over the negatives of
    an image (ISR-N). Positives are drawn at random. The loss CARL of the same paper is a loss.

    As released (mmdetection) n is that of the largest class for all classes; arXiv v1 takes each
    class's own (``rank_scale="n_j"``). For negatives n is the ranked ones of
    the image or, where that is more, the negatives asked for; those that fill up weigh as much as
    the last ranked one (both as released).

    Differs from the released code: that numbers the objects of three or more images ambiguously,
    so that IoU-HLR merges some; here they are numbered over the batch. With random negatives
    (``score_hlr=False``) ISR-N ranks those drawn; the released code has no such choice. Ranks, n
    and total of ISR-P are those of all processes; there of one GPU.

    The totals are the preview's. In training a class loss that looks at its batch
    (``class_weights="batch"``, GHM-C) sees the drawn samples alone, and weighted, so that its total
    moves. A head with BatchNorm or dropout is previewed in eval mode; the released ISR-P reads the
    logits of the training pass.

    Args:
        batch_size_per_image: B, at least 1.
        positive_fraction: in [0, 1].
        score_hlr: choose negatives by Score-HLR; False = at random.
        isr_p: weigh the positives; False = weight 1.
        isr_n: weigh the negatives; False = weight 1.
        gamma_p: exponent for the positives, >= 0. Released: 2.
        gamma_n: exponent for the negatives, >= 0. Released: 0.5.
        beta_p: in [0, 1], what the last positive keeps of the first one's importance; 1 = none.
        beta_n: the same of the negatives. Released: both 0.
        rank_scale: "n_max" or "n_j".
        score_threshold: in [0, 1]; only meaningful well above 1 / (C + 1), what a head that knows
            nothing says of every class. Released: 0.05, for 80 classes.
        cluster_iou: IoU above which NMS merges, in (0, 1]. Released: 0.5.

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: on call, if a prediction is not finite.
    """

    def __init__(
        self,
        batch_size_per_image: int,
        positive_fraction: float,
        score_hlr: bool = True,
        isr_p: bool = True,
        isr_n: bool = True,
        gamma_p: float = 2.0,
        gamma_n: float = 0.5,
        beta_p: float = 0.0,
        beta_n: float = 0.0,
        rank_scale: str = "n_max",
        score_threshold: float = 0.05,
        cluster_iou: float = 0.5,
    ) -> None:
        check_budget(batch_size_per_image, positive_fraction)
        for name, gamma in (("gamma_p", gamma_p), ("gamma_n", gamma_n)):
            if not 0 <= gamma < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {gamma}")
        shares = {"beta_p": beta_p, "beta_n": beta_n, "score_threshold": score_threshold}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {share}")
        if rank_scale not in RANK_SCALES:
            raise ValueError(f"rank_scale must be {' or '.join(RANK_SCALES)}, got {rank_scale!r}")
        if not 0 < cluster_iou <= 1:
            raise ValueError(f"cluster_iou must be in (0, 1], got {cluster_iou}")
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

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 = not sampled."""
        chance = shuffled(candidates)
        weights = take_quota(candidates, chance, self.batch_size_per_image, self.positive_fraction)
        if not (self.score_hlr or self.isr_p or self.isr_n):
            return weights
        drawn = weights > 0
        positives = torch.where(candidates.positive & drawn & self.isr_p)[0]
        ranked = candidates.negative & (drawn | self.score_hlr) & (self.score_hlr or self.isr_n)
        negatives = torch.where(ranked)[0]
        rows = torch.cat([positives, negatives])
        # One look for both: at the RCNN head it is a pass of the head.
        probabilities, boxes, loss = look(candidates, rows)
        p = len(positives)
        weights[positives] = self._isr_p(
            candidates, positives, boxes[:p], loss[:p], probabilities.shape[1]
        )
        weights[negatives] = self._negatives(
            candidates, negatives, chance, probabilities[p:, 1:].amax(1), boxes[p:], loss[p:]
        )
        return weights

    def _isr_p(
        self, candidates: Candidates, rows: Tensor, boxes: Tensor, loss: Tensor, classes: int
    ) -> Tensor:
        """[P] weights of the drawn positives; ``classes`` counts the background.

        Ranks and total are those of the positives of all processes.
        """
        objects, own = candidates.gather(candidates.gt_boxes)
        gt, label = candidates.gt[rows], candidates.labels[rows]
        overlap = iou(boxes.T, candidates.gt_boxes[gt].float().T)
        known = torch.stack([gt + own.start, label, overlap, loss], 1).double()
        known, mine = candidates.gather(known)
        gt, label = known[:, :2].long().T
        overlap, loss = known[:, 2:].float().T
        order = overlap.argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = hierarchical_local_rank(gt[order], label[order], len(objects), classes)
        sizes = count(label, classes)
        n = sizes[label] if self.rank_scale == "n_j" else sizes.max()
        weights = importance(rank, n, self.gamma_p, self.beta_p)
        return keep_total(weights, loss, torch.zeros_like(label), 1)[mine]

    def _negatives(
        self,
        candidates: Candidates,
        rows: Tensor,
        chance: Tensor,
        scores: Tensor,
        boxes: Tensor,
        loss: Tensor,
    ) -> Tensor:
        """[M] weights of the negatives, 0 for those not picked; ``chance`` [N] orders the fill."""
        image, images = candidates.image[rows], candidates.num_images
        _, quota = quotas(candidates, self.batch_size_per_image, self.positive_fraction)
        asked = quota.minimum(count(image, images))
        valid = scores > self.score_threshold
        # Those above the threshold by Score-HLR, then the others in their random order.
        above, below = torch.where(valid)[0], torch.where(~valid)[0]
        ranked = count(image[above], images)
        rank = torch.empty_like(image)
        rank[above] = score_hlr(boxes[above], scores[above], image[above], asked, self.cluster_iou)
        order = rank_within(image[below], chance[rows[below]], images, below >= 0)
        rank[below] = ranked[image[below]] + order
        picked = (rank < asked[image]).float()
        if not self.isr_n:
            return picked
        last = (ranked - 1).clamp(min=0)[image]
        n = ranked.maximum(asked).clamp(min=1)[image]
        weights = picked * importance(rank.minimum(last), n, self.gamma_n, self.beta_n)
        return keep_total(weights, picked * loss, image, images)


def look(candidates: Candidates, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[K, C+1] scores, [K, 4] decoded boxes and [K] class losses of some candidates.

    Raises:
        FloatingPointError: one is not finite; nothing can be ranked by it.
    """
    prediction = candidates.predict(rows)
    seen = [getattr(prediction, key).float() for key in ("scores", "boxes", "class_loss")]
    # A sum shows in one pass whether all are finite; float32's would end at 3e38.
    if not torch.stack([part.sum(dtype=torch.float64) for part in seen]).isfinite().all():
        raise FloatingPointError("the prediction of a candidate is not finite")
    scores, boxes, loss = seen
    return scores, boxes, loss


def importance(rank: Tensor, n: Tensor, gamma: float, beta: float) -> Tensor:
    """[K] weights in (0, 1] of ranks 0..n-1: ``((1 - beta) u + beta)^gamma, u = (n - r) / n``."""
    u = (n - rank).float() / n
    return ((1 - beta) * u + beta).pow(gamma).clamp(min=SMALLEST_WEIGHT)


def keep_total(weights: Tensor, loss: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """[K] weights scaled so that in each group ``sum(w loss) = sum(loss)``.

    A group without any loss keeps its weights: there is nothing to be kept.

    Args:
        weights, loss: [K] >= 0.
        group: [K] int64 in 0..num_groups-1.
    """
    # In double: the sum of float32 losses may leave float32.
    loss = loss.double()
    plain, weighted = (
        torch.zeros(num_groups, dtype=loss.dtype, device=loss.device).index_add_(0, group, value)
        for value in (loss, weights * loss)
    )
    return weights * torch.where(weighted > 0, plain / weighted, 1).float()[group]


def hierarchical_local_rank(
    cluster: Tensor, pool: Tensor, num_clusters: int, num_pools: int
) -> Tensor:
    """[K] place of each element in its pool by (rank in its cluster, order given).

    Args:
        cluster: [K] int64 in 0..num_clusters-1, the elements coming best first.
        pool: [K] int64 in 0..num_pools-1, equal for the elements of a cluster.
    """
    local = nth(cluster, cluster, num_clusters)
    return nth(pool * len(pool) + local, pool, num_pools)


def nth(key: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """[K] place of each element in its group by rising key; equal keys keep their order.

    Args:
        key: [K] int64 that rises with the group.
        group: [K] int64 in 0..num_groups-1.
    """
    order = key.argsort(stable=True)
    place = torch.empty_like(order)
    there = torch.arange(len(order), device=order.device)
    place[order] = there - starts(group, num_groups)[group[order]]
    return place


def score_hlr(
    boxes: Tensor, scores: Tensor, image: Tensor, asked: Tensor, threshold: float
) -> Tensor:
    """[K] rank of each candidate in its image by Score-HLR; exact below ``asked``.

    Args:
        boxes: [K, 4] decoded, xyxy pixels.
        scores: [K] in [0, 1].
        image: [K] int64 in 0..I-1.
        asked: [I] how many ranks are needed of each image.
        threshold: IoU above which boxes belong to one cluster.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    image = image[order]
    cluster = local_clusters(boxes[order], image, asked, threshold)
    rank = torch.empty_like(order)
    rank[order] = hierarchical_local_rank(cluster, image, len(order), len(asked))
    return rank
