"""The RCNN head, whose proposals are the candidates of a site.

Shape letters: N proposals of the batch (images stacked), K rows of them, C object classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from frcnn.losses.samples import widened
from frcnn.model.box_head import PreviewedRows
from frcnn.model.modes import eval_mode, no_graph
from frcnn.model.roi_align import ask_levels
from frcnn.sites.assigners import Unassigned
from frcnn.sites.site import Site, stack_candidates
from samplers.host import Numbers, rows_where

Features = dict[str, Tensor]
Sizes = list[tuple[int, int]]


@dataclass
class Sampled:
    """What a site sampled in one pass: proposals, and objects that were appended to them.

    Attributes:
        candidates: all of the site.
        sizes: proposals of each image; the image's candidates after these are objects.
        rows: [K] of the candidates, ascending.
        deltas: [K, D, 4] that the head predicts for them, without gradient.
    """

    candidates: Unassigned
    sizes: Sequence[int]
    rows: Tensor
    deltas: Tensor

    def proposals(self) -> tuple[list[Tensor], Tensor]:
        """[M_i, 4] proposals of each image, without the objects, and their [M, D, 4] deltas."""
        own = _is_proposal(self.candidates, self.sizes)[self.rows]
        image = self.candidates.image[self.rows]
        none = own.new_zeros(len(self.sizes), dtype=torch.int64)
        (sizes,) = Numbers(none.scatter_add(0, image, own.long())).read()
        own = rows_where(own, sum(sizes))
        return self.candidates.split(self.rows[own], sizes), self.deltas[own]


class SamplingRoIHeads(RoIHeads):
    """torchvision's box head, with the same parameters and a site.

    The detections use the activation that the class loss asks for. With targets it returns the
    losses in eval mode too, next to the detections.
    """

    site: Site
    append_objects: bool = True  # in training; val/loss has one definition, with objects
    preview_rows: int = 4096  # proposals that a preview pools at once; limits its memory

    def compile_parts(self, **options: Any) -> None:
        """Let ``torch.compile`` take the layers after RoI pooling; see ``Detector``."""
        self.box_head.compile(**options)
        self.box_predictor.compile(**options)

    def forward(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of every image (eval mode only) and losses (if there are targets)."""
        if self.training:
            assert targets is not None, "training needs targets"
            losses, _ = self.learn(features, proposals, image_shapes, targets)
            return [], losses
        logits, deltas, losses = self.evaluate(features, proposals, image_shapes, targets)
        scores = self.site.class_loss.scores(logits)[:, 1:]
        return self.detections(scores, deltas, proposals, image_shapes), losses

    def evaluate(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Sequence[dict[str, Tensor]] | None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """``outputs`` of all proposals, and the validation losses (if there are targets).

        The head runs once, over proposals and objects: both read their rows of its output.
        """
        if targets is None:
            return *self.outputs(features, proposals, image_shapes), {}
        candidates = self._candidates(proposals, targets, append=True)
        logits, deltas = self.outputs(features, list(candidates.boxes), image_shapes)

        def head(rows: Tensor) -> tuple[Tensor, Tensor]:
            return logits[rows], deltas[rows]

        losses = self.site(candidates, head, head, targets)
        own = _is_proposal(candidates, [len(boxes) for boxes in proposals])
        return logits[own], deltas[own], losses

    def learn(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Sequence[dict[str, Tensor]],
    ) -> tuple[dict[str, Tensor], Sampled]:
        """The terms of the site in training, and what it sampled."""
        sizes = [len(boxes) for boxes in proposals]
        candidates = self._candidates(proposals, targets, self.append_objects)
        sampled: list[Sampled] = []
        box_head = PreviewedRows(self.box_head, len(candidates.stacked))

        def head(rows: Tensor) -> tuple[Tensor, Tensor]:
            # Rows ascend, so the head returns the images' boxes in the order of the rows.
            boxes, reused = candidates.split(rows, candidates.kept), partial(box_head, rows)
            logits, deltas = self.outputs(features, boxes, image_shapes, reused)
            sampled.append(Sampled(candidates, sizes, rows, deltas.detach()))
            return logits, deltas

        look = partial(self._preview, candidates, features, image_shapes)
        preview = partial(look, keep=box_head.preview)
        return self.site(candidates, preview, head, targets, observed=look), sampled[0]

    def _candidates(
        self, proposals: list[Tensor], targets: Sequence[dict[str, Tensor]], append: bool
    ) -> Unassigned:
        """The proposals of each image; ``append``: its objects after them."""
        if append:
            objects = [t["boxes"].to(proposals[0], non_blocking=True) for t in targets]
            proposals = self.add_gt_proposals(proposals, objects)
        return stack_candidates(proposals, targets, [target["labels"] for target in targets])

    def outputs(
        self,
        features: Features,
        boxes: list[Tensor],
        image_shapes: Sizes,
        box_head: Callable[[Tensor], Tensor] | None = None,
        on_levels: Numbers | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[K, C+1] logits and [K, C+1, 4] deltas, float32.

        Args:
            box_head: pooled rows -> what the predictor reads; None = ``self.box_head``.
            on_levels: of ``ask_levels``, if they were asked for before.
        """
        # torchvision guesses the levels' strides from its first batch and keeps them. For images
        # below about 80 pixels the guess depends on their size. A resumed run has another first
        # batch and would pool from other places, so the strides are set for every batch.
        self.box_roi_pool.scales = None
        known = {} if on_levels is None else {"on_levels": on_levels}
        pooled = self.box_roi_pool(features, boxes, image_shapes, **known)
        logits, deltas = self.box_predictor((box_head or self.box_head)(pooled))
        return widened(logits), widened(deltas).unflatten(1, (-1, 4))

    def _preview(
        self,
        candidates: Unassigned,
        features: Features,
        image_shapes: Sizes,
        rows: Tensor,
        keep: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The head's output at some proposals, without gradient; the network does not change.

        Args:
            keep: candidates and their pooled rows -> what the predictor reads; None = the head.
        """
        order = candidates.image[rows].argsort(stable=True)
        parts = []
        with no_graph(rows.device), eval_mode(self.box_head, self.box_predictor):
            chunks = rows[order].split(self.preview_rows)
            # All chunks ask before the first one reads: a GPU's host waits once.
            sizes = [candidates.ask_sizes(chunk) for chunk in chunks]
            boxes = [candidates.stacked[chunk] for chunk in chunks]
            on_levels = [ask_levels(self.box_roi_pool, features, b, image_shapes) for b in boxes]
            for chunk, asked, known in zip(chunks, sizes, on_levels, strict=True):
                split = candidates.split(chunk, asked.read()[0])
                box_head = None if keep is None else partial(keep, chunk)
                parts.append(self.outputs(features, split, image_shapes, box_head, known))
        back = order.argsort()
        logits, deltas = (torch.cat(part)[back] for part in zip(*parts, strict=True))
        return logits, deltas

    def detections(
        self, scores: Tensor, deltas: Tensor, proposals: list[Tensor], image_shapes: Sizes
    ) -> list[dict[str, Tensor]]:
        """[N, C] scores and [N, D, 4] deltas of all proposals -> detections of every image."""
        sizes = [len(boxes) for boxes in proposals]
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


def _is_proposal(candidates: Unassigned, sizes: Sequence[int]) -> Tensor:
    """[N] whether a candidate is one of the image's first ``sizes``; the others are objects."""
    device = candidates.stacked.device
    places = [torch.arange(len(boxes), device=device) for boxes in candidates.boxes]
    return torch.cat([place < size for place, size in zip(places, sizes, strict=True)])
