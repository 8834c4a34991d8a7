"""Balanced sampling (Libra R-CNN, Pang et al., CVPR 2019, arXiv 1904.02701, sec. 3.1)."""

import torch
from torch import Tensor

from samplers.candidates import Candidates
from samplers.quota import check_budget, highest, quotas, rank_within, take_quota, top
from samplers.random import noise

EDGES = ("negative_range", "max_overlap")


class IoUBalanced:
    """Negatives evenly over bins of IoU; positives at random.

    The N negatives of an image are drawn N/K from each of K equal bins, so that a negative of bin
    k is drawn with probability N/K / M_k (eq. 2); what a bin is short of is filled at random.

    Differs from the released code: that spreads the bins up to the largest overlap of the image,
    1 wherever the objects are among the proposals, so that its last bin is always empty
    (``edges="max_overlap"``). It also changes its own threshold at its first call; from the second
    on, a negative of IoU 0 is drawn only where the others run out (``floor=0.0`` beside that).
    Here no state is kept between calls.

    Args:
        batch_size_per_image: B, at least 1.
        positive_fraction: in [0, 1].
        negative_iou: below this IoU a candidate is background; where the paper's bins end.
        num_bins: K, at least 1; 1 is random sampling. Released: 3.
        edges: "negative_range" (paper) or "max_overlap" (released).
        floor: None, or the IoU that the bins begin at; negatives of IoU <= floor stand aside.
        floor_fraction: the share of the negatives drawn from those aside, in [0, 1]; also the
            others run out before they are used for more.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size_per_image: int,
        positive_fraction: float,
        negative_iou: float,
        num_bins: int = 3,
        edges: str = "negative_range",
        floor: float | None = None,
        floor_fraction: float = 0.0,
    ) -> None:
        check_budget(batch_size_per_image, positive_fraction)
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, got {num_bins}")
        if edges not in EDGES:
            raise ValueError(f"edges must be one of {', '.join(EDGES)}, got {edges!r}")
        if not 0 <= floor_fraction <= 1:
            raise ValueError(f"floor_fraction must be between 0 and 1, got {floor_fraction}")
        if floor is not None and not 0 <= floor < negative_iou:
            raise ValueError(f"floor must be null or in [0, {negative_iou}), got {floor}")
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.negative_iou = negative_iou
        self.num_bins = num_bins
        self.edges = edges
        self.floor = floor
        self.floor_fraction = floor_fraction

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        return self.sample(candidates, noise(candidates), balance_positives=False)

    def sample(self, candidates: Candidates, chance: Tensor, balance_positives: bool) -> Tensor:
        """[N] weights; ``chance`` [N] in [0, 1) orders what is drawn at random."""
        budget = self.batch_size_per_image, self.positive_fraction
        positives, negatives = quotas(candidates, *budget)
        urgency = torch.where(candidates.negative, self._tier(candidates, chance, negatives), 0)
        if balance_positives:
            urgency += instance_tier(candidates, chance, positives)
        return take_quota(candidates, urgency + chance, *budget)

    def _tier(self, candidates: Candidates, chance: Tensor, negatives: Tensor) -> Tensor:
        """[N] 2 for the balanced draw above the floor, 1 for the floor's share, 0 for the fill."""
        low = -1.0 if self.floor is None else self.floor
        above = candidates.negative & (candidates.ious.float() > low)
        wanted = negatives
        if self.floor is not None:
            wanted = (negatives * (1 - self.floor_fraction)).long()
        share = (wanted // self.num_bins)[:, None].expand(-1, self.num_bins)
        bins = torch.arange(self.num_bins, device=chance.device)
        inside = candidates.by_image(self._bin(candidates).masked_fill(~above, -1), -1)[:, None]
        chances = candidates.by_image(chance)[:, None]
        spread = torch.where(inside == bins[:, None], chances, -torch.inf)
        most = self.batch_size_per_image
        balanced = candidates.stacked(highest(spread, share, most).any(1))
        # The balanced first, then the rest above the floor at random, up to what is wanted there.
        drawn = top(candidates, chance + balanced, above, wanted, most)
        return torch.where(drawn, 2.0, torch.where(candidates.negative & ~above, 1.0, 0.0))

    def _bin(self, candidates: Candidates) -> Tensor:
        """[N] the IoU bin of every candidate, 0..K-1."""
        low = self.floor or 0.0
        high = torch.full_like(candidates.ious, self.negative_iou, dtype=torch.float32)
        if self.edges == "max_overlap":
            largest = torch.zeros(candidates.num_images, device=high.device)
            largest.scatter_reduce_(0, candidates.image, candidates.ious.float(), "amax")
            high = largest[candidates.image]
        width = ((high - low) / self.num_bins).clamp(min=torch.finfo(torch.float32).tiny)
        return ((candidates.ious.float() - low) / width).long().clamp(0, self.num_bins - 1)


class InstanceBalanced:
    """Positives evenly over objects; negatives at random.

    Of N positives an object gets N/G, G being the objects of the image with a positive at all; what
    one is short of is filled at random. Differs from the released code: that takes
    ``round(N/G) + 1`` and then drops at random, and its fill draws what it has already, so that it
    returns fewer than N.

    Args:
        batch_size_per_image: B, at least 1.
        positive_fraction: in [0, 1].

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        check_budget(batch_size_per_image, positive_fraction)
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        budget = self.batch_size_per_image, self.positive_fraction
        chance = noise(candidates)
        tier = instance_tier(candidates, chance, quotas(candidates, *budget)[0])
        return take_quota(candidates, tier + chance, *budget)


class Libra(IoUBalanced):
    """Both: positives evenly over objects, negatives evenly over bins of IoU."""

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        return self.sample(candidates, noise(candidates), balance_positives=True)


def instance_tier(candidates: Candidates, chance: Tensor, positives: Tensor) -> Tensor:
    """[N] 1 for the share of its object that each positive object gets, else 0.

    Args:
        chance: [N] in [0, 1), the order of the draw.
        positives: [I] how many are drawn in each image.
    """
    rank = rank_within(candidates.gt, chance, len(candidates.gt_boxes), candidates.positive)
    first = candidates.positive & (rank == 0)
    covered = candidates.by_image(first).sum(1)
    share = (positives // covered.clamp(min=1)).clamp(min=1)
    return (candidates.positive & (rank < share[candidates.image])).float()
