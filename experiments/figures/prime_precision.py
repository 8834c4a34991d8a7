"""What is it worth to lower the loss of prime samples? (PISA, arXiv 1904.04821, fig. 2)

Shape letters: N proposals of a batch, P positives among them, C classes, I images, T IoU
thresholds, R recalls.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.figures.seen import image_hlr
from experiments.report.matches import RECALLS, match, mean_precision
from experiments.style import BLUE, GREY, VERMILLION, named, panels
from frcnn.data import DetectionDataset
from frcnn.evaluation.coco import coco_evaluator
from frcnn.evaluation.inference import detect
from frcnn.evaluation.load import Trained
from frcnn.losses.activation import SigmoidLoss
from frcnn.model import Detector
from frcnn.model.roi_heads import SamplingRoIHeads
from frcnn.sites.site import deltas_of_label, stack_candidates, usual_assigner
from samplers.iou import iou

LOWERED = 0.1  # the share of the positives' class loss that is taken away
TOPS = (5, 25)
IOUS = {"0.5": 0, "0.75": 5, "0.9": 8}  # rows among T = 10 thresholds 0.50, 0.55 .. 0.95
LINES = {0: ("-", GREY), 5: ("--", VERMILLION), 25: (":", BLUE)}
SMALLEST = 1e-12  # of a score, whose logarithm is taken


@dataclass
class Raised:
    """A detector whose prime samples have higher scores.

    Attributes:
        precision: [T, R] mean over the classes, NaN without objects.
        lowered: the share of the positives' class loss that was taken away; below ``LOWERED``
            where the chosen samples of an image have less than that.
    """

    precision: np.ndarray
    lowered: float


class Raise:
    """Raises the scores of the first positives of each image, by IoU-HLR.

    A positive is a proposal of IoU 0.5 and more with its object, and its loss is the cross entropy
    ``-log p`` of its class. In every image the losses of the chosen positives are multiplied by
    one number, so that the sum over *all* positives of the image falls by ``LOWERED``: whatever
    ``top`` is, the same loss is taken away. A chosen positive without any loss left has score 1.

    Where scores of classes exclude each other (softmax), the others shrink in proportion.

    Args:
        top: positives per image; 0 = none.
    """

    def __init__(self, head: SamplingRoIHeads, top: int) -> None:
        self.head, self.top = head, top
        self.targets: Sequence[dict[str, Tensor]] = []
        self.before = self.after = 0.0  # losses of the positives of all images

    def keep_targets(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A hook before the heads: the objects in pixels of the resized images."""
        self.targets = inputs[3]

    def __call__(
        self, scores: Tensor, deltas: Tensor, proposals: list[Tensor], image_shapes: Any
    ) -> list[dict[str, Tensor]]:
        """In the place of the head's ``detections``; [N, C] scores and [N, D, 4] deltas."""
        labels = [target["labels"] for target in self.targets]
        found = usual_assigner("rcnn")(stack_candidates(proposals, self.targets, labels))
        rows = torch.where(found.labels > 0)[0]
        label, gt, image = found.labels[rows], found.gt[rows], found.image[rows]
        own = deltas_of_label(deltas[rows], label)
        boxes = self.head.box_coder.decode_single(own, found.boxes[rows])
        ious = iou(boxes.T, found.gt_boxes[gt].T)
        rank = image_hlr(ious, gt, image, len(found.gt_boxes), len(proposals))
        right = scores[rows, label - 1].double()
        loss = -right.clamp(min=SMALLEST).log()
        less = lowered_losses(loss, image, rank < self.top, len(proposals))
        self.before += loss.sum().item()
        self.after += less.sum().item()
        exclusive = not isinstance(self.head.site.class_loss, SigmoidLoss)
        raised = scores.clone()
        raised[rows] = with_score(scores[rows], label, (-less).exp(), exclusive)
        return SamplingRoIHeads.detections(self.head, raised, deltas, proposals, image_shapes)


def lowered_losses(loss: Tensor, image: Tensor, chosen: Tensor, num_images: int) -> Tensor:
    """[P] losses of which the chosen ones, [P] bool, are lower; see ``Raise``."""
    total, part = (
        torch.zeros(num_images, dtype=loss.dtype, device=loss.device).index_add(0, image, value)
        for value in (loss, loss * chosen)
    )
    share = (LOWERED * total / part.clamp(min=SMALLEST)).clamp(max=1)
    return loss * (1 - share[image] * chosen)


def with_score(scores: Tensor, label: Tensor, right: Tensor, exclusive: bool) -> Tensor:
    """[P, C] scores whose score of the label is ``right`` [P].

    Args:
        exclusive: the classes and the background share a sum of 1.
    """
    rows = torch.arange(len(label), device=label.device)
    found = scores.double()
    if exclusive:
        rest = 1 - found[rows, label - 1]
        found = found * ((1 - right) / rest.clamp(min=SMALLEST)).clamp(max=1)[:, None]
    found[rows, label - 1] = right
    return found.to(scores.dtype)


def prime_precision(found: Mapping[int, Raised]) -> Figure:
    """Precision by recall at three IoU thresholds, as trained and with prime samples raised.

    The legends have AP in percent at the threshold, over all recalls.

    Args:
        found: by the number of raised positives per image, 0 for the detector as it is.
    """
    figure, axes = panels(len(IOUS))
    for (name, row), here in zip(IOUS.items(), axes, strict=True):
        for top, one in found.items():
            style, colour = LINES[top]
            curve = 100 * one.precision[row]
            what = f"top {top}, loss -{one.lowered:.1%}" if top else "as trained"
            label = f"{what}: AP {curve.mean():.1f}"
            here.plot(100 * RECALLS, curve, style, color=colour, label=label)
        here.set(xlim=(0, 100), ylim=(0, 102))
        named(here, f"IoU {name}", "recall in percent", "precision in percent")
    return figure


def raise_scores(
    trained: Trained, images: DetectionDataset, loader: DataLoader
) -> dict[int, Raised]:
    """A detector with an RCNN head over images and their loader, for 0 and each of ``TOPS``."""
    found = {}
    for top in (0, *TOPS):
        with raised(trained.detector, top) as change:
            detections, _ = detect(trained.detector, loader, trained.device, trained.dtype)
        evaluator = coco_evaluator(images.ground_truth(), detections, trained.class_names)
        lowered = 1 - change.after / change.before if change.before else 0.0
        found[top] = Raised(mean_precision(match(evaluator)), lowered)
    return found


def heads_of(detector: Detector) -> list[SamplingRoIHeads]:
    """The RCNN heads in their order; a RetinaNet has none."""
    return [module for module in detector.modules() if isinstance(module, SamplingRoIHeads)]


@contextmanager
def raised(detector: Any, top: int) -> Iterator[Raise]:
    """Meanwhile the last head of a detector raises the scores of prime samples."""
    head = heads_of(detector)[-1]
    change = Raise(head, top)
    hook = detector.roi_heads.register_forward_pre_hook(change.keep_targets)
    head.detections = change  # type: ignore[method-assign]
    try:
        yield change
    finally:
        del head.detections
        hook.remove()
