"""Local clusters: the boxes that greedy NMS would merge into one.

Shape letters: K boxes of a batch, sorted by image and falling score, I images, A and B rows of
boxes per image, R rows of a block, E pairs of boxes.
"""

from itertools import count as attempts

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from samplers.host import Numbers, reads_are_free
from samplers.iou import iou
from samplers.quota import count, starts
from samplers.suppression import LEFT_OUT, cluster_heads

# Candidates per image that are clustered at a time.
BLOCK = 256
# Candidates per image that a GPU clusters at first.
GPU_WINDOW = 2048
# Pairs of boxes compared at a time: they fit into the cache of a core and bound the memory.
PAIRS = 2**18
# Fills up tables of rows. As an index it selects a box without area, which overlaps nothing.
PADDING = -1


def local_clusters(boxes: Tensor, image: Tensor, num_needed: Tensor, threshold: float) -> Tensor:
    """[K] the row of the head of each candidate's cluster; a head is its own head.

    As in greedy NMS, the candidate of highest score that is left heads a cluster, which takes all
    that is left and overlaps the head. Whether a candidate is a head depends only on higher scores,
    so candidates are clustered block by block from the highest score down, until an image has the
    heads it needs. All its other candidates go to its first head: they come after the needed
    heads in the ranking anyway.

    Args:
        boxes: [K, 4] xyxy pixels, by falling score within an image.
        image: [K] int64 in 0..I-1, ascending. On a GPU I marks candidates that are left out; they
            go to one cluster.
        num_needed: [I] how many heads are enough.
        threshold: IoU above which a head takes a box.
    """
    if not reads_are_free(boxes.device):
        return _clusters_on_gpu(boxes, image, num_needed, threshold)
    sizes, first_row = count(image, len(num_needed)), starts(image, len(num_needed))
    cluster = first_row[image]
    # The last column is the box that PADDING selects.
    corners = F.pad(boxes, (0, 0, 0, 1)).T.contiguous()
    heads = first_row.new_empty(len(num_needed), 0)
    for position in torch.arange(int(sizes.max()), device=image.device).split(BLOCK):
        unfinished = (heads != PADDING).sum(1) < num_needed
        inside = unfinished[:, None] & (position < sizes[:, None])
        if not inside.any():
            break
        block = torch.where(inside, first_row[:, None] + position, PADDING)
        rivals = torch.cat([heads, block], 1)
        pairs = overlapping_pairs(corners, rivals, block, threshold)
        join_first_heads(cluster, block[inside], pairs)
        heads = torch.cat([heads, heads_of(cluster, block)], 1)
    return cluster


def _clusters_on_gpu(boxes: Tensor, image: Tensor, num_needed: Tensor, threshold: float) -> Tensor:
    """The same on a window of each image, which grows until it has the heads that are needed."""
    images = len(num_needed)
    sizes, first_row = count(image, images + 1), starts(image, images + 1)
    padded = F.pad(boxes, (0, 0, 0, 1))
    for attempt in attempts():
        window = min(GPU_WINDOW << attempt, len(image))
        column = torch.arange(window, device=image.device)
        inside = column < sizes[:images, None]
        rows = torch.where(inside, first_row[:images, None] + column, PADDING)
        group = torch.where(inside, 0, LEFT_OUT)
        head, exact = cluster_heads(padded[rows], group, threshold, attempt)
        enough = ((head == column).sum(1) >= num_needed) | (sizes[:images] <= window)
        if Numbers(exact & enough.all()).read()[0]:
            break
    cluster = first_row[image]
    position = torch.arange(len(image), device=image.device) - cluster
    in_window = (position < window) & (image < images)
    own_head = head[image.clamp(max=images - 1), position.clamp(max=window - 1)]
    return cluster + own_head.where(in_window, 0)


def join_first_heads(cluster: Tensor, rows: Tensor, pairs: Tensor) -> None:
    """Let each row of a block join the first head that overlaps it, or else head a cluster.

    It is not known at first which rivals are heads. The first guess is that all of them are. Each
    row joins its first rival that is a head by the guess; a rival that joined another one is no
    head, which gives the next guess. Round n is right about every chain of up to n rows that
    remove one another, so the guess stops changing when it is right.

    Args:
        cluster: [K] int64, changed in place; right for rivals that are not among the rows.
        rows: [R] rows of the block.
        pairs: [2, E] rivals and the rows they overlap; a rival later than its row has no effect.
    """
    rival, row = pairs
    is_head = torch.ones_like(rival, dtype=torch.bool)
    while True:
        cluster[rows] = rows
        cluster.scatter_reduce_(0, row[is_head], rival[is_head], "amin")
        guess, is_head = is_head, cluster[rival] == rival
        if is_head.equal(guess):
            return


def heads_of(cluster: Tensor, block: Tensor) -> Tensor:
    """[I, A] the heads among the rows [I, B] of a block, in order; ``PADDING`` fills up."""
    is_head = cluster[block] == block
    by_image = block[is_head].split(is_head.sum(1).tolist())
    return pad_sequence(list(by_image), batch_first=True, padding_value=PADDING)


def overlapping_pairs(corners: Tensor, rivals: Tensor, block: Tensor, threshold: float) -> Tensor:
    """[2, E] rivals and rows of the block in the same image whose IoU is above a threshold.

    Args:
        corners: [4, K + 1] xyxy of boxes, the last one without area.
        rivals: [I, A] rows of boxes, or ``PADDING``.
        block: [I, B] likewise.
    """
    block_corners = corners[:, block][:, :, None]
    found = []
    for part in rivals.split(max(1, PAIRS // block.numel()), 1):
        overlaps = iou(corners[:, part, None], block_corners) > threshold
        image, a, b = torch.where(overlaps)
        found.append(torch.stack([part[image, a], block[image, b]]))
    return torch.cat(found, 1)
