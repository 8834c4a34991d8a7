"""SimOTA (YOLOX, Ge et al., arXiv 2107.08430).

Shape letters: N candidates and G objects of one image, V of the candidates near an object, C object
classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.sites.assigners.contract import Assigned, Unassigned
from frcnn.sites.assigners.pairs import (
    NO_OBJECT,
    assemble_owned,
    centers,
    inside,
    no_owners,
    object_chunks,
    predicted_ious,
    smallest,
)
from samplers.arguments import check_not_negative, check_share

FAR = 1e5  # cost of a candidate outside an object or its centre zone
SMALLEST_IOU = 1e-7


@dataclass(frozen=True)
class SimOTA:
    """Each object takes the candidates that are cheapest for it *now*, as many as fit it well.

    A candidate is considered if its centre lies in any object, or within ``radius`` strides of the
    centre of any. For each pair of such a candidate and an object

        ``cost = BCE(scores, the object's class) + iou_weight * -log(IoU of the predicted box)``

    plus 1e5 unless the centre lies in this object and in its centre zone. An object takes its
    ``max(1, floor(sum of its 10 highest IoUs))`` cheapest candidates. A candidate that several took
    goes to the object with the lowest cost. All others are background.

    Scores are those of the class loss. Released code takes the BCE of
    ``sqrt(score * objectness)``, the mean of two scores; the networks here have one.

    Attributes:
        radius: of the centre zone, in strides of the candidate's level, > 0.
        top: IoUs that are summed, at least 1.
        iou_weight: of the IoU's cost, >= 0.
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area
            (crowd, difficult).

    Raises:
        ValueError: an argument out of range; candidates without levels.

    >>> from frcnn.sites.assigners.contract import Outputs
    >>> boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    >>> predicted = torch.tensor([[[0.0, 0, 10, 9]], [[0, 0, 10, 8]], [[0, 0, 10, 7]]])
    >>> scores = torch.full((3, 4), 0.5)
    >>> candidates = Unassigned([boxes], [boxes[:1]], [torch.tensor([3])], [boxes[:0]],
    ...                         level=torch.tensor([0, 0, 0]), strides=[8],
    ...                         predict=lambda rows: Outputs(scores[rows], predicted[rows]))
    >>> SimOTA()(candidates).labels  # the IoUs 0.9, 0.8, 0.7 sum to 2.4: two
    tensor([3, 3, 0])
    """

    radius: float = 2.5
    top: int = 10
    iou_weight: float = 3.0
    ignore_ioa: float = 0.5

    unfit: ClassVar = {"rcnn": "its centre zone is counted in strides, and proposals have no level"}

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius must be above 0, got {self.radius}")
        if self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}")
        check_not_negative("iou_weight", self.iou_weight)
        check_share("ignore_ioa", self.ignore_ioa)

    def __call__(self, candidates: Unassigned) -> Assigned:
        """Label the images of a batch by one preview of the candidates near objects."""
        if candidates.level is None:
            raise ValueError("SimOTA needs the pyramid level of each candidate")
        strides = torch.tensor(candidates.strides, device=candidates.level.device)
        stride = strides[candidates.level]
        images = list(
            zip(candidates.boxes, candidates.objects, candidates.object_labels, strict=True)
        )
        zones = [self._zones(boxes, objects, stride) for boxes, objects, _ in images]
        near = [torch.where(any_zone)[0] for any_zone, _ in zones]
        first = torch.tensor([0, *candidates.sizes]).cumsum(0).tolist()
        stacked = torch.cat([rows + start for rows, start in zip(near, first, strict=False)])
        seen = candidates.predict(stacked)
        counts = [len(rows) for rows in near]
        outputs = zip(seen.scores.split(counts), seen.boxes.split(counts), strict=True)
        owner = [
            self._owners(*image, rows, both[:, rows], *output)
            for image, rows, (_, both), output in zip(images, near, zones, outputs, strict=True)
        ]
        return assemble_owned(candidates, owner, self.ignore_ioa)

    def _zones(self, boxes: Tensor, objects: Tensor, stride: Tensor) -> tuple[Tensor, Tensor]:
        """[N] near any object; [G, N] in the object and in its centre zone."""
        points, reach = centers(boxes), self.radius * stride
        near = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        both = [near.new_zeros(0, len(boxes))]
        for some, _ in object_chunks(objects, objects[:, 0], boxes):
            in_object = inside(points, some[:, None], 0.0)
            in_zone = ((points - centers(some)[:, None]).abs() < reach[:, None]).all(-1)
            near |= (in_object | in_zone).any(0)
            both.append(in_object & in_zone)
        return near, torch.cat(both)

    def _owners(
        self,
        boxes: Tensor,
        objects: Tensor,
        labels: Tensor,
        near: Tensor,
        both: Tensor,
        scores: Tensor,
        seen: Tensor,
    ) -> Tensor:
        """[N] the object that each candidate is positive for.

        Args:
            near: [V] rows; both: [G, V] of ``_zones``; scores: [V, C+1]; seen: [V, D, 4].
        """
        owner = no_owners(boxes)
        if not len(near):
            return owner
        ious = predicted_ious(seen, objects, labels)
        cost = class_cost(scores, labels) - self.iou_weight * (ious + SMALLEST_IOU).log()
        cost = cost + FAR * ~both
        rows = smallest(cost, self.top)
        highest = ious.topk(min(self.top, len(near))).values
        count = highest.sum(1).long().clamp(min=1)
        taken = torch.arange(rows.shape[1], device=rows.device) < count[:, None]
        matches = torch.zeros_like(both).scatter(1, rows, taken)
        several = matches.sum(0) > 1
        own = torch.where(several, cost.argmin(0), matches.long().argmax(0))
        owner[near] = own.masked_fill(~matches.any(0), NO_OBJECT)
        return owner


def class_cost(scores: Tensor, labels: Tensor) -> Tensor:
    """[G, V] binary cross entropy of the C scores against each object's class, summed.

    Logarithms are bounded at -100, as in torch.

    Args:
        scores: [V, C+1], column 0 = background, not read; labels: [G] in 1..C.
    """
    hit, miss = scores[:, 1:].log().clamp(min=-100), (-scores[:, 1:]).log1p().clamp(min=-100)
    wanted = F.one_hot(labels - 1, hit.shape[1]).to(hit)  # [G, C]
    return -(wanted @ hit.T + (1 - wanted) @ miss.T)
