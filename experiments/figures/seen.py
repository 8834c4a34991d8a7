"""What a trained detector's sites see: every candidate of some images, and what samplers take.

Shape letters: N candidates of all images, P positives among them, C foreground classes, B binary
problems per candidate, A anchors per image.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from frcnn.data import prepare
from frcnn.evaluation.load import Trained
from frcnn.losses import ClassLoss
from frcnn.losses.activation import SigmoidLoss
from frcnn.model import Detector
from frcnn.parallel.device import autocast
from frcnn.sites.kinds import KINDS, Kind
from frcnn.sites.site import Site
from frcnn.sites.weighers import SWN
from frcnn.sites.weighers.swn import features
from samplers import OHEM, PISA, Candidates, IoUBalanced, Prediction, Random, Sampler
from samplers.clusters import iou


@dataclass
class Seen:
    """The candidates of one site over all images; on the CPU.

    It has no ignored candidates, and none whose box is exactly that of its object. Training
    appends the objects to the proposals: samplers choose among these too, but no network has
    proposed them.

    Attributes:
        labels: [N] int64, 0 background, 1..C.
        ious: [N] with the matched object.
        image: [N] int64, number of the image.
        level: [N] int64, pyramid level, 0 the finest.
        right: [N, B] score in [0, 1] of the right answer, p_t. B = 1: the score of the label.
            Under a loss of C binary problems B = C: one answer per class.
        loss: [N] class loss + box loss.
        errors: [P, 4] predicted minus true box deltas of the positives, in their order.
        picks: [N] weights by sampler, 0 = not sampled.
        learned: where the site learns weights (``SWN``), those of each candidate and what they are
            drawn against, by name: "class_weight" and "class_loss" [N], "box_weight", "box_loss"
            and "iou" of the predicted box [P]; elsewhere empty.
    """

    labels: Tensor
    ious: Tensor
    image: Tensor
    level: Tensor
    right: Tensor
    loss: Tensor
    errors: Tensor
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


def look(trained: Trained, loader: DataLoader, budget: Mapping[str, int]) -> dict[str, Seen]:
    """What each site sees of the images of a loader, with as many proposals as in training.

    Args:
        budget: examples per image that the compared samplers draw, by site; by default what is
            usual at a site of this kind.
    """
    detector = trained.detector
    views = {
        name: View(site, detector, budget.get(name, KINDS[site.kind].budget))
        for name, site in detector.sites.items()
    }
    with watched(detector, views), torch.inference_mode():
        for images, targets in loader:
            with autocast(trained.device, trained.dtype):
                detector(prepare(images, trained.device), targets)
    return {name: joined(view.parts) for name, view in views.items()}


class View:
    """Collects the candidates of one site, batch by batch.

    Args:
        budget: examples per image that the compared samplers draw.
    """

    def __init__(self, site: Site, detector: Detector, budget: int) -> None:
        self.site = site
        self.poolers = [m for m in detector.modules() if isinstance(m, MultiScaleRoIAlign)]
        self.samplers = samplers(budget, KINDS[site.kind])
        self.anchors: list[Tensor] = []  # of each image of the batch, [A, 4]
        self.per_level: list[int] = []  # how many of an image's anchors are of each level
        self.parts: list[Seen] = []
        self.images = 0

    def keep_anchors(
        self, generator: AnchorGenerator, inputs: tuple[Any, list[Tensor]], output: list[Tensor]
    ) -> None:
        """A forward hook: the anchors of the batch come level by level."""
        per_place = generator.num_anchors_per_location()
        places = [level.shape[-2] * level.shape[-1] for level in inputs[1]]
        self.anchors = output
        self.per_level = [n * a for n, a in zip(places, per_place, strict=True)]

    def observe(self, _: str, candidates: Candidates, __: Tensor) -> None:
        """Keep what a batch shows."""
        rows = torch.where((candidates.labels >= 0) & ~is_object(candidates))[0]
        picks = {name: sampler(candidates)[rows] for name, sampler in self.samplers.items()}
        seen = one_batch(self.site, candidates, rows, self.levels(candidates)[rows], picks)
        seen.image += self.images
        self.images += candidates.num_images
        self.parts.append(seen)

    def levels(self, candidates: Candidates) -> Tensor:
        """[N] pyramid level of anchors, else the one that RoIAlign pools a proposal from.

        Anchors are told by their place: their sizes may be the same at every level.
        """
        boxes = candidates.boxes
        if torch.equal(boxes, torch.cat(self.anchors)):
            each = torch.tensor(self.per_level, device=boxes.device)
            level = torch.arange(len(each), device=boxes.device).repeat_interleave(each)
            return level.repeat(candidates.num_images)
        mapper = self.poolers[0].map_levels
        assert mapper is not None  # RoIAlign has pooled these proposals
        return mapper([boxes])


@contextmanager
def watched(detector: Detector, views: Mapping[str, View]) -> Iterator[None]:
    """Each view watches its site and the anchors; afterwards all is as before.

    Meanwhile an RPN of a detector in eval mode keeps as many proposals as in training.
    """
    networks = [m for m in detector.modules() if isinstance(m, RegionProposalNetwork)]
    generators = [m for m in detector.modules() if isinstance(m, AnchorGenerator)]
    modes = [rpn.training for rpn in networks]
    hooks = [g.register_forward_hook(v.keep_anchors) for g in generators for v in views.values()]
    for rpn in networks:
        rpn.training = True  # of the module alone: all that it decides is how many are kept
    for name, view in views.items():
        detector.sites[name].observer = view.observe
    try:
        yield
    finally:
        for name in views:
            detector.sites[name].observer = None
        for rpn, mode in zip(networks, modes, strict=True):
            rpn.training = mode
        for hook in hooks:
            hook.remove()


def samplers(budget: int, kind: Kind) -> dict[str, Sampler]:
    """The samplers whose picks the papers' figures compare, with the papers' defaults."""
    share = kind.positive_fraction
    return {
        "random": Random(budget, share),
        "ohem": OHEM(budget),
        "iou_balanced": IoUBalanced(budget, share, negative_iou=kind.low),
        "pisa": PISA(budget, share),
    }


def one_batch(
    site: Site, candidates: Candidates, rows: Tensor, level: Tensor, picks: dict[str, Tensor]
) -> Seen:
    """What the [K] ``rows`` of a batch show; ``level`` [K] and ``picks`` [K] are of these rows."""
    prediction, labels = candidates.predict(rows), candidates.labels[rows]
    positive = rows[labels > 0]
    boxes, objects = candidates.boxes[positive], candidates.gt_boxes[candidates.gt[positive]]
    coder = site.box_coder
    found = coder.encode_single(prediction.boxes[labels > 0], boxes)
    errors = found - coder.encode_single(objects, boxes)
    seen = Seen(
        labels=labels,
        ious=candidates.ious[rows],
        image=candidates.image[rows],
        level=level,
        right=right_answers(site.class_loss, prediction.scores, labels),
        loss=prediction.loss,
        errors=errors,
        picks=picks,
        learned=learned_weights(site, prediction, labels, objects, errors),
    )
    return moved(seen)


def learned_weights(
    site: Site, prediction: Prediction, labels: Tensor, objects: Tensor, errors: Tensor
) -> dict[str, Tensor]:
    """``Seen.learned`` of [N] candidates, with the [P, 4] objects and errors of the positives."""
    if not isinstance(site.weigher, SWN):
        return {}
    positive = torch.where(labels > 0)[0]
    ious = iou(prediction.boxes[positive].T, objects.T)
    scores = prediction.scores[positive].gather(1, labels[positive][:, None])[:, 0]
    class_loss = prediction.class_loss
    assert class_loss is not None  # a site's predictions have it
    known = features(positive, ious, scores, class_loss, errors)
    log_variances = site.weigher.log_variances(known, positive)
    class_weight, box_weight = (-log_variances).exp().unbind(1)
    return {
        "class_weight": class_weight,
        "class_loss": class_loss,
        "box_weight": box_weight[positive],
        "box_loss": (prediction.loss - class_loss)[positive],
        "iou": ious,
    }


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
