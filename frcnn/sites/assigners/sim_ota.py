"""SimOTA (YOLOX, Ge et al., arXiv 2107.08430).

Shape letters: N candidates and G objects of one image, V of the candidates near an object, C object
classes.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.sites.assigners.contract import Assigned, Outputs, Unassigned
from frcnn.sites.assigners.pairs import (
    NO_OBJECT,
    assemble_owned,
    centers,
    inside,
    no_owners,
    object_chunks,
    pair_ious,
    smallest,
)
from samplers.arguments import (
    check_above_zero,
    check_at_least_one,
    check_not_negative,
    check_share,
)

FAR = 1e5  # cost of a candidate outside an object or its centre zone
SMALLEST_IOU = 1e-7


@dataclass(frozen=True)
class SimOTA:
    """Each object takes the candidates that are cheapest for it *now*, as many as fit it well.

    A candidate is considered if its centre lies in any object, or in the centre zone of any: a
    square that reaches ``radius`` strides to each side of the object's centre. For each pair of
    such a candidate and an object

        ``cost = BCE(scores, the object's class) + iou_weight * -log(IoU of the predicted box)``

    plus 1e5 unless the centre lies in this object and in its centre zone. An object takes its
    ``max(1, floor(sum of its 10 highest IoUs))`` cheapest candidates. A candidate that several took
    goes to the object with the lowest cost. All others are background.

    Scores are those of the class loss. Released code takes the BCE of
    ``sqrt(score * objectness)``, the mean of two scores; the networks here have one.

    Attributes:
        radius: half the side of the centre zone, in strides of the candidate's level, > 0.
        top: IoUs that are summed, at least 1.
        iou_weight: of the IoU's cost, >= 0.
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area
            (crowd, difficult).

    Raises:
        ValueError: an argument out of range; candidates without levels.

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
        check_above_zero("radius", self.radius)
        check_at_least_one("top", self.top)
        check_not_negative("iou_weight", self.iou_weight)
        check_share("ignore_ioa", self.ignore_ioa)

    def __call__(self, candidates: Unassigned) -> Assigned:
        """Label the images of a batch by one preview of the candidates near objects."""
        if candidates.level is None:
            raise ValueError("SimOTA needs the pyramid level of each candidate")
        strides = torch.tensor(candidates.strides, device=candidates.level.device)
        stride = strides[candidates.level]
        images = list(zip(candidates.boxes, candidates.objects, strict=True))
        near = [self._near(boxes, objects, stride) for boxes, objects in images]
        first = torch.tensor([0, *candidates.sizes]).cumsum(0).tolist()
        stacked = [image.rows + start for image, start in zip(near, first, strict=False)]
        predicted = candidates.predict(torch.cat(stacked))
        counts = [len(image.rows) for image in near]
        outputs = map(Outputs, predicted.scores.split(counts), predicted.boxes.split(counts))
        parts = zip(near, candidates.objects, candidates.object_labels, outputs, strict=True)
        owner = [no_owners(boxes) for boxes in candidates.boxes]
        for own, (image, objects, labels, output) in zip(owner, parts, strict=True):
            if len(image.rows):
                own[image.rows] = self._owners(image.central, objects, labels, output)
        return assemble_owned(candidates, owner, self.ignore_ioa)

    def _near(self, boxes: Tensor, objects: Tensor, stride: Tensor) -> "Near":
        """The candidates of an image that are considered."""
        points, reach = centers(boxes), self.radius * stride
        is_near = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        central = [is_near.new_zeros(0, len(boxes))]
        for part in object_chunks(objects, boxes):
            in_object = inside(points, objects[part, None], 0.0)
            distance = (points - centers(objects[part])[:, None]).abs()
            in_zone = (distance < reach[:, None]).all(-1)
            is_near |= (in_object | in_zone).any(0)
            central.append(in_object & in_zone)
        rows = torch.where(is_near)[0]
        return Near(rows, torch.cat(central)[:, rows])

    def _owners(self, central: Tensor, objects: Tensor, labels: Tensor, output: Outputs) -> Tensor:
        """[V] the object that each of the considered candidates is positive for.

        Args:
            central: [G, V], of ``Near``.
            output: of the V candidates.
        """
        ious = pair_ious(output.boxes, objects, labels)
        cost = class_cost(output.scores, labels) - self.iou_weight * (ious + SMALLEST_IOU).log()
        cost = cost + FAR * ~central
        cheapest = smallest(cost, self.top)
        highest = ious.topk(cheapest.shape[1]).values
        count = highest.sum(1).long().clamp(min=1)
        is_taken = torch.arange(cheapest.shape[1], device=count.device) < count[:, None]
        taken = torch.zeros_like(central).scatter(1, cheapest, is_taken)
        several = taken.sum(0) > 1
        own = torch.where(several, cost.argmin(0), taken.long().argmax(0))
        return own.masked_fill(~taken.any(0), NO_OBJECT)


class Near(NamedTuple):
    """The candidates of one image that are considered.

    Attributes:
        rows: [V] of the N candidates.
        central: [G, V] bool: the centre lies in the object and in its centre zone.
    """

    rows: Tensor
    central: Tensor


def class_cost(scores: Tensor, labels: Tensor) -> Tensor:
    """[G, V] binary cross entropy of the C scores against each object's class, summed.

    Logarithms are bounded at -100, as in torch.

    Args:
        scores: [V, C+1], column 0 = background, not read; labels: [G] in 1..C.
    """
    hit, miss = scores[:, 1:].log().clamp(min=-100), (-scores[:, 1:]).log1p().clamp(min=-100)
    wanted = F.one_hot(labels - 1, hit.shape[1]).to(hit)  # [G, C]
    return -(wanted @ hit.T + (1 - wanted) @ miss.T)
