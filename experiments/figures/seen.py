"""What a trained detector's sites see: every candidate of some images, and what samplers take.

Shape letters: N candidates of all images, P positives among them, C foreground classes, B binary
problems per candidate.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from frcnn.losses import ClassLoss
from frcnn.losses.activation import SigmoidLoss
from frcnn.sites.site import Site
from frcnn.sites.weighers import SWN
from frcnn.sites.weighers.swn import features
from samplers import Candidates, Prediction
from samplers.iou import iou
from samplers.local_rank import hierarchical_local_rank
from samplers.quota import starts

SHOWN = 4000  # dots per panel and kind; more would hide each other


@dataclass
class Seen:
    """The candidates of one site over all images; on the CPU.

    It has no ignored candidates, and none whose box is exactly that of its object. Training
    appends the objects to the proposals: samplers choose among these too, but no network has
    proposed them.

    Attributes:
        labels: [N] int64, 0 background, 1..C.
        ious: [N] with the matched object.
        image: [N] int64, number of the image, ascending.
        place: [N] int64, number among all candidates of the image, ascending. A proposal or an
            anchor has the same one whatever the annotations.
        level: [N] int64, pyramid level, 0 the finest.
        right: [N, B] score in [0, 1] of the right answer, p_t. B = 1: the score of the label.
            Under a loss of C binary problems B = C: one answer per class.
        object_score: [N] the highest score of an object class.
        loss: [N] class loss + box loss.
        class_loss: [N] class loss alone.
        errors: [P, 4] predicted minus true box deltas of the positives, in their order.
        box_ious: [P] IoU of the predicted box with the matched object.
        hlr: [P] int64, place of the positive in its image by IoU-HLR.
        picks: [N] weights by sampler, 0 = not sampled.
        learned: where the site learns weights (``SWN``), those of each candidate: "class_weight"
            [N] and "box_weight" [P]; elsewhere empty.
    """

    labels: Tensor
    ious: Tensor
    image: Tensor
    place: Tensor
    level: Tensor
    right: Tensor
    object_score: Tensor
    loss: Tensor
    class_loss: Tensor
    errors: Tensor
    box_ious: Tensor
    hlr: Tensor
    picks: dict[str, Tensor]
    learned: dict[str, Tensor] = field(default_factory=dict)

    @property
    def positive(self) -> Tensor:
        """[N] bool."""
        return self.labels > 0

    @property
    def yes(self) -> Tensor:
        """[N, B] bool: the right answer is yes (an object, or of this class)."""
        asked = self.right.shape[1]
        return self.positive[:, None] if asked == 1 else is_class(self.labels, asked)


def one_batch(
    site: Site, candidates: Candidates, rows: Tensor, level: Tensor, picks: dict[str, Tensor]
) -> Seen:
    """What the [K] ``rows`` of a batch show; ``level`` [K] and ``picks`` [K] are of these rows."""
    prediction, labels = candidates.predict(rows), candidates.labels[rows]
    assert prediction.class_loss is not None  # a site's predictions have it
    positive, image = rows[labels > 0], candidates.image[rows]
    boxes, gt = candidates.boxes[positive], candidates.gt[positive]
    objects, found = candidates.gt_boxes[gt], prediction.boxes[labels > 0]
    coder = site.box_coder
    errors = coder.encode_single(found, boxes) - coder.encode_single(objects, boxes)
    ious = iou(found.T, objects.T)
    sizes = len(candidates.gt_boxes), candidates.num_images
    seen = Seen(
        labels=labels,
        ious=candidates.ious[rows],
        image=image,
        place=rows - starts(candidates.image, candidates.num_images)[image],
        level=level,
        right=right_answers(site.class_loss, prediction.scores, labels),
        object_score=prediction.scores[:, 1:].amax(1),
        loss=prediction.loss,
        class_loss=prediction.class_loss,
        errors=errors,
        box_ious=ious,
        hlr=image_hlr(ious, gt, candidates.image[positive], *sizes),
        picks=picks,
        learned=learned_weights(site, prediction, labels, ious, errors),
    )
    return moved(seen)


def image_hlr(ious: Tensor, gt: Tensor, image: Tensor, num_objects: int, num_images: int) -> Tensor:
    """[P] place of each positive in its image by IoU-HLR of PISA (arXiv 1904.04821), 0 first.

    The best box of every object comes first, then every second best, and so on; of equal places
    the higher IoU. Classes compete, as in the paper's figures; its weights rank each class apart.

    Args:
        ious: [P] of the predicted boxes.
        gt: [P] int64 in 0..num_objects-1, the object, numbered over the batch.
    """
    order = ious.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = hierarchical_local_rank(gt[order], image[order], num_objects, num_images)
    return rank


def learned_weights(
    site: Site, prediction: Prediction, labels: Tensor, ious: Tensor, errors: Tensor
) -> dict[str, Tensor]:
    """``Seen.learned`` of [N] candidates, with the [P] IoUs and [P, 4] errors of the positives."""
    if not isinstance(site.weigher, SWN):
        return {}
    positive = torch.where(labels > 0)[0]
    scores = prediction.scores[positive].gather(1, labels[positive][:, None])[:, 0]
    assert prediction.class_loss is not None  # a site's predictions have it
    known = features(positive, ious, scores, prediction.class_loss, errors)
    class_weight, box_weight = (-site.weigher.log_variances(known, positive)).exp().unbind(1)
    return {"class_weight": class_weight, "box_weight": box_weight[positive]}


def right_answers(loss: ClassLoss, scores: Tensor, labels: Tensor) -> Tensor:
    """[N, C+1] scores -> [N, B] p_t of each term of a class loss, as in ``Seen``."""
    if not isinstance(loss, SigmoidLoss):
        return scores.gather(1, labels[:, None])
    classes = scores[:, 1:]
    return torch.where(is_class(labels, classes.shape[1]), classes, 1 - classes)


def is_class(labels: Tensor, classes: int) -> Tensor:
    """[N] labels -> [N, C] bool."""
    return labels[:, None] == torch.arange(1, classes + 1, device=labels.device)


def is_object(candidates: Candidates) -> Tensor:
    """[N] bool: the box is exactly that of its object."""
    found = torch.zeros_like(candidates.labels, dtype=torch.bool)
    rows = torch.where(candidates.labels > 0)[0]  # negatives may have no object
    objects = candidates.gt_boxes[candidates.gt[rows]]
    found[rows] = (candidates.boxes[rows] == objects).all(1)
    return found


def moved(seen: Seen) -> Seen:
    """The same on the CPU."""

    def cpu(value: Any) -> Any:
        return {k: v.cpu() for k, v in value.items()} if isinstance(value, dict) else value.cpu()

    return Seen(*(cpu(getattr(seen, field.name)) for field in fields(seen)))


def joined(parts: list[Seen]) -> Seen:
    """The candidates of all batches."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: torch.cat([value[name] for value in values]) for name in values[0]}
        return torch.cat(values)

    return Seen(*(join([getattr(part, field.name) for part in parts]) for field in fields(Seen)))
