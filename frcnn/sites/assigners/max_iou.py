"""Which object, if any, a candidate box stands for.

Shape letters: N candidates, G objects, J ignore areas, of one image or of a whole batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou

IGNORE, BACKGROUND = -1, 0
# Pairs of a box and an object that are compared at once: what suits a CPU's cache, and fewer,
# larger kernels for a GPU; 50 and 200 MB.
PAIRS, GPU_PAIRS = 1 << 20, 1 << 22


@dataclass
class Matched:
    """The candidates of a batch and what they stand for; fields as in ``samplers.Candidates``."""

    boxes: Tensor
    labels: Tensor
    ious: Tensor
    gt: Tensor
    gt_boxes: Tensor
    image: Tensor
    sizes: Sequence[int] = ()


@dataclass(frozen=True)
class Matcher:
    """Labels by IoU thresholds (Faster R-CNN, arXiv 1506.01497, sec. 3.1.2).

    Attributes:
        high: an object from this IoU on.
        low: background below this IoU; ignored in between.
        keep_best: the best candidates of an object are positive below ``high`` too, so that no
            object goes without one (the RPN's rule). Differs from torchvision for an object that
            no candidate overlaps: there every candidate becomes positive, here none.
        ignore_ioa: background of which more than this share lies in an ignore area (crowd,
            difficult) is ignored.

    Raises:
        ValueError: thresholds out of [0, 1] or low above high.
    """

    high: float
    low: float
    keep_best: bool = False
    ignore_ioa: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"IoU thresholds need 0 <= low <= high <= 1: {self.low}, {self.high}")

    def __call__(
        self, boxes: Tensor, objects: Tensor, labels: Tensor, ignore: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Match [..., N, 4] boxes to [..., G, 4] objects with [..., G] labels, image by image.

        Objects of label 0 and [..., J, 4] ignore areas without area are filling. The table of IoUs
        is made a part at a time, so that memory does not grow with N * G.

        Returns:
            [..., N] labels, IoU with the object that overlaps most, and its row (-1 = no objects).
        """
        if not labels.shape[-1]:  # nothing to take a maximum of: one filling object
            objects, labels = F.pad(objects, (0, 0, 0, 1)), F.pad(labels, (0, 1))
        at_once = PAIRS if boxes.device.type == "cpu" else GPU_PAIRS
        others = max(1, labels.numel() + ignore[..., 0].numel())
        chunks = boxes.split(max(1, at_once // others), dim=-2)
        only = [overlaps(objects, labels, boxes)] if len(chunks) == 1 else None

        def tables() -> Iterable[Tensor]:
            return only or (overlaps(objects, labels, chunk) for chunk in chunks)

        best = torch.zeros_like(labels, dtype=boxes.dtype)
        if self.keep_best and boxes.shape[-2]:
            for table in tables():
                best = best.maximum(table.amax(-1))
        # Made before the tables: between them in memory, they would keep it from being used again.
        found = boxes.new_empty(boxes.shape[:-1], dtype=torch.int64)
        ious, gt = boxes.new_empty(boxes.shape[:-1]), torch.empty_like(found)
        first = 0
        for table, chunk in zip(tables(), chunks, strict=True):
            here = slice(first, first := first + chunk.shape[-2])
            matched = self._label(table, best, labels, chunk, ignore)
            found[..., here], ious[..., here], gt[..., here] = matched
        return found, ious, gt

    def _label(
        self, overlaps: Tensor, best: Tensor, labels: Tensor, boxes: Tensor, ignore: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is returned of [..., G, N] overlaps and the [..., G] best of each object."""
        ious, gt = overlaps.max(-2)
        positive = ious >= self.high
        if self.keep_best:
            # An object that overlaps no candidate at all has no best one.
            best = best.clamp(min=torch.finfo(best.dtype).tiny)
            positive |= (overlaps == best[..., None]).any(-2)
        found = torch.full_like(gt, IGNORE).masked_fill(ious < self.low, BACKGROUND)
        found = torch.where(positive, labels.gather(-1, gt), found)
        if ignore.shape[-2]:
            covered = share_inside(boxes, ignore).amax(-1) > self.ignore_ioa
            found = found.masked_fill(covered & (found == BACKGROUND), IGNORE)
        return found, ious.clamp(min=0), gt.masked_fill(ious < 0, -1)


def overlaps(objects: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    """[..., G, N] IoU of every object with every box, -1 where the object is filling."""
    return box_iou(objects, boxes).masked_fill(labels[..., None] == 0, -1)


def share_inside(boxes: Tensor, areas: Tensor) -> Tensor:
    """[..., N, J] share of every box in every area (intersection over the box's own area)."""
    top_left = torch.max(boxes[..., None, :2], areas[..., None, :, :2])
    bottom_right = torch.min(boxes[..., None, 2:], areas[..., None, :, 2:])
    inside = (bottom_right - top_left).clamp(min=0).prod(-1)
    own = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return inside / own.clamp(min=torch.finfo(own.dtype).tiny)[..., None]


def match_batch(
    matcher: Matcher,
    boxes: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    labels: Sequence[Tensor],
) -> Matched:
    """Match every image's boxes to its objects and stack the images.

    Args:
        boxes: [N_i, 4] an image.
        targets: an image's "boxes" [G_i, 4] and, where it has any, "ignore" areas [J_i, 4].
        labels: [G_i] the label of each object at this site, above 0.
    """
    objects = [target["boxes"].to(boxes[0], non_blocking=True) for target in targets]
    ignore = [
        target.get("ignore", here[:0]).to(here, non_blocking=True)
        for target, here in zip(targets, boxes, strict=True)
    ]
    labels = [label.to(boxes[0].device, non_blocking=True) for label in labels]
    padded = (pad_sequence(list(x), True) for x in (boxes, objects, labels, ignore))
    sizes = [len(here) for here in boxes]
    label, ious, gt = (
        [row[:size] for row, size in zip(table, sizes, strict=True)] for table in matcher(*padded)
    )
    before = [0, *accumulate(map(len, objects))][:-1]
    gt = [torch.where(row >= 0, row + first, -1) for row, first in zip(gt, before, strict=True)]
    image = [torch.full_like(row, index) for index, row in enumerate(gt)]
    columns = (torch.cat(list(x)) for x in (boxes, label, ious, gt, objects, image))
    return Matched(*columns, sizes)
