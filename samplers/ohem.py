"""Online hard example mining (Shrivastava et al., CVPR 2016, arXiv 1604.03540)."""

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from samplers.candidates import Candidates
from samplers.quota import check_budget, count, rank_within, take_quota

RANK_BY = ("loss", "class_loss")


class OHEM:
    """The B candidates of highest loss in every image.

    As published (the defaults): candidates compete by class + box loss, near copies are removed by
    NMS with the loss as score, and one budget holds positives and negatives together (sec. 4.2).
    The authors' code runs the NMS among the candidates of one assigned label, so that an object
    never suppresses background; so does this.

    Differs from later re-implementations (mmdetection): those rank by class loss, use no NMS and
    mine positives and negatives apart, each within the usual quota. That is
    ``OHEM(512, positive_fraction=0.25, nms_iou=None, rank_by="class_loss")``.

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
        rows = torch.where(candidates.labels >= 0)[0]
        loss = candidates.loss_of(rows, self.rank_by)
        if self.nms_iou is not None and len(rows):
            keep = self._without_copies(candidates, rows, loss)
            rows, loss = rows[keep], loss[keep]
        fraction = self.positive_fraction
        if fraction is None:
            rank = rank_within(candidates.image[rows], loss, candidates.num_images)
            weights = torch.zeros_like(candidates.labels, dtype=torch.float32)
            weights[rows[rank < self.batch_size_per_image]] = 1
            return weights
        return self._within_quota(candidates, rows, loss, fraction)

    def _pools(self, candidates: Candidates, rows: Tensor) -> tuple[Tensor, int]:
        """[K] the pool a candidate competes in (its image, or image and sign), and their number."""
        image, images = candidates.image[rows], candidates.num_images
        if self.positive_fraction is None:
            return image, images
        return 2 * image + candidates.positive[rows], 2 * images

    def _without_copies(self, candidates: Candidates, rows: Tensor, loss: Tensor) -> Tensor:
        """Indices into ``rows`` of the hardest candidates that NMS among equal labels leaves.

        Greedy NMS never looks at a lower loss, so the first B survivors of a pool need only its
        hardest candidates: the window grows until each pool has B, instead of 250,000 anchors
        being compared with each other.
        """
        pool, pools = self._pools(candidates, rows)
        rank, sizes = rank_within(pool, loss, pools), count(pool, pools)
        group = candidates.labels[rows] * candidates.num_images + candidates.image[rows]
        # batched_nms sets the groups side by side: float32 has no room for many of them, and
        # anchors that begin left of the image would reach into the group before.
        boxes = candidates.boxes[rows].double()
        boxes -= boxes.min()
        window = 8 * self.batch_size_per_image
        while True:
            inside = torch.where(rank < window)[0]
            found = batched_nms(boxes[inside], loss[inside].double(), group[inside], self.nms_iou)
            keep = inside[found]
            survivors = count(pool[keep], pools)
            if ((survivors >= self.batch_size_per_image) | (sizes <= window)).all():
                return keep.sort().values
            window *= 4

    def _within_quota(
        self, candidates: Candidates, rows: Tensor, loss: Tensor, fraction: float
    ) -> Tensor:
        pool, pools = self._pools(candidates, rows)
        rank, labels = torch.zeros_like(candidates.labels), torch.full_like(candidates.labels, -1)
        rank[rows], labels[rows] = rank_within(pool, loss, pools), candidates.labels[rows]
        mined = replace(candidates, labels=labels)
        return take_quota(mined, rank, self.batch_size_per_image, fraction)
