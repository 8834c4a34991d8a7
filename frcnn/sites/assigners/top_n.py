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
    assemble_owned,
    best_overlap,
    object_chunks,
    smallest,
)
from samplers.arguments import check_at_least_one, check_share


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
        check_at_least_one("n", self.n)
        check_share("ignore_ioa", self.ignore_ioa)

    def __call__(self, candidates: Unassigned) -> Assigned:
        """Label the images of a batch, one after another."""
        images = list(zip(candidates.boxes, candidates.objects, strict=True))
        overlaps = [best_overlap(*image) for image in images]
        owner = [
            most.masked_fill(~self._chosen(*image), NO_OBJECT)
            for image, (_, most) in zip(images, overlaps, strict=True)
        ]
        return assemble_owned(candidates, owner, self.ignore_ioa, overlaps=overlaps)

    def _chosen(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """[N] bool: the candidates that are among the n of some object."""
        chosen = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        for part in object_chunks(objects, boxes):
            ious = box_iou(objects[part], boxes)
            rows = smallest(-ious, self.n)
            chosen[rows[ious.gather(1, rows) > 0]] = True
        return chosen
