"""Online hard example mining (Shrivastava et al., CVPR 2016, arXiv 1604.03540)."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import nms

from samplers.arguments import check_budget, check_choice, check_iou_threshold
from samplers.candidates import Candidates
from samplers.quota import count, take_quota, top

RankBy = Literal["loss", "class_loss"]


class OHEM:
    """The B candidates of highest loss per image.

    As published (the defaults): candidates compete by class + box loss, NMS with the loss as score
    removes near-duplicates, and one budget holds positives and negatives together (sec. 4.2).
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
            return self._hardest(candidates, loss, pool, self.batch_size_per_image).float()
        positive = self._pool(candidates, loss, candidates.positive)
        negative = self._pool(candidates, loss, candidates.negative)
        labels = torch.where(positive | negative, candidates.labels, -1)
        pooled = replace(candidates, labels=labels)
        return take_quota(pooled, loss, self.batch_size_per_image, self.positive_fraction)

    def _hardest(self, candidates: Candidates, loss: Tensor, mask: Tensor, number: int) -> Tensor:
        """[N] bool: the ``number`` highest losses of the mask, per image."""
        quota = torch.full((candidates.num_images,), number, device=loss.device)
        return top(candidates, loss, mask, quota, number)

    def _pool(self, candidates: Candidates, loss: Tensor, mask: Tensor) -> Tensor:
        """[N] bool: the candidates of the mask that compete, with NMS at least the hardest B.

        Greedy NMS never looks at a lower loss, so the first B survivors of an image depend only on
        its hardest candidates. NMS therefore runs on a window of these, which grows until B
        survive: near-duplicates are few, and the cost of NMS grows with the square of the window.
        """
        if self.nms_iou is None:
            return mask
        sizes = candidates.pad_by_image(mask).sum(1)
        window = 5 * self.batch_size_per_image // 4
        while True:
            rows = torch.where(self._hardest(candidates, loss, mask, window))[0]
            survives = nms_by_label(candidates, loss, rows, self.nms_iou)
            survivors = candidates.pad_by_image(survives).sum(1)
            if ((survivors >= self.batch_size_per_image) | (sizes <= window)).all():
                return survives
            window *= 2


def nms_by_label(candidates: Candidates, loss: Tensor, rows: Tensor, threshold: float) -> Tensor:
    """[N] bool: the rows that survive NMS among the rows of equal image and label."""
    survives = torch.zeros_like(candidates.labels, dtype=torch.bool)
    if not len(rows):
        return survives
    boxes = candidates.boxes[rows].double()
    # Move the boxes of each label away from all others. In float32 many labels would leave too
    # few digits for the boxes.
    boxes += (candidates.labels[rows] * (1 + boxes.max() - boxes.min()))[:, None]
    sizes = count(candidates.image[rows], candidates.num_images).tolist()
    by_image = (values.split(sizes) for values in (rows, boxes, loss[rows].double()))
    for image_rows, image_boxes, image_loss in zip(*by_image, strict=True):
        survives[image_rows[nms(image_boxes, image_loss, threshold)]] = True
    return survives
