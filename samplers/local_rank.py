"""Hierarchical local rank of PISA (arXiv 1904.04821)."""

import torch
from torch import Tensor

from samplers.clusters import local_clusters
from samplers.quota import eligible_rows, starts


def hierarchical_local_rank(
    cluster: Tensor, pool: Tensor, num_clusters: int, num_pools: int
) -> Tensor:
    """[K] place of each element in its pool, by rank in its cluster and then by the given order.

    Args:
        cluster: [K] int64 in 0..num_clusters-1; elements are given best first.
        pool: [K] int64 in 0..num_pools-1; the elements of a cluster share their pool.
    """
    local_rank = place_in_group(cluster, cluster, num_clusters)
    return place_in_group(pool * len(pool) + local_rank, pool, num_pools)


def place_in_group(key: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """[K] place of each element in its group by rising key; equal keys keep their order.

    Args:
        key: [K] int64; keys of a higher group are higher.
        group: [K] int64 in 0..num_groups-1.
    """
    order = key.argsort(stable=True)
    position = torch.arange(len(order), device=order.device)
    place = torch.empty_like(order)
    place[order] = position - starts(group, num_groups)[group[order]]
    return place


def score_hlr(
    boxes: Tensor,
    scores: Tensor,
    image: Tensor,
    mask: Tensor,
    num_needed: Tensor,
    threshold: float,
) -> Tensor:
    """[K] rank of each eligible candidate in its image by Score-HLR; exact below ``num_needed``.

    Args:
        boxes: [K, 4] decoded, xyxy pixels.
        scores: [K] in [0, 1].
        image: [K] int64 in 0..I-1.
        mask: [K] bool, the eligible candidates; the rank of the others is undefined.
        num_needed: [I] how many ranks are needed per image.
        threshold: IoU above which boxes belong to one cluster.
    """
    # The others form an image of their own behind all images.
    image = torch.where(mask, image, len(num_needed))
    rows = eligible_rows(mask)
    order = rows[scores[rows].argsort(descending=True, stable=True)]
    order = order[image[order].argsort(stable=True)]
    cluster = local_clusters(boxes[order], image[order], num_needed, threshold)
    rank = torch.zeros_like(image)
    rank[order] = hierarchical_local_rank(cluster, image[order], len(order), len(num_needed) + 1)
    return rank
