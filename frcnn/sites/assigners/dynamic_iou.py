"""Dynamic label assignment (Dynamic R-CNN, Zhang et al., ECCV 2020, arXiv 2004.06002)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frcnn.sites.assigners.contract import Assigned, Unassigned
from frcnn.sites.assigners.max_iou import MaxIoU
from samplers.arguments import check_at_least_one, check_share


class DynamicIoU(nn.Module):
    """``MaxIoU`` whose threshold rises with the quality of the proposals.

    In each batch the ``top``-th highest IoU of each image that has objects is averaged over the
    images of all processes. Every ``interval`` batches the threshold becomes the mean of the
    last ``interval`` of these numbers, but at least ``min_threshold``. What is below it is
    background.

    Differs from mmdetection's: the statistic is over all processes (there one GPU), images without
    objects do not count, a batch without any object is not counted, and the state is saved. Objects
    that are appended to the proposals count in the statistic, as there.

    With ``trainer.accumulate`` an optimizer step has several batches.

    Args:
        min_threshold: in [0, 1].
        start: threshold until the first update, in [min_threshold, 1]; 0.5 in mmdetection.
        top: K_I, the IoU that is recorded, at least 1; with fewer candidates the lowest IoU.
        interval: C, batches between updates, at least 1.
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area
            (crowd, difficult).

    Raises:
        ValueError: an argument out of range, or a loaded state that this cannot have had.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 2]])
    >>> candidates = Unassigned([boxes], [boxes[:1]], [torch.tensor([3])], [boxes[:0]])
    >>> assigner = DynamicIoU(top=2, interval=1)
    >>> assigner(candidates).labels  # IoU 1, 0.6, 0.2; the threshold is 0.5
    tensor([3, 3, 0])
    >>> assigner.threshold  # the second highest IoU
    tensor(0.6000)
    """

    unfit = {
        kind: "it follows proposals that improve, and the IoUs of anchors do not change"
        for kind in ("rpn", "dense")
    }
    threshold: Tensor
    iou_sum: Tensor
    steps: Tensor

    def __init__(
        self,
        min_threshold: float = 0.4,
        start: float = 0.5,
        top: int = 75,
        interval: int = 100,
        ignore_ioa: float = 0.5,
    ) -> None:
        super().__init__()
        check_share("min_threshold", min_threshold)
        if not min_threshold <= start <= 1:
            raise ValueError(f"start must be in [min_threshold={min_threshold}, 1], got {start}")
        check_at_least_one("top", top)
        check_at_least_one("interval", interval)
        check_share("ignore_ioa", ignore_ioa)
        self.min_threshold, self.top, self.interval = min_threshold, top, interval
        self.ignore_ioa = ignore_ioa
        self.register_buffer("threshold", torch.tensor(float(start)))
        # Sum and number of the IoUs recorded since the last update, one per batch.
        self.register_buffer("iou_sum", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(check_state)

    def forward(self, candidates: Unassigned) -> Assigned:
        """Label the images of a batch; the threshold moves in training mode, for the next batch."""
        now = float(self.threshold)
        found = MaxIoU(now, now, ignore_ioa=self.ignore_ioa)(candidates)
        if self.training:
            self._record(found.ious.split(candidates.sizes), candidates)
        return found

    def _record(self, ious: Sequence[Tensor], candidates: Unassigned) -> None:
        """Record this batch's IoU, and update the threshold if it is time to."""
        values = [
            own.topk(min(self.top, len(own))).values[-1]
            for own, objects in zip(ious, candidates.objects, strict=True)
            if len(own) and len(objects)
        ]
        zero = self.iou_sum.new_zeros(())
        own = torch.stack([torch.stack([zero, *values]).sum().to(zero), zero + len(values)])
        both = candidates.total(own)
        if both[1] == 0:
            return
        self.iou_sum += both[0] / both[1]
        self.steps += 1
        if self.steps == self.interval:
            mean = self.iou_sum / self.interval
            self.threshold.copy_(mean.clamp(min=self.min_threshold, max=1))
            self.iou_sum.zero_()
            self.steps.zero_()


def check_state(assigner: nn.Module, keys: object) -> None:
    """Raise ValueError unless a loaded state is one that a ``DynamicIoU`` can have."""
    assert isinstance(assigner, DynamicIoU)
    if not 0 <= assigner.threshold <= 1:
        raise ValueError(f"the threshold is {assigner.threshold.item()}, not in [0, 1]")
    if not 0 <= assigner.steps < assigner.interval:
        raise ValueError(f"{assigner.steps.item()} batches of {assigner.interval} are recorded")
    if not 0 <= assigner.iou_sum <= assigner.interval:
        raise ValueError(f"the recorded IoUs sum to {assigner.iou_sum.item()}")
