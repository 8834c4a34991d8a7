"""What an assigner is given and what it returns.

Shape letters: I images, N_i candidates, G_i objects and J_i ignore areas of image i, N candidates
of the batch, K rows of them, L levels of a feature pyramid, C object classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from frcnn.losses.samples import single_total
from samplers.host import Numbers
from samplers.iou import share_inside
from samplers.quota import count

IGNORE, BACKGROUND = -1, 0


@dataclass
class Outputs:
    """What the network says of K candidates now, without gradient.

    Attributes:
        scores: [K, C+1] in [0, 1], column 0 = background; the class loss's activation.
        boxes: [K, D, 4] decoded boxes xyxy in pixels; D = C+1, or 1 where one box serves all
            classes.
    """

    scores: Tensor
    boxes: Tensor


def no_outputs(rows: Tensor) -> Outputs:
    """Default of ``predict``: raises, because no network is attached."""
    raise ValueError("this assigner asks for predictions, and there is no network here")


@dataclass
class Unassigned:
    """The candidates of a batch before they have labels; boxes are xyxy in resized pixels.

    Attributes:
        boxes: [N_i, 4] for each image.
        objects: [G_i, 4] for each image.
        object_labels: [G_i] int64 for each image, 1..C.
        ignore: [J_i, 4] for each image: areas (crowd, difficult) in which background candidates are
            ignored.
        level: [N_i] int64, the pyramid level of each candidate, the same for every image; None at
            a site whose candidates belong to no level (the RCNN head).
        strides: pixels between neighbouring candidates of each of the L levels.
        predict: rows [K] of the stacked candidates -> ``Outputs``. Free at the RPN and at a dense
            site, one more pass of the head at an RCNN head. Every process of a run must call it
            equally often.
        total: a sum over the candidates of this process -> over those of all processes, for an
            assigner that takes a statistic over the batch. Every process calls it equally often.
        kept: rows of each image that the sampler kept; set by the site before it calls the head.
    """

    boxes: Sequence[Tensor]
    objects: Sequence[Tensor]
    object_labels: Sequence[Tensor]
    ignore: Sequence[Tensor]
    level: Tensor | None = None
    strides: Sequence[int] = ()
    predict: Callable[[Tensor], Outputs] = no_outputs
    total: Callable[[Tensor], Tensor] = single_total
    kept: Sequence[int] | None = None

    @property
    def sizes(self) -> list[int]:
        """N_i of each image."""
        return [len(boxes) for boxes in self.boxes]

    @cached_property
    def stacked(self) -> Tensor:
        """[N, 4] boxes of all images."""
        return torch.cat(list(self.boxes))

    @cached_property
    def image(self) -> Tensor:
        """[N] int64, the image of each candidate."""
        indices = [boxes.new_full((len(boxes),), i) for i, boxes in enumerate(self.boxes)]
        return torch.cat(indices).long()

    def split(self, rows: Tensor, sizes: Sequence[int] | None = None) -> list[Tensor]:
        """[K] ascending rows -> the boxes of these rows, [K_i, 4] for each image.

        Args:
            sizes: K_i of each image if the host knows them; else a GPU's host waits for them.
        """
        if sizes is None:
            (sizes,) = self.ask_sizes(rows).read()
        return list(self.stacked[rows].split(list(sizes)))

    def ask_sizes(self, rows: Tensor) -> Numbers:
        """How many of the [K] rows each image has."""
        return Numbers(count(self.image[rows], len(self.boxes)))


@dataclass
class Assigned:
    """The candidates of a batch with their labels.

    The first seven fields are those of ``samplers.Candidates``.

    Attributes:
        boxes: [N, 4].
        labels: [N] int64; -1 ignored, 0 background, 1..C.
        ious: [N] IoU with the object in ``gt``; 0 in an image without objects.
        gt: [N] row of ``gt_boxes`` that the candidate stands for or overlaps most; -1 only in an
            image without objects.
        gt_boxes: [G, 4] objects of the batch.
        image: [N] int64.
        sizes: candidates of each image.
        soft_targets: [N] in [0, 1], how good an example of its object a positive is; None = the
            assigner has none. Losses see it as ``Samples.soft_targets``.
        weights: [N] >= 0, an assigner's own weight of each candidate; None = it has none. Losses
            see it as ``Samples.assigner_weights``; nothing else applies it.
        placeholders: images that only fill an empty batch; set by the site.
    """

    boxes: Tensor
    labels: Tensor
    ious: Tensor
    gt: Tensor
    gt_boxes: Tensor
    image: Tensor
    sizes: Sequence[int] = ()
    soft_targets: Tensor | None = None
    weights: Tensor | None = None
    placeholders: int = 0


class Assigner(Protocol):
    """Boxes and objects -> labels.

    One that has a state is an ``nn.Module``. One that its definition forbids at a kind of site says
    so in an attribute ``unfit``: kind -> reason.
    """

    def __call__(self, candidates: Unassigned) -> Assigned: ...


def assemble(
    candidates: Unassigned,
    labels: Sequence[Tensor],
    ious: Sequence[Tensor],
    gt: Sequence[Tensor],
    soft_targets: Sequence[Tensor] | None = None,
    weights: Sequence[Tensor] | None = None,
) -> Assigned:
    """Stack what an assigner found for each image; numbers the objects over the batch.

    Args:
        labels, ious, gt: [N_i] for each image; ``gt`` counts the objects of its own image.
        soft_targets, weights: [N_i] for each image, or None.
    """
    first_object = [0, *accumulate(len(objects) for objects in candidates.objects)]
    numbered = [
        torch.where(row >= 0, row + first, -1) for row, first in zip(gt, first_object, strict=False)
    ]
    return Assigned(
        boxes=candidates.stacked,
        labels=torch.cat(list(labels)),
        ious=torch.cat(list(ious)),
        gt=torch.cat(numbered),
        gt_boxes=torch.cat(list(candidates.objects)),
        image=candidates.image,
        sizes=candidates.sizes,
        soft_targets=None if soft_targets is None else torch.cat(list(soft_targets)),
        weights=None if weights is None else torch.cat(list(weights)),
    )


def ignore_background_inside(
    labels: Tensor, boxes: Tensor, areas: Tensor, ignore_ioa: float
) -> Tensor:
    """[..., N] labels in which background inside an ignore area is ignored.

    Args:
        boxes: [..., N, 4]; areas: [..., J, 4].
        ignore_ioa: background is ignored if more than this share of it lies in one area.
    """
    if not areas.shape[-2]:
        return labels
    shares = share_inside(boxes.movedim(-1, 0)[..., None], areas.movedim(-1, 0)[..., None, :])
    covered = shares.amax(-1) > ignore_ioa  # [..., N, J] -> [..., N]
    return labels.masked_fill(covered & (labels == BACKGROUND), IGNORE)
