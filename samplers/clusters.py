"""Local clusters: the boxes that greedy NMS would merge into one.

Shape letters: K boxes of a batch, sorted by image and falling score, I images, A and B rows of
boxes an image, E pairs of boxes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from samplers.quota import count

# Candidates of an image that are clustered at once.
BLOCK = 256
# Pairs of boxes compared at once: what a core's cache holds, and a bound on the memory.
PAIRS = 2**18
# Fills up tables of rows; the box there has no area, so that it overlaps nothing.
NONE = -1


def local_clusters(boxes: Tensor, image: Tensor, asked: Tensor, threshold: float) -> Tensor:
    """[K] the row of the head of each candidate's cluster; a head's own is its own.

    As greedy NMS goes: the highest score that is left heads a cluster of all that is left and
    overlaps it. A head depends on higher scores alone. So candidates are clustered from the
    highest score down, a block at a time, until an image has as many heads as are asked for.
    All others of it then belong to its first head: whose they are would change no rank below.

    Args:
        boxes: [K, 4] xyxy pixels, by falling score within an image.
        image: [K] int64 in 0..I-1, ascending.
        asked: [I] how many heads are enough.
        threshold: IoU above which a head takes a box.
    """
    sizes, top = count(image, len(asked)), starts(image, len(asked))
    cluster = top[image]
    corners = F.pad(boxes, (0, 0, 0, 1)).T.contiguous()
    heads = top.new_empty(len(asked), 0)
    for level in torch.arange(int(sizes.max()), device=image.device).split(BLOCK):
        short = (heads != NONE).sum(1) < asked
        there = short[:, None] & (level < sizes[:, None])
        if not there.any():
            break
        block = torch.where(there, top[:, None] + level, NONE)
        pairs = overlapping(corners, torch.cat([heads, block], 1), block, threshold)
        join_first_heads(cluster, block[there], pairs)
        new = cluster[block] == block
        by_image = block[new].split(new.sum(1).tolist())
        heads = torch.cat([heads, pad_sequence(by_image, True, NONE)], 1)
    return cluster


def join_first_heads(cluster: Tensor, rows: Tensor, pairs: Tensor) -> None:
    """Set the ``cluster`` of some rows: the first head that a row overlaps, itself if that is none.

    Of all its rivals, taken for heads, a row joins the first. That shows which are no heads, and
    so on until nothing changes: round n is right for chains of n boxes that each remove the next.

    Args:
        cluster: [K] int64, changed; right for rivals that are not among the rows.
        rows: [R] rows of ``cluster``.
        pairs: [2, E] rivals and the rows they overlap; later rivals count for nothing.
    """
    rival, row = pairs
    heads = torch.ones_like(rival, dtype=torch.bool)
    while True:
        cluster[rows] = rows
        cluster.scatter_reduce_(0, row[heads], rival[heads], "amin")
        before, heads = heads, cluster[rival] == rival
        if heads.equal(before):
            return


def overlapping(corners: Tensor, rivals: Tensor, block: Tensor, threshold: float) -> Tensor:
    """[2, E] rivals and rows of the block in the same image whose IoU is above a threshold.

    Args:
        corners: [4, K + 1] xyxy of boxes, the last one without area.
        rivals: [I, A], block: [I, B] rows of boxes, or ``NONE``.
    """
    found, there = [], corners[:, block][:, :, None]
    for part in rivals.split(max(1, PAIRS // block.numel()), 1):
        overlaps = iou(corners[:, part, None], there) > threshold
        image, a, b = torch.where(overlaps)
        found.append(torch.stack([part[image, a], block[image, b]]))
    return torch.cat(found, 1)


def starts(image: Tensor, images: int) -> Tensor:
    """[I] where each image begins once the [K] images ascend."""
    sizes = count(image, images)
    return sizes.cumsum(0) - sizes


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[...] IoU of boxes [4, ...] that broadcast, NaN if neither has an area."""
    width = a[2].minimum(b[2]).sub_(a[0].maximum(b[0])).clamp_(min=0)
    inside = a[3].minimum(b[3]).sub_(a[1].maximum(b[1])).clamp_(min=0).mul_(width)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inside.div_(areas.sub_(inside))
