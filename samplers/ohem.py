"""Online hard example mining (Shrivastava et al., CVPR 2016, arXiv 1604.03540)."""

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import nms

from samplers.candidates import Candidates
from samplers.quota import check_budget, count, take_quota, top

RANK_BY = ("loss", "class_loss")


class OHEM:
    """The B candidates of highest loss in every image.

    As published (the defaults): candidates compete by class + box loss, near copies are removed by
    NMS with the loss as score, and one budget holds positives and negatives together (sec. 4.2).
    The authors' code runs the NMS among the candidates of one assigned label, so that an object
    never suppresses background; so does this.

    Differs from later re-implementations (mmdetection): those rank by class loss, use no NMS and
    mine positives and negatives apart, each within the usual quota. That is
    ``OHEM(512, positive_fraction=0.25, nms_iou=None, rank_by="class_loss")``. R-FCN's ranks all
    images of a call together, without NMS: not offered, since a budget here is an image's.

    Args:
        batch_size_per_image: B, at least 1. The paper: 64 an image (128 over two).
        positive_fraction: None = one budget for all; in [0, 1] = positives up to this share, the
            rest negatives.
        nms_iou: IoU above which the candidate of lower loss is dropped, in (0, 1]; None = no NMS.
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
        rank_by: str = "loss",
    ) -> None:
        check_budget(batch_size_per_image, 0 if positive_fraction is None else positive_fraction)
        if nms_iou is not None and not 0 < nms_iou <= 1:
            raise ValueError(f"nms_iou must be in (0, 1] or null, got {nms_iou}")
        if rank_by not in RANK_BY:
            raise ValueError(f"rank_by must be one of {', '.join(RANK_BY)}, got {rank_by!r}")
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.nms_iou = nms_iou
        self.rank_by = rank_by

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        loss = candidates.losses(self.rank_by)
        pools = [candidates.labels >= 0]
        if self.positive_fraction is not None:
            pools = [candidates.positive, candidates.negative]
        if self.nms_iou is not None:
            pools = [self._without_copies(candidates, loss, pool) for pool in pools]
        if self.positive_fraction is not None:
            labels = torch.where(pools[0] | pools[1], candidates.labels, -1)
            mined = replace(candidates, labels=labels)
            return take_quota(mined, loss, self.batch_size_per_image, self.positive_fraction)
        return self._hardest(candidates, loss, pools[0], self.batch_size_per_image).float()

    def _hardest(self, candidates: Candidates, loss: Tensor, among: Tensor, number: int) -> Tensor:
        """[N] bool: so many of highest loss in every image."""
        quota = torch.full((candidates.num_images,), number, device=loss.device)
        return top(candidates, loss, among, quota, number)

    def _without_copies(self, candidates: Candidates, loss: Tensor, pool: Tensor) -> Tensor:
        """[N] bool: the hardest of a pool that NMS among equal labels of an image leaves.

        Greedy NMS never looks at a lower loss, so the first B survivors of an image need only its
        hardest candidates: the window grows until there are B, instead of 250,000 anchors being
        compared with each other. Few are copies, and NMS costs the square of the window.
        """
        sizes = candidates.by_image(pool).sum(1)
        window = 5 * self.batch_size_per_image // 4
        while True:
            inside = self._hardest(candidates, loss, pool, window)
            left = self._suppressed(candidates, loss, torch.where(inside)[0])
            survivors = candidates.by_image(left).sum(1)
            if ((survivors >= self.batch_size_per_image) | (sizes <= window)).all():
                return left
            window *= 2

    def _suppressed(self, candidates: Candidates, loss: Tensor, rows: Tensor) -> Tensor:
        """[N] bool: what NMS among the rows of one label and image leaves of them."""
        left = torch.zeros_like(candidates.labels, dtype=torch.bool)
        if not len(rows):
            return left
        boxes = candidates.boxes[rows].double()
        # A label's boxes lie apart from all others'; float32 would have no room for many labels.
        boxes += (candidates.labels[rows] * (1 + boxes.max() - boxes.min()))[:, None]
        sizes = count(candidates.image[rows], candidates.num_images).tolist()
        for here, place, value in zip(
            rows.split(sizes), boxes.split(sizes), loss[rows].double().split(sizes), strict=True
        ):
            left[here[nms(place, value, self.nms_iou)]] = True
        return left
