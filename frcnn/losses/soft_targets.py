"""Soft targets of a positive's class: how good its box is, after a start with hard labels.

Shape letters: K samples, P positives.
"""

import torch
from torch import Tensor, nn

from frcnn.losses.samples import Samples
from samplers.arguments import check_not_negative
from samplers.iou import iou


class SoftTargets(nn.Module):
    """``t = 1 - s (1 - q)``, where q is the ``quality`` and s rises from 0 to 1.

    With t = q a positive whose box is bad is nearly background, so bad boxes can keep a new
    detector from learning its classes. In training batch number n (from 0), s is ``n / start``,
    and from ``start`` on it is 1. t has no gradient.

    With ``trainer.accumulate`` an optimizer step has several batches.

    Args:
        start: batches until t is the quality; 0 = from the first batch on.

    Raises:
        ValueError: an argument out of range.
    """

    batches: Tensor

    def __init__(self, start: int) -> None:
        super().__init__()
        check_not_negative("start", start)
        self.start = start
        # Checkpoints have it only where it matters.
        self.register_buffer(
            "batches", torch.zeros((), dtype=torch.int64), persistent=self.start > 0
        )

    @torch.no_grad()
    def forward(self, samples: Samples) -> Tensor:
        """[K] t in [0, 1] of the label's class; of background it is not read."""
        found = quality(samples)
        if self.start == 0:
            return found
        share = (self.batches / self.start).clamp(0, 1)
        if samples.training:
            self.batches += 1
        return 1 - share.to(found) * (1 - found)


@torch.no_grad()
def quality(samples: Samples) -> Tensor:
    """[K] q in [0, 1] of the label's class; of background it is not read.

    The assigner's soft target if it has one (``task_aligned``), else the IoU of the decoded box
    with the object.
    """
    if samples.soft_targets is not None:
        return samples.soft_targets
    found = samples.logits.new_zeros(len(samples.labels))
    found[samples.positive] = predicted_ious(samples).to(found)
    return found


@torch.no_grad()
def predicted_ious(samples: Samples) -> Tensor:
    """[P] IoU of each positive's decoded box with its object."""
    return iou(samples.decode(samples.deltas).T, samples.objects.T)
