"""Intersection over union of boxes."""

from torch import Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[...] IoU of boxes [4, ...] that broadcast; NaN if neither box has an area."""
    width = a[2].minimum(b[2]).sub_(a[0].maximum(b[0])).clamp_(min=0)
    intersection = a[3].minimum(b[3]).sub_(a[1].maximum(b[1])).clamp_(min=0).mul_(width)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return intersection.div_(areas.sub_(intersection))
