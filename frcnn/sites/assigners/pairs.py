"""What assigners share that choose the positives of each object.

Shape letters: N candidates and G objects of one image, k candidates of each object.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from frcnn.sites.assigners.contract import (
    Assigned,
    Unassigned,
    assemble,
    ignore_background_inside,
)
from frcnn.sites.assigners.max_iou import GPU_PAIRS, PAIRS
from samplers.iou import iou

NO_OBJECT = -1
MARGIN = 0.01  # pixels by which a centre must lie inside a box, as in released code


def smallest(values: Tensor, k: int) -> Tensor:
    """[G, N] finite values -> [G, min(k, N)] columns of the smallest, in ascending order of value.

    Ties go to the lowest column: ``topk`` alone leaves them open, and the anchors of one location
    all have the same centre.

    >>> smallest(torch.tensor([[2.0, 1.0, 1.0, 0.5]]), 2)
    tensor([[3, 1]])
    """
    size = values.shape[1]
    k = min(k, size)
    last = values.topk(k, largest=False).values[:, -1:]
    column = torch.arange(size, device=values.device)
    key = torch.where(values == last, column, 2 * size)
    key = torch.where(values < last, column - size, key)
    columns = key.topk(k, largest=False).indices
    order = values.gather(1, columns).argsort(dim=1, stable=True)
    return columns.gather(1, order)


def object_chunks(objects: Tensor, boxes: Tensor) -> Iterator[slice]:
    """Slices of [G, 4] objects, so that the table of a slice with all [N, 4] boxes stays small."""
    size = _chunk_size(boxes)
    return (slice(start, start + size) for start in range(0, len(objects), size))


def _chunk_size(others: Tensor) -> int:
    """Boxes whose table with all others is computed at once."""
    pairs = PAIRS if others.device.type == "cpu" else GPU_PAIRS
    return max(1, pairs // max(1, len(others)))


def best_overlap(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """[N] IoU of each box with the object that it overlaps most, and [N] the row of that object.

    Ties go to the lowest object. Without objects: 0 and ``NO_OBJECT``.

    Args:
        boxes: [N, 4]; objects: [G, 4].
    """
    ious, rows = boxes.new_zeros(len(boxes)), no_owners(boxes)
    if len(objects):
        size = _chunk_size(objects)
        for start in range(0, len(boxes), size):
            part = slice(start, start + size)
            ious[part], rows[part] = box_iou(objects, boxes[part]).max(0)
    return ious, rows


def no_owners(boxes: Tensor) -> Tensor:
    """[N]: no candidate is positive."""
    return boxes.new_full((len(boxes),), NO_OBJECT, dtype=torch.int64)


def centers(boxes: Tensor) -> Tensor:
    """[..., 4] boxes -> [..., 2] centres in pixels."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def inside(points: Tensor, boxes: Tensor, margin: float = MARGIN) -> Tensor:
    """[...] bool: whether [..., 2] points lie inside [..., 4] boxes by more than the margin."""
    x, y = points.unbind(-1)
    left, top, right, bottom = boxes.unbind(-1)
    horizontal = (x - left > margin) & (right - x > margin)
    return horizontal & (y - top > margin) & (bottom - y > margin)


def pair_ious(boxes: Tensor, objects: Tensor, labels: Tensor) -> Tensor:
    """[G, N] IoU of each object with the box that is predicted for its class.

    Args:
        boxes: [N, D, 4], of ``Outputs``; objects: [G, 4]; labels: [G].
    """
    column = labels if boxes.shape[1] > 1 else torch.zeros_like(labels)
    return iou(boxes[:, column].permute(2, 1, 0), objects.T[:, :, None])


def owners(rows: Tensor, preference: Tensor, chosen: Tensor, size: int) -> Tensor:
    """[size] the object that each candidate is positive for, or ``NO_OBJECT``.

    A candidate that several objects chose goes to the one of highest preference; ties go to the
    lowest object.

    Args:
        rows: [G, k] candidates of each object.
        preference: [G, k] float, of the pairs.
        chosen: [G, k] bool.
        size: N.
    """
    preference = preference.masked_fill(~chosen, -torch.inf)
    best = preference.new_full((size,), -torch.inf)
    best = best.scatter_reduce(0, rows.flatten(), preference.flatten(), "amax")
    wins = chosen & (preference == best[rows])
    none = len(rows)
    index = torch.arange(none, device=rows.device)[:, None].expand_as(rows)
    index = index.masked_fill(~wins, none)
    owner = rows.new_full((size,), none)
    owner = owner.scatter_reduce(0, rows.flatten(), index.flatten(), "amin")
    return owner.masked_fill(owner == none, NO_OBJECT)


def assemble_owned(
    candidates: Unassigned,
    owner: Sequence[Tensor],
    ignore_ioa: float,
    soft_targets: Sequence[Tensor] | None = None,
    weights: Sequence[Tensor] | None = None,
    overlaps: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> Assigned:
    """Candidates with an owner are positive; all others are background, or ignored in an area.

    Args:
        owner: [N_i] for each image, see ``owners``.
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area.
        soft_targets, weights: [N_i] for each image, or None.
        overlaps: ``best_overlap`` of each image, if it is known.
    """
    images = zip(
        candidates.boxes,
        candidates.objects,
        candidates.object_labels,
        candidates.ignore,
        owner,
        strict=True,
    )
    if overlaps is None:
        overlaps = map(best_overlap, candidates.boxes, candidates.objects)
    found = [
        _label_image(*image, overlap, ignore_ioa)
        for image, overlap in zip(images, overlaps, strict=True)
    ]
    labels, ious, gt = zip(*found, strict=True)
    return assemble(candidates, labels, ious, gt, soft_targets, weights)


def _label_image(
    boxes: Tensor,
    objects: Tensor,
    labels: Tensor,
    ignore: Tensor,
    owner: Tensor,
    overlap: tuple[Tensor, Tensor],
    ignore_ioa: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """[N] labels; IoU and row of the own object, or of the one that overlaps most."""
    ious, gt = overlap
    # Row -1 is the padding: no object, the label of background.
    own, found = F.pad(objects, (0, 0, 0, 1))[owner], F.pad(labels, (0, 1))[owner]
    found = ignore_background_inside(found, boxes, ignore, ignore_ioa)
    positive = owner >= 0
    return found, torch.where(positive, iou(boxes.T, own.T), ious), torch.where(positive, owner, gt)
