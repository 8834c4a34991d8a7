"""Generalized IoU of decoded boxes (Rezatofighi et al., arXiv 1902.09630)."""

from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from frcnn.losses.samples import BOX_PER, Divided, Per, Samples
from samplers.arguments import check_above_zero


class GIoU(Divided):
    """``weight (1 - GIoU)`` of the decoded box and its object, in [0, 2 weight] (algorithm 2).

    Args:
        weight: factor, > 0: it balances one number per box against four elsewhere. The common
            value at the RCNN head is 10.
        per: as for ``SmoothL1``.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> GIoU()(few_samples([1], deltas=[[0, 0, 10, 10]], objects=[[0, 0, 10, 5]]))  # IoU 0.5
    tensor([5.])
    """

    def __init__(self, weight: float = 10.0, per: Per = "sample") -> None:
        super().__init__(per, BOX_PER)
        check_above_zero("weight", weight)
        self.weight = weight

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses of the positives."""
        boxes = samples.decode(samples.deltas)
        return self.weight * generalized_box_iou_loss(boxes, samples.objects, reduction="none")
