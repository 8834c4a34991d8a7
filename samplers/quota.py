"""What hard samplers share: B candidates an image, a fraction of them positive, best ones first.

Nothing here makes the host wait for a GPU. On a CPU, where sorting is dear, nothing sorts all
candidates of an image.
"""

import torch
from torch import Tensor

from samplers.candidates import Candidates


def check_budget(batch_size_per_image: int, positive_fraction: float) -> None:
    """Raise ValueError unless B >= 1 and the fraction lies in [0, 1]."""
    if batch_size_per_image < 1:
        raise ValueError(f"batch_size_per_image must be at least 1, got {batch_size_per_image}")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be between 0 and 1, got {positive_fraction}")


def take_quota(
    candidates: Candidates, priority: Tensor, batch_size_per_image: int, positive_fraction: float
) -> Tensor:
    """Keep the highest priorities of each image: positives up to their share, negatives up to B.

    Positives that are missing are made up for by negatives. Negatives that are missing are not
    made up for, and nothing is repeated, so that an image may give fewer than B.

    Args:
        priority: [N] float; compared among the positives, and among the negatives, of an image.

    Returns:
        [N] float32 weights, 0 or 1.
    """
    budget = batch_size_per_image, positive_fraction
    positives, negatives = quotas(candidates, *budget)
    most = max_positives(*budget)
    picked = top(candidates, priority, candidates.positive, positives, most)
    picked |= top(candidates, priority, candidates.negative, negatives, batch_size_per_image)
    return picked.float()


def max_positives(batch_size_per_image: int, positive_fraction: float) -> int:
    """Positives that the budget has room for."""
    return int(batch_size_per_image * positive_fraction)


def quotas(
    candidates: Candidates, batch_size_per_image: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """[I] positives and [I] negatives that the budget allows in each image."""
    most = max_positives(batch_size_per_image, positive_fraction)
    positives = candidates.by_image(candidates.positive).sum(1).clamp(max=most)
    return positives, batch_size_per_image - positives


def top(
    candidates: Candidates,
    priority: Tensor,
    among: Tensor,
    quota: Tensor,
    most: int | None = None,
) -> Tensor:
    """[N] bool: the highest priorities of every image among some of its candidates.

    Args:
        priority: [N] finite; of equal ones the first are taken, so that picks are reproducible.
        among: [N] bool, who takes part.
        quota: [I] how many are taken, all that take part if they are fewer.
        most: what no quota exceeds, known to the host; saves a GPU the sorting of whole rows.
    """
    low = -torch.inf
    table = candidates.by_image(priority.float().masked_fill(~among, low), low)
    return candidates.stacked(highest(table, quota, most))


def highest(table: Tensor, quota: Tensor, most: int | None = None) -> Tensor:
    """[..., M] bool: the ``quota`` [...] highest of each row, ``-inf`` never; equal ones in order.

    Args:
        most: as in ``top``.
    """
    if table.numel() == 0:
        return torch.zeros_like(table, dtype=torch.bool)
    if table.device.type == "cpu":
        most = int(quota.max())
    longest = table.shape[-1] if most is None else max(1, min(most, table.shape[-1]))
    best = table.topk(longest, dim=-1).values
    quota = quota[..., None]
    last = best.gather(-1, (quota - 1).clamp(0, longest - 1))
    above = table > last
    level = (table == last) & (table > -torch.inf)
    room = quota - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def rank_within(group: Tensor, priority: Tensor, num_groups: int, among: Tensor) -> Tensor:
    """Rank some elements inside their groups by falling priority.

    Args:
        group: [N] int64 in 0..num_groups-1.
        priority: [N] float; equal priorities keep their order, so that ranks are reproducible.
        among: [N] bool, who takes part.

    Returns:
        [N] int64, 0 = the highest priority of its group; anything for those who take no part.
    """
    group = torch.where(among, group, num_groups)
    # A GPU sorts all of them faster than its host learns how many take part.
    on_cpu = group.device.type == "cpu"
    rows = torch.where(among)[0] if on_cpu else torch.arange(len(group), device=group.device)
    order = rows[priority[rows].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]
    sizes = count(group[rows], num_groups + 1)
    first = sizes.cumsum(0) - sizes
    rank = torch.zeros_like(group)
    rank[order] = torch.arange(len(order), device=group.device) - first[group[order]]
    return rank


def count(group: Tensor, num_groups: int) -> Tensor:
    """[num_groups] int64, the size of every group (``bincount`` without a host synchronisation)."""
    sizes = torch.zeros(num_groups, dtype=torch.int64, device=group.device)
    return sizes.scatter_add_(0, group, torch.ones_like(group))
