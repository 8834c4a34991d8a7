"""Which object, if any, a candidate box stands for.

Shape letters: N candidates, G objects, J ignore areas, of one image or of a whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

IGNORE, BACKGROUND = -1, 0


@dataclass
class Matched:
    """The candidates of a batch and what they stand for; fields as in ``samplers.Candidates``."""

    boxes: Tensor
    labels: Tensor
    ious: Tensor
    gt: Tensor
    gt_boxes: Tensor
    image: Tensor


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
        """Match [N, 4] boxes to [G, 4] objects with [G] labels, given [J, 4] ignore areas.

        Returns:
            [N] labels, [N] IoU with the object that overlaps most, [N] its row (-1 = no objects).
        """
        if len(objects):
            found, ious, gt = self._match(boxes, objects, labels)
        else:
            found = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
            ious, gt = boxes.new_zeros(len(boxes)), torch.full_like(found, -1)
        if len(ignore):
            covered = share_inside(boxes, ignore).amax(1) > self.ignore_ioa
            found[covered & (found == BACKGROUND)] = IGNORE
        return found, ious, gt

    def _match(
        self, boxes: Tensor, objects: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        overlaps = box_iou(objects, boxes)
        ious, gt = overlaps.max(0)
        positive = ious >= self.high
        if self.keep_best:
            # An object that overlaps no candidate at all has no best one.
            best = overlaps.amax(1, keepdim=True).clamp(min=torch.finfo(overlaps.dtype).tiny)
            positive |= (overlaps == best).any(0)
        found = torch.full_like(gt, IGNORE).masked_fill(ious < self.low, BACKGROUND)
        return torch.where(positive, labels[gt], found), ious, gt


def share_inside(boxes: Tensor, areas: Tensor) -> Tensor:
    """[N, J] share of every box that lies in every area (intersection over the box's own area)."""
    top_left = torch.max(boxes[:, None, :2], areas[:, :2])
    bottom_right = torch.min(boxes[:, None, 2:], areas[:, 2:])
    inside = (bottom_right - top_left).clamp(min=0).prod(2)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return inside / own.clamp(min=torch.finfo(own.dtype).tiny)[:, None]


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
        labels: [G_i] the label of each object at this site.
    """
    objects = [target["boxes"].to(boxes[0].dtype) for target in targets]
    found = [
        matcher(here, there, label, target.get("ignore", there[:0]))
        for here, there, label, target in zip(boxes, objects, labels, targets, strict=True)
    ]
    first = 0
    for (_, _, gt), there in zip(found, objects, strict=True):
        gt[gt >= 0] += first
        first += len(there)
    sizes = torch.tensor([len(here) for here in boxes])
    image = torch.arange(len(boxes)).repeat_interleave(sizes).to(boxes[0].device)
    label, ious, gt = (torch.cat(column) for column in zip(*found, strict=True))
    return Matched(torch.cat(list(boxes)), label, ious, gt, torch.cat(objects), image)
