"""Local clusters: the boxes that greedy NMS would merge into one.

Shape letters: K boxes of a batch, sorted by image and falling score, I images, H heads of clusters,
R rows of boxes.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from samplers.quota import count

# Pairs of boxes compared at once: what a core's cache holds, and a bound on the memory.
PAIRS = 2**17


def local_clusters(
    boxes: Tensor, scores: Tensor, image: Tensor, asked: Tensor, threshold: float
) -> Tensor:
    """[K] the row of the head of each candidate's cluster; a head's own is its own.

    As greedy NMS goes: the highest score that is left heads a cluster of all that is left and
    overlaps it. A head depends on higher scores alone. So candidates are clustered from the
    highest score down, a block at a time, until an image has as many heads as are asked for.
    All others of it then belong to its first head: whose they are would change no rank below.

    Args:
        boxes: [K, 4] xyxy pixels.
        scores: [K], falling within an image.
        image: [K] int64 in 0..I-1, ascending.
        asked: [I] how many heads are enough.
        threshold: IoU above which a head takes a box.
    """
    images = len(asked)
    top = starts(image, images)[image]
    rows = torch.arange(len(image), device=image.device)
    level, cluster = rows - top, top.clone()
    heads, start, stop = rows[:0], 0, int(asked.max())
    while True:
        short = count(image[heads], images) < asked
        block = rows[(level >= start) & (level < stop) & short[image]]
        if not len(block):
            return cluster
        cluster[block] = first_overlap(boxes, image, block, heads, images, threshold)
        rest = block[cluster[block] == block]
        # batched_nms sets the images side by side: float32 has no room for many of them, and
        # boxes left of an image would reach into the one before.
        place = boxes[rest].double() - boxes.min()
        kept = batched_nms(place, scores[rest].double(), image[rest], threshold)
        suppressed = torch.ones_like(rest, dtype=torch.bool)
        suppressed[kept] = False
        new, others = rest[~suppressed], rest[suppressed]
        heads = torch.cat([heads, new]).sort().values
        short = count(image[heads], images) < asked
        cluster[others] = top[others]
        others = others[short[image[others]]]
        cluster[others] = first_overlap(boxes, image, others, new, images, threshold)
        start, stop = stop, 2 * stop


def first_overlap(
    boxes: Tensor, image: Tensor, rows: Tensor, heads: Tensor, images: int, threshold: float
) -> Tensor:
    """[R] the first of the heads of its image that each row overlaps; the row itself if none.

    Args:
        rows: [R], heads: [H] rows of ``boxes`` [K, 4] and ``image`` [K], both ascending.
    """
    if not len(heads) or not len(rows):
        return rows
    there, head_slot = side_by_side(boxes[heads], image[heads], images)
    here, slot = side_by_side(boxes[rows], image[rows], images)
    most = there.shape[2]
    place = torch.arange(most, dtype=torch.int32, device=boxes.device)[:, None]
    first = torch.full(here.shape[1:], most, dtype=torch.int32, device=boxes.device)
    step = max(1, PAIRS // first.numel())
    for part in range(0, most, step):
        heads_here = there[:, :, part : part + step, None]
        overlaps = iou(heads_here, here[:, :, None]) > threshold
        found = torch.where(overlaps, place[part : part + step], most).amin(1)
        first = first.minimum(found)
    row_of = heads.new_zeros(images * most)
    row_of[head_slot] = heads
    first = first.flatten()[slot].long()
    head = row_of[image[rows] * most + first.clamp(max=most - 1)]
    return torch.where(first < most, head, rows)


def side_by_side(boxes: Tensor, image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """[4, I, M] coordinates of every image's boxes, 0 where it has fewer; [K] slots in [I * M].

    Args:
        boxes: [K, 4].
        image: [K] int64, ascending.
    """
    place = torch.arange(len(image), device=image.device) - starts(image, images)[image]
    most = int(place.max()) + 1
    slot = image * most + place
    padded = boxes.new_zeros(4, images * most)
    padded[:, slot] = boxes.T
    return padded.view(4, images, most), slot


def starts(image: Tensor, images: int) -> Tensor:
    """[I] where each image begins once the [K] images ascend."""
    sizes = count(image, images)
    return sizes.cumsum(0) - sizes


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[...] IoU of boxes [4, ...] that broadcast; at least one of each pair has an area."""
    width = a[2].minimum(b[2]).sub_(a[0].maximum(b[0])).clamp_(min=0)
    inside = a[3].minimum(b[3]).sub_(a[1].maximum(b[1])).clamp_(min=0).mul_(width)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inside.div_(areas.sub_(inside))
