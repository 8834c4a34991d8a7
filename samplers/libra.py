"""Balanced sampling (Libra R-CNN, Pang et al., CVPR 2019, arXiv 1904.02701, sec. 3.1)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from samplers.arguments import check_at_least_one, check_budget, check_choice, check_share
from samplers.candidates import Candidates
from samplers.quota import pick_per_row, quotas, rank_within, take_quota
from samplers.random import noise

Edges = Literal["negative_range", "max_overlap"]


class IoUBalanced:
    """Negatives evenly over bins of IoU; positives at random.

    The N negatives of an image are drawn N/K from each of K equal bins, so that a negative of bin
    k, which holds M_k, is drawn with probability N/K / M_k (eq. 2). If a bin has too few, random
    negatives fill up.

    Differs from the released code. There the bins extend to the largest IoU of the image, which is
    1 if the objects are among the proposals, so that the last bin is always empty
    (``edges="max_overlap"``). Its first call also changes its own threshold: from the second call
    on, a negative of IoU 0 is drawn only if the others are too few (add ``floor=0.0``). This class
    keeps no state between calls.

    Budget 3 and three bins take one negative of each bin, [0, 1/6), [1/6, 1/3) and [1/3, 1/2):

    >>> from samplers.examples import one_image
    >>> candidates = one_image(labels=[0] * 6, ious=[0.05, 0.05, 0.05, 0.05, 0.2, 0.4])
    >>> weights = IoUBalanced(3, 0.0, negative_iou=0.5)(candidates)
    >>> weights[:4].sum().item(), weights[4].item(), weights[5].item()
    (1.0, 1.0, 1.0)

    Args:
        batch_size_per_image: B, at least 1.
        positive_fraction: in [0, 1].
        negative_iou: IoU below which a candidate is background, in [0, 1]; the upper end of the
            paper's bins.
        num_bins: K, at least 1; 1 is random sampling. Released: 3.
        edges: "negative_range" (paper) or "max_overlap" (released).
        floor: IoU where the bins begin, in [0, negative_iou). Negatives of IoU <= floor are in no
            bin and are drawn only if those above it are too few. None = bins from 0 that hold all
            negatives.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size_per_image: int,
        positive_fraction: float,
        negative_iou: float,
        num_bins: int = 3,
        edges: Edges = "negative_range",
        floor: float | None = None,
    ) -> None:
        check_budget(batch_size_per_image, positive_fraction)
        check_share("negative_iou", negative_iou)
        check_at_least_one("num_bins", num_bins)
        check_choice("edges", edges, get_args(Edges))
        if floor is not None and not 0 <= floor < negative_iou:
            raise ValueError(f"floor must be null or in [0, {negative_iou}), got {floor}")
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.negative_iou = negative_iou
        self.num_bins = num_bins
        self.edges = edges
        self.floor = floor

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        return self.sample(candidates, noise(candidates), balance_positives=False)

    def sample(self, candidates: Candidates, random_key: Tensor, balance_positives: bool) -> Tensor:
        """[N] weights; a higher ``random_key`` [N] in [0, 1) is drawn first within its tier."""
        budget = self.batch_size_per_image, self.positive_fraction
        positives, negatives = quotas(candidates, *budget)
        tier = self._negative_tier(candidates, random_key, negatives)
        if balance_positives:
            tier += instance_tier(candidates, random_key, positives)
        return take_quota(candidates, tier + random_key, *budget)

    def _negative_tier(self, candidates: Candidates, random_key: Tensor, quota: Tensor) -> Tensor:
        """[N] the tier of each negative; higher tiers are drawn first. 0 for all others.

        1: in the share of its bin. 0: above the floor, to fill up at random. -1: at or below the
        floor.
        """
        above = candidates.negative
        if self.floor is not None:
            above = above & (candidates.ious.float() > self.floor)
        in_share = self._share_of_bins(candidates, random_key, above, quota // self.num_bins)
        return in_share.float() - (candidates.negative & ~above).float()

    def _share_of_bins(
        self, candidates: Candidates, random_key: Tensor, mask: Tensor, share: Tensor
    ) -> Tensor:
        """[N] bool: the ``share`` [I] highest keys of each bin of an image, within the mask."""
        own_bin = candidates.pad_by_image(self._bin(candidates).masked_fill(~mask, -1), -1)
        keys = candidates.pad_by_image(random_key)
        bins = torch.arange(self.num_bins, device=random_key.device)
        in_bin = own_bin[:, None, :] == bins[:, None]  # [I, K, M]
        table = torch.where(in_bin, keys[:, None, :], -torch.inf)
        quota = share[:, None].expand(-1, self.num_bins)
        return candidates.unpad(pick_per_row(table, quota, self.batch_size_per_image).any(1))

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

    N positives are drawn per image; each of its G objects that have a positive gets N/G of them.
    If an object has too few, random positives fill up. Differs from the released code: that takes
    ``round(N/G) + 1`` per object and then drops some at random, and its filling may draw a positive
    twice, so that it returns fewer than N.

    Two positives for two objects, so one each, although object 0 has three candidates:

    >>> from samplers.examples import one_image
    >>> candidates = one_image(labels=[1, 1, 1, 1, 0, 0], gt=[0, 0, 0, 1, 0, 0],
    ...                        gt_boxes=[[0, 0, 10, 10], [50, 0, 60, 10]])
    >>> weights = InstanceBalanced(4, 0.5)(candidates)
    >>> weights[:3].sum().item(), weights[3:].tolist()
    (1.0, [1.0, 1.0, 1.0])

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
        random_key = noise(candidates)
        tier = instance_tier(candidates, random_key, quotas(candidates, *budget)[0])
        return take_quota(candidates, tier + random_key, *budget)


class Libra(IoUBalanced):
    """Both: positives evenly over objects, negatives evenly over bins of IoU.

    Budget 4, half positive: one positive per object, one negative per bin:

    >>> from samplers.examples import one_image
    >>> candidates = one_image(labels=[1, 1, 1, 0, 0, 0], gt=[0, 0, 1, 0, 0, 0],
    ...                        gt_boxes=[[0, 0, 10, 10], [50, 0, 60, 10]],
    ...                        ious=[0.9, 0.8, 0.7, 0.1, 0.1, 0.3])
    >>> weights = Libra(4, 0.5, negative_iou=0.5, num_bins=2)(candidates)
    >>> weights[:2].sum().item(), weights[2].item(), weights[3:5].sum().item(), weights[5].item()
    (1.0, 1.0, 1.0, 1.0)
    """

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        return self.sample(candidates, noise(candidates), balance_positives=True)


def instance_tier(candidates: Candidates, random_key: Tensor, quota: Tensor) -> Tensor:
    """[N] 1 for the positives within the equal share of their object, else 0.

    Args:
        random_key: [N] in [0, 1); the highest of an object are its share.
        quota: [I] how many positives are drawn per image.
    """
    rank = rank_within(candidates.gt, random_key, len(candidates.gt_boxes), candidates.positive)
    first = candidates.positive & (rank == 0)
    num_objects = candidates.pad_by_image(first).sum(1)
    share = (quota // num_objects.clamp(min=1)).clamp(min=1)
    return (candidates.positive & (rank < share[candidates.image])).float()
