"""Online hard example mining (Shrivastava et al., CVPR 2016, arXiv 1604.03540)."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from samplers.arguments import check_budget, check_choice, check_iou_threshold
from samplers.candidates import Candidates
from samplers.nms_by_label import first_survivors
from samplers.quota import pick_per_image, take_quota

RankBy = Literal["loss", "class_loss"]


class OHEM:
    """The B candidates of highest loss per image.

    As published (the defaults): candidates compete by class + box loss, NMS with the loss as score
    removes near-duplicates, and one budget holds positives and negatives together.
    As in the authors' code, NMS runs per assigned label, so that an object never suppresses
    background.

    Differs from later re-implementations (mmdetection): those rank by class loss, use no NMS, and
    mine positives and negatives separately, each within its usual quota. That is
    ``OHEM(512, positive_fraction=0.25, nms_iou=None, rank_by="class_loss")``. R-FCN ranks all
    images of a batch together, without NMS; this is not offered, because a budget is per image.

    Row 1 has nearly the box of row 0 and the same label, so the budget of 2 goes to rows 0 and 2:

    >>> from samplers.examples import one_image
    >>> boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10], [80, 0, 90, 10]]
    >>> candidates = one_image(labels=[0, 0, 0, 1], loss=[3.0, 2.9, 2.0, 1.0], boxes=boxes)
    >>> OHEM(2)(candidates).tolist()
    [1.0, 0.0, 1.0, 0.0]

    Args:
        batch_size_per_image: B, at least 1. The paper: 64 (128 for two images).
        positive_fraction: None = one budget for all; in [0, 1] = the largest share of positives,
            the rest are negatives.
        nms_iou: IoU above which the candidate of lower loss is removed, in (0, 1]; None = no NMS.
        rank_by: "loss" or "class_loss".

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: on call, if a loss is not finite.
    """

    def __init__(
        self,
        batch_size_per_image: int,
        positive_fraction: float | None = None,
        nms_iou: float | None = 0.7,
        rank_by: RankBy = "loss",
    ) -> None:
        check_budget(batch_size_per_image, 0 if positive_fraction is None else positive_fraction)
        if nms_iou is not None:
            check_iou_threshold("nms_iou", nms_iou)
        check_choice("rank_by", rank_by, get_args(RankBy))
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.nms_iou = nms_iou
        self.rank_by: RankBy = rank_by

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        loss = candidates.losses(self.rank_by)
        if self.positive_fraction is None:
            pool = self._pool(candidates, loss, candidates.labels >= 0)
            return pick_per_image(candidates, loss, pool, self.batch_size_per_image).float()
        positive = self._pool(candidates, loss, candidates.positive)
        negative = self._pool(candidates, loss, candidates.negative)
        labels = torch.where(positive | negative, candidates.labels, -1)
        pooled = replace(candidates, labels=labels)
        return take_quota(pooled, loss, self.batch_size_per_image, self.positive_fraction)

    def _pool(self, candidates: Candidates, loss: Tensor, mask: Tensor) -> Tensor:
        """[N] bool: the candidates of the mask that compete, with NMS at least the hardest B."""
        if self.nms_iou is None:
            return mask
        return first_survivors(candidates, loss, mask, self.nms_iou, self.batch_size_per_image)
