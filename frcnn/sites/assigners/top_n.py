"""The top N candidates of each object (Noisy Anchors, Li et al., CVPR 2020, arXiv 1912.05086).

Shape letters: N candidates and G objects of one image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from frcnn.sites.assigners.contract import Assigned, Unassigned
from frcnn.sites.assigners.pairs import (
    NO_OBJECT,
    OVERLAP,
    assemble_owned,
    object_chunks,
    smallest,
)
from samplers.arguments import check_share


@dataclass(frozen=True)
class TopN:
    """The n candidates that overlap an object most are positive, all others are background.

    There is no IoU threshold and no ignored band. As in released code, a positive stands for the
    object that it overlaps most, which may be another than the one that chose it. So an object may
    have no positive.
    Differs from released code: a candidate that overlaps no object is never positive.

    This is the assignment alone. The paper's soft labels are a class loss, its weights a weigher,
    both called ``noisy_anchors``.

    Attributes:
        n: candidates per object, at least 1; 30 in released code.
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area
            (crowd, difficult).

    Raises:
        ValueError: an argument out of range.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 2]])
    >>> candidates = Unassigned([boxes], [boxes[:1]], [torch.tensor([3])], [boxes[:0]])
    >>> TopN(2)(candidates).labels  # IoU 1, 0.6, 0.2
    tensor([3, 3, 0])
    """

    n: int = 30
    ignore_ioa: float = 0.5

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        check_share("ignore_ioa", self.ignore_ioa)

    def __call__(self, candidates: Unassigned) -> Assigned:
        """Label the images of a batch, one after another."""
        images = zip(candidates.boxes, candidates.objects, candidates.object_labels, strict=True)
        return assemble_owned(candidates, [self._owners(*i) for i in images], self.ignore_ioa)

    def _owners(self, boxes: Tensor, objects: Tensor, labels: Tensor) -> Tensor:
        """[N] the object that each candidate is positive for."""
        top = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        for part, _ in object_chunks(objects, labels, boxes):
            ious = box_iou(part, boxes)
            rows = smallest(-ious, self.n)
            top[rows[ious.gather(1, rows) > 0]] = True
        _, _, most = OVERLAP.label(boxes, objects, labels, objects[:0])
        return most.masked_fill(~top, NO_OBJECT)
