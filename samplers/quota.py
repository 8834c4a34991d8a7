"""The per-image budget that hard samplers share: B candidates, a fraction of them positive."""

import torch
from torch import Tensor

from samplers.candidates import Candidates


def check_budget(batch_size_per_image: int, positive_fraction: float) -> None:
    """Raise ValueError unless B >= 1 and the fraction lies in [0, 1]."""
    if batch_size_per_image < 1:
        raise ValueError(f"batch_size_per_image must be at least 1, got {batch_size_per_image}")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be between 0 and 1, got {positive_fraction}")


def rank_within(group: Tensor, priority: Tensor, num_groups: int) -> Tensor:
    """Rank every element inside its group by falling priority.

    Args:
        group: [N] int64 in 0..num_groups-1.
        priority: [N] float; equal priorities keep their order, so that ranks are reproducible.

    Returns:
        [N] int64, 0 = the highest priority of its group.
    """
    order = priority.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = count(group, num_groups)
    first = sizes.cumsum(0) - sizes
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - first[group[order]]
    return rank


def count(group: Tensor, num_groups: int) -> Tensor:
    """[num_groups] int64, the size of every group (``bincount`` without a host synchronisation)."""
    sizes = torch.zeros(num_groups, dtype=torch.int64, device=group.device)
    return sizes.scatter_add_(0, group, torch.ones_like(group))


def quotas(
    candidates: Candidates, batch_size_per_image: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """[I] positives and [I] negatives that the budget allows in each image.

    Positives that are missing are made up for by negatives.
    """
    there = count(candidates.image[candidates.positive], candidates.num_images)
    positives = there.clamp(max=int(batch_size_per_image * positive_fraction))
    return positives, batch_size_per_image - positives


def take_quota(
    candidates: Candidates, rank: Tensor, batch_size_per_image: int, positive_fraction: float
) -> Tensor:
    """Keep the first ranks of each image: positives up to their share, then negatives up to B.

    Candidates that are missing are not repeated, so that an image may give fewer than B.

    Args:
        rank: [N] rank of a positive among the positives of its image, of a negative among its
            negatives (0 is taken first); anything where the label is -1.

    Returns:
        [N] float32 weights, 0 or 1.
    """
    positives, negatives = quotas(candidates, batch_size_per_image, positive_fraction)
    image = candidates.image
    quota = torch.where(candidates.positive, positives[image], negatives[image])
    return ((rank < quota) & (candidates.labels >= 0)).float()
