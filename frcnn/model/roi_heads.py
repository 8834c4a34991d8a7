"""The RCNN head, whose proposals are the candidates of a site.

Shape letters: N proposals of the batch (images stacked), K rows of them, C object classes.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from frcnn.losses.samples import widened
from frcnn.model.modes import eval_mode, no_graph
from frcnn.sites.assigners import Unassigned
from frcnn.sites.site import Site, unassigned

Features = dict[str, Tensor]
Sizes = list[tuple[int, int]]


class SamplingRoIHeads(RoIHeads):
    """torchvision's box head, with the same parameters and a site.

    The detections use the activation that the class loss asks for. With targets it returns the
    losses in eval mode too, next to the detections.
    """

    site: Site
    append_objects: bool = True  # objects are proposals too, in training and for val/loss
    preview_rows: int = 4096  # proposals that a preview pools at once; limits its memory

    def forward(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of every image (eval mode only) and losses (if there are targets)."""
        losses = {} if targets is None else self._losses(features, proposals, image_shapes, targets)
        if self.training:
            return [], losses
        logits, deltas = self._head(features, proposals, image_shapes)
        return self._detections(logits, deltas, proposals, image_shapes), losses

    def _losses(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        if self.append_objects or not self.training:  # val/loss has one definition
            objects = [t["boxes"].to(proposals[0], non_blocking=True) for t in targets]
            proposals = self.add_gt_proposals(proposals, objects)
        candidates = unassigned(proposals, targets, [target["labels"] for target in targets])

        def head(rows: Tensor) -> tuple[Tensor, Tensor]:
            # Rows ascend, so the head returns the images' boxes in the order of the rows.
            return self._head(features, candidates.split(rows), image_shapes)

        preview = partial(self._preview, candidates, features, image_shapes)
        return self.site(candidates, preview, head, targets)

    def _head(
        self, features: Features, boxes: list[Tensor], image_shapes: Sizes
    ) -> tuple[Tensor, Tensor]:
        """[K, C+1] logits and [K, C+1, 4] deltas, float32."""
        # torchvision guesses the levels' strides from its first batch and keeps them. For images
        # below about 80 pixels the guess depends on their size. A resumed run has another first
        # batch and would pool from other places, so the strides are set for every batch.
        self.box_roi_pool.scales = None
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return widened(logits), widened(deltas).unflatten(1, (-1, 4))

    def _preview(
        self, candidates: Unassigned, features: Features, image_shapes: Sizes, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The head's output at some proposals, without gradient; the network does not change."""
        order = candidates.image[rows].argsort(stable=True)
        parts = []
        with no_graph(rows.device), eval_mode(self.box_head, self.box_predictor):
            for chunk in rows[order].split(self.preview_rows):
                parts.append(self._head(features, candidates.split(chunk), image_shapes))
        back = order.argsort()
        logits, deltas = (torch.cat(part)[back] for part in zip(*parts, strict=True))
        return logits, deltas

    def _detections(
        self, logits: Tensor, deltas: Tensor, proposals: list[Tensor], image_shapes: Sizes
    ) -> list[dict[str, Tensor]]:
        sizes = [len(boxes) for boxes in proposals]
        scores = self.site.class_loss.scores(logits)[:, 1:]
        # Without proposals the coder returns a flat tensor.
        boxes = self.box_coder.decode(deltas.flatten(1), proposals).reshape(deltas.shape)
        # All classes share class-agnostic boxes; otherwise column 0 is the background's.
        boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes.expand(-1, scores.shape[1], -1)
        per_image = zip(boxes.split(sizes), scores.split(sizes), image_shapes, strict=True)
        return [self._strongest(*image) for image in per_image]

    def _strongest(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """[N, C, 4] boxes and [N, C] scores of one image -> detections after NMS per class."""
        proposal, column = torch.where(scores > self.score_thresh)
        boxes = clip_boxes_to_image(boxes[proposal, column], size)
        scores, labels = scores[proposal, column], column + 1
        keep = remove_small_boxes(boxes, min_size=1e-2)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}
