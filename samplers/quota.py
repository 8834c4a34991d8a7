"""What hard samplers share: B candidates per image, a fraction of them positive, best ones first.

Nothing here makes the host wait for a GPU. A full sort is slow on a CPU, so the best candidates of
an image are found without one; only ``rank_within`` sorts all eligible candidates.
"""

import torch
from torch import Tensor

from samplers.candidates import Candidates
from samplers.host import reads_are_free


def take_quota(
    candidates: Candidates, priority: Tensor, batch_size_per_image: int, positive_fraction: float
) -> Tensor:
    """Keep the highest priorities of each image: positives up to their share, negatives up to B.

    Negatives replace missing positives. Nothing replaces missing negatives and nothing is
    repeated, so an image may keep fewer than B.

    Args:
        priority: [N] float; compared among the positives, and among the negatives, of an image.

    Returns:
        [N] float32 weights, 0 or 1.
    """
    positives, negatives = quotas(candidates, batch_size_per_image, positive_fraction)
    most = max_positives(batch_size_per_image, positive_fraction)
    budget = batch_size_per_image
    picked = pick_per_image(candidates, priority, candidates.positive, positives, most)
    picked |= pick_per_image(candidates, priority, candidates.negative, negatives, budget)
    return picked.float()


def max_positives(batch_size_per_image: int, positive_fraction: float) -> int:
    """Largest number of positives per image that the budget allows."""
    return int(batch_size_per_image * positive_fraction)


def quotas(
    candidates: Candidates, batch_size_per_image: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """[I] positives and [I] negatives that the budget allows in each image."""
    most = max_positives(batch_size_per_image, positive_fraction)
    positives = candidates.pad_by_image(candidates.positive).sum(1).clamp(max=most)
    return positives, batch_size_per_image - positives


def pick_per_image(
    candidates: Candidates,
    priority: Tensor,
    mask: Tensor,
    quota: Tensor | int,
    max_quota: int | None = None,
) -> Tensor:
    """[N] bool: the eligible candidates of highest priority, per image.

    Args:
        priority: [N] finite; ties go to the lowest index.
        mask: [N] bool, the eligible candidates.
        quota: [I] how many to take, or one number for every image; an image with fewer eligible
            candidates takes them all.
        max_quota: upper bound of all quotas, known on the host; it saves a GPU from sorting whole
            rows.
    """
    if isinstance(quota, int):
        max_quota = quota
        quota = torch.full((candidates.num_images,), quota, device=priority.device)
    low = -torch.inf
    table = candidates.pad_by_image(priority.float().masked_fill(~mask, low), low)
    return candidates.unpad(pick_per_row(table, quota, max_quota))


def pick_per_row(table: Tensor, quota: Tensor, max_quota: int | None = None) -> Tensor:
    """[..., M] bool: the ``quota`` highest values of each row; ties go to the lowest index.

    Args:
        table: [..., M]; ``-inf`` is never picked.
        quota: [...] how many values to pick per row.
        max_quota: as for ``pick_per_image``.
    """
    if table.numel() == 0:
        return torch.zeros_like(table, dtype=torch.bool)
    threshold = lowest_picked(table, quota, max_quota)
    above = table > threshold
    tied = (table == threshold) & (table > -torch.inf)
    room_for_ties = quota[..., None] - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room_for_ties))


def lowest_picked(table: Tensor, quota: Tensor, max_quota: int | None) -> Tensor:
    """[..., 1] the value at place ``quota`` of each row, from the highest value down.

    It is the lowest value of a row that is shorter than its quota, and the highest value at quota
    0. A full sort is not needed: the ``max_quota`` highest values contain it.
    """
    row_length = table.shape[-1]
    if reads_are_free(table.device):
        max_quota = int(quota.max())
    depth = row_length if max_quota is None else max(1, min(max_quota, row_length))
    falling = table.topk(depth, dim=-1).values
    place = (quota[..., None] - 1).clamp(0, depth - 1)
    return falling.gather(-1, place)


def rank_within(group: Tensor, priority: Tensor, num_groups: int, mask: Tensor) -> Tensor:
    """Rank the eligible elements of each group by falling priority.

    Args:
        group: [N] int64 in 0..num_groups-1.
        priority: [N] float; ties go to the lowest index.
        mask: [N] bool, the eligible elements.

    Returns:
        [N] int64, 0 = the highest priority of its group; undefined for elements not eligible.
    """
    # The others form a group of their own behind all groups.
    group = torch.where(mask, group, num_groups)
    rows = eligible_rows(mask)
    order = rows[priority[rows].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]
    first = starts(group[rows], num_groups + 1)
    rank = torch.zeros_like(group)
    rank[order] = torch.arange(len(order), device=group.device) - first[group[order]]
    return rank


def eligible_rows(mask: Tensor) -> Tensor:
    """[K] rows of the mask, ascending; on a GPU all [N] rows, whose number its host knows."""
    if reads_are_free(mask.device):
        return torch.where(mask)[0]
    return torch.arange(len(mask), device=mask.device)


def count(group: Tensor, num_groups: int) -> Tensor:
    """[num_groups] int64 sizes of the groups (``bincount``, but the host does not wait)."""
    sizes = torch.zeros(num_groups, dtype=torch.int64, device=group.device)
    return sizes.scatter_add_(0, group, torch.ones_like(group))


def starts(group: Tensor, num_groups: int) -> Tensor:
    """[num_groups] int64: where each group begins once the elements are sorted by group."""
    sizes = count(group, num_groups)
    return sizes.cumsum(0) - sizes
