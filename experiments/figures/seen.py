"""What a trained detector's sites see: every candidate of some images, and what samplers take.

Shape letters: N candidates of all images, P positives among them, C foreground classes, B binary
problems a candidate.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frcnn.build import prepare
from frcnn.evaluation.load import Trained
from frcnn.losses import ClassLoss
from frcnn.losses.activation import SigmoidLoss
from frcnn.model import Detector
from frcnn.parallel.device import autocast
from frcnn.sites.site import Observer, Site
from samplers import OHEM, PISA, Candidates, IoUBalanced, Random, Sampler


@dataclass
class Seen:
    """The candidates of one site over all images; on the CPU.

    Left out are ignored ones, and the objects that the RCNN head gets among its proposals: the
    samplers chose among these too, but no network has proposed them.

    Attributes:
        labels: [N] int64, 0 background, 1..C.
        ious: [N] with the matched object.
        image: [N] int64, number of the image.
        level: [N] int64, pyramid level, 0 the finest.
        right: [N, B] score in [0, 1] of the right answer, p_t. B = 1, the label's; under a loss
            that asks of each class by itself, the answers to these B = C questions.
        loss: [N] class and box loss.
        errors: [P, 4] predicted less true box deltas of the positives, in their order.
        picks: [N] weights by sampler, 0 = not sampled.
    """

    labels: Tensor
    ious: Tensor
    image: Tensor
    level: Tensor
    right: Tensor
    loss: Tensor
    errors: Tensor
    picks: dict[str, Tensor]

    @property
    def positive(self) -> Tensor:
        """[N] bool."""
        return self.labels > 0

    @property
    def yes(self) -> Tensor:
        """[N, B] bool: the right answer is an object, or the class that was asked for."""
        asked = self.right.shape[1]
        return self.positive[:, None] if asked == 1 else is_class(self.labels, asked)


def look(
    trained: Trained, loader: DataLoader, batch_size_per_image: dict[str, int]
) -> dict[str, Seen]:
    """What both sites see of the images of a loader, with as many proposals as in training.

    Args:
        batch_size_per_image: budget of the samplers, by site.
    """
    detector = trained.detector
    draws = {s.name: samplers(s, batch_size_per_image[s.name]) for s in detector.sites}
    parts: dict[str, list[Seen]] = defaultdict(list)
    images_before: dict[str, int] = defaultdict(int)
    anchors: list[int] = []  # of an image of the batch, at each level

    def count(head: nn.Module, inputs: Any, output: tuple[list[Tensor], list[Tensor]]) -> None:
        anchors[:] = [logits[0].numel() for logits in output[0]]

    def observe(site: str, candidates: Candidates, _: Tensor) -> None:
        seen = one_batch(detector, site, candidates, draws[site], anchors)
        seen.image += images_before[site]
        images_before[site] += candidates.num_images
        parts[site].append(seen)

    with observed(detector, observe, count), torch.inference_mode():
        for images, targets in loader:
            with autocast(trained.device, trained.dtype):
                detector(prepare(images, trained.device), targets)
    return {site: joined(found) for site, found in parts.items()}


@contextmanager
def observed(detector: Detector, observe: Observer, count: Callable) -> Iterator[None]:
    """The sites report to ``observe`` and the RPN's head to ``count``; afterwards nobody listens.

    Meanwhile the RPN of a detector in eval mode keeps as many proposals as in training.
    """
    hook = detector.rpn.head.register_forward_hook(count)
    training = detector.rpn.training
    detector.rpn.training = True  # of the module alone: all that it decides is how many are kept
    for site in detector.sites:
        site.observer = observe
    try:
        yield
    finally:
        for site in detector.sites:
            site.observer = None
        detector.rpn.training = training
        hook.remove()


def samplers(site: Site, batch_size_per_image: int) -> dict[str, Sampler]:
    """The samplers whose picks the papers' figures compare, with the papers' defaults."""
    budget = batch_size_per_image, {"rpn": 0.5, "rcnn": 0.25}[site.name]
    return {
        "random": Random(*budget),
        "ohem": OHEM(batch_size_per_image),
        "iou_balanced": IoUBalanced(*budget, negative_iou=site.matcher.low),
        "pisa": PISA(*budget),
    }


def one_batch(
    detector: Detector,
    site: str,
    candidates: Candidates,
    draws: dict[str, Sampler],
    anchors: Sequence[int],
) -> Seen:
    """The candidates of one batch.

    Args:
        anchors: of an image, at each level.
    """
    shown = candidates.labels >= 0
    if site == "rcnn":
        shown &= ~is_object(candidates)
    rows = torch.where(shown)[0]
    prediction, labels = candidates.predict(rows), candidates.labels[rows]
    positive = rows[labels > 0]
    boxes, objects = candidates.boxes[positive], candidates.gt_boxes[candidates.gt[positive]]
    own = {own.name: own for own in detector.sites}[site]
    coder = own.box_coder
    found = coder.encode_single(prediction.boxes[labels > 0], boxes)
    seen = Seen(
        labels=labels,
        ious=candidates.ious[rows],
        image=candidates.image[rows],
        level=level_of(detector, site, candidates, anchors)[rows],
        right=right_answers(own.class_loss, prediction.scores, labels),
        loss=prediction.loss,
        errors=found - coder.encode_single(objects, boxes),
        picks={name: sampler(candidates)[rows] for name, sampler in draws.items()},
    )
    return moved(seen)


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
    """[N] bool: the box is that of its object, to the last bit."""
    found = torch.zeros_like(candidates.labels, dtype=torch.bool)
    rows = torch.where(candidates.labels > 0)[0]  # the others may have no object at all
    objects = candidates.gt_boxes[candidates.gt[rows]]
    found[rows] = (candidates.boxes[rows] == objects).all(1)
    return found


def level_of(
    detector: Detector, site: str, candidates: Candidates, anchors: Sequence[int]
) -> Tensor:
    """[N] pyramid level of proposals (as RoIAlign takes them) or of anchors.

    The anchors of an image come level by level; their sizes may be the same at every level.
    """
    if site == "rcnn":
        return detector.roi_heads.box_roi_pool.map_levels([candidates.boxes])
    level = torch.arange(len(anchors)).repeat_interleave(torch.tensor(anchors))
    return level.repeat(candidates.num_images).to(candidates.boxes.device)


def moved(seen: Seen) -> Seen:
    """The same on the CPU."""

    def cpu(value: Any) -> Any:
        return {k: v.cpu() for k, v in value.items()} if isinstance(value, dict) else value.cpu()

    return Seen(*(cpu(getattr(seen, field.name)) for field in fields(seen)))


def joined(parts: list[Seen]) -> Seen:
    """The candidates of all batches."""
    names = [field.name for field in fields(Seen) if field.name != "picks"]
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    picks = {name: torch.cat([part.picks[name] for part in parts]) for name in parts[0].picks}
    return Seen(**columns, picks=picks)
