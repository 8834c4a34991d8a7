"""How much boxes overlap.

Boxes are xyxy in pixels with the coordinates first, [4, ...]; the other dimensions broadcast.
"""

import torch
from torch import Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[4, ...] and [4, ...] boxes -> [...] intersection over union; NaN if neither has an area."""
    width = a[2].minimum(b[2]).sub_(a[0].maximum(b[0])).clamp_(min=0)
    intersection = a[3].minimum(b[3]).sub_(a[1].maximum(b[1])).clamp_(min=0).mul_(width)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return intersection.div_(areas.sub_(intersection))


def share_inside(boxes: Tensor, areas: Tensor) -> Tensor:
    """[4, ...] and [4, ...] -> [...] share of each box in its area: intersection over the box."""
    width = (boxes[2].minimum(areas[2]) - boxes[0].maximum(areas[0])).clamp(min=0)
    height = (boxes[3].minimum(areas[3]) - boxes[1].maximum(areas[1])).clamp(min=0)
    own = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
    return width * height / own.clamp(min=torch.finfo(own.dtype).tiny)
