"""Adaptive training sample selection (ATSS, Zhang et al., CVPR 2020, arXiv 1912.02424, alg. 1).

Shape letters: N candidates and G objects of one image, L levels, k candidates per level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from frcnn.sites.assigners.contract import Assigned, Unassigned
from frcnn.sites.assigners.pairs import (
    assemble_owned,
    centers,
    inside,
    no_owners,
    object_chunks,
    owners,
    smallest,
)
from samplers.arguments import check_at_least_one, check_share
from samplers.iou import iou


@dataclass(frozen=True)
class ATSS:
    """Each object sets its own IoU threshold, by the statistics of the candidates around it.

    Of each pyramid level the k candidates with the nearest centres are looked at. Those with an IoU
    of at least mean + standard deviation (unbiased) of all of them, and with their centre inside
    the object, are positive. A candidate of several objects goes to the one of highest IoU. All
    others are background. An object may have no positive.

    Differs from released code: candidates at equal distance are taken in their order (there in any
    order), and background in ignore areas is ignored.

    Attributes:
        k: candidates per level, at least 1.
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area
            (crowd, difficult).

    Raises:
        ValueError: an argument out of range; candidates without levels.

    >>> boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 16, 16]])
    >>> candidates = Unassigned([boxes], [boxes[:1] + 1], [torch.tensor([3])], [boxes[:0]],
    ...                         level=torch.tensor([0, 0, 1]), strides=[8, 16])
    >>> ATSS(k=2)(candidates).labels  # IoU 0.62, 0.06, 0.25; threshold 0.31 + 0.28
    tensor([3, 0, 0])
    """

    k: int = 9
    ignore_ioa: float = 0.5

    unfit: ClassVar = {"rcnn": "it takes candidates per pyramid level, and proposals have no level"}

    def __post_init__(self) -> None:
        check_at_least_one("k", self.k)
        check_share("ignore_ioa", self.ignore_ioa)

    def __call__(self, candidates: Unassigned) -> Assigned:
        """Label the images of a batch, one after another."""
        if candidates.level is None:
            raise ValueError("ATSS needs the pyramid level of each candidate")
        count = len(candidates.strides)
        levels = [torch.where(candidates.level == number)[0] for number in range(count)]
        images = zip(candidates.boxes, candidates.objects, strict=True)
        owner = [self._owners(*image, levels) for image in images]
        return assemble_owned(candidates, owner, self.ignore_ioa)

    def _owners(self, boxes: Tensor, objects: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """[N] the object that each candidate is positive for."""
        if not len(boxes) or not len(objects):
            return no_owners(boxes)
        rows = torch.cat([level[self._nearest(boxes[level], objects)] for level in levels], 1)
        near = boxes[rows]  # [G, L k, 4]
        ious = iou(near.permute(2, 0, 1), objects.T[:, :, None])
        spread = ious.std(1, correction=1 if ious.shape[1] > 1 else 0)
        threshold = (ious.mean(1) + spread)[:, None]
        chosen = (ious >= threshold) & inside(centers(near), objects[:, None])
        return owners(rows, ious, chosen, len(boxes))

    def _nearest(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """[G, k] rows of the boxes whose centres are nearest to that of each object."""
        points = centers(boxes)
        found = [
            smallest((points - centers(objects[part])[:, None]).square().sum(-1), self.k)
            for part in object_chunks(objects, boxes)
        ]
        return torch.cat(found)
