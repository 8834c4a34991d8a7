"""What a run says at its start: image size, anchors, time, and settings that have no effect."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from torchvision.models.detection.rpn import AnchorGenerator

from frcnn.data import DetectionDataset
from frcnn.errors import ConfigError
from frcnn.evaluation.coco import MAX_DETECTIONS
from frcnn.evaluation.federated import PER_IMAGE_LIMIT
from frcnn.losses.activation import SoftmaxLoss
from frcnn.model import Detector
from frcnn.sites.site import Sites
from samplers import All

log = logging.getLogger(__name__)

TIMED_STEPS = 20  # that the expected time is measured over
TIMED_SECONDS = 60.0  # or so long, if the steps are slow
# The detector's own limit, by the name that it has in a network's configuration.
DETECTOR_LIMITS = ("box_detections_per_img", "detections_per_img")


def check_image_size(model: Mapping[str, Any]) -> None:
    """Raise ConfigError if the limit of the longer side is below the size of the shorter side."""
    low, high = model.get("min_size"), model.get("max_size")
    largest = max(low) if isinstance(low, list | tuple) else low
    if low is not None and high is not None and largest > high:
        raise ConfigError(
            f"model.min_size={largest} (the shorter side) is above model.max_size={high} (the "
            "longer side) and would do nothing: set data.min_size and data.max_size"
        )


def view_in_words(detector: Detector) -> str:
    """The image size and the anchors of a detector.

    >>> from frcnn import build_detector
    >>> view_in_words(build_detector(2, "fasterrcnn_resnet18_fpn", min_size=96, max_size=128))
    'images of 96 pixels (longer side at most 128), anchors of 32, 64, 128, 256, 512 pixels'
    """
    size = ", ".join(str(side) for side in detector.transform.min_size)
    words = f"images of {size} pixels (longer side at most {detector.transform.max_size})"
    for module in detector.modules():
        if isinstance(module, AnchorGenerator):
            levels = ["/".join(f"{side:g}" for side in level) for level in module.sizes]
            return f"{words}, anchors of {', '.join(levels)} pixels"
    return words


def weights_in_words(detector: Detector) -> str:
    """The number of weights that are trained, and of those that are not."""
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in detector.parameters()) - trained
    return f"{trained / 1e6:.1f}M weights trained, {frozen / 1e6:.1f}M frozen"


def starting_weights(model: Mapping[str, Any]) -> str:
    """The trained weights that a network starts from, in words.

    >>> starting_weights({"weights": None, "weights_backbone": "IMAGENET1K_V1"})
    'starting weights: IMAGENET1K_V1 (backbone)'
    """
    for key, part in (("weights", "whole detector"), ("weights_backbone", "backbone")):
        if model.get(key) is not None:
            return f"starting weights: {model[key]} ({part})"
    return "starting weights: none (from scratch); docs/finetuning.md says how to use trained ones"


def warn_of_warmup(schedule: Any, total: int) -> None:
    """Warn of a warm-up that the run ends in; a schedule of the user's may have none."""
    steps = getattr(schedule, "warmup_steps", 0)
    if steps >= total:
        log.warning(
            "the warm-up of %d steps is as long as the run of %d or longer: the learning rate is "
            "never reached; set schedule.warmup_steps",
            steps,
            total,
        )


def warn_of_limits(
    data: DetectionDataset, model: Mapping[str, Any], max_detections: int | None
) -> None:
    """Warn of images with more objects than the evaluation or the detector counts."""
    objects = objects_per_image(data)
    of_class, of_all = objects.max(1), objects.sum(1)
    limits = [
        (
            "evaluation.max_detections",
            max_detections or MAX_DETECTIONS,
            of_class,
            "objects of one class",
        )
    ]
    if data.federated:
        limits = [
            ("evaluation.max_detections", max_detections or PER_IMAGE_LIMIT, of_all, "objects")
        ]
    limits += [(f"model.{k}", model[k], of_all, "objects") for k in DETECTOR_LIMITS if k in model]
    for key, limit, counts, what in limits:
        over = int((counts > limit).sum())
        if over:
            log.warning(
                "%d validation image%s more than %s=%d %s (up to %d), so that AP cannot reach 1: "
                "set %s=%d",
                over,
                " has" if over == 1 else "s have",
                key,
                limit,
                what,
                counts.max(),
                key,
                counts.max(),
            )


def warn_of_mean_over_anchors(sites: Sites) -> None:
    """Warn of a softmax loss that is divided by all anchors, most of them background."""
    for name, site in sites.items():
        mean = isinstance(site.class_loss, SoftmaxLoss) and site.class_loss.per == "sample"
        if mean and isinstance(site.sampler, All) and site.kind != "rcnn":
            log.warning(
                "%s: the class loss is a mean over all anchors, and nearly all are background: "
                "set loss.%s.per=positive, or choose a sampler",
                name,
                name,
            )


def objects_per_image(data: DetectionDataset) -> np.ndarray:
    """int64 [images, C + 1] the objects of each image by label; ignored ones do not count."""
    truth = data.ground_truth()
    rows = {image["id"]: row for row, image in enumerate(truth["images"])}
    counts = np.zeros((len(rows), data.num_classes), dtype=np.int64)
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd"):
            counts[rows[annotation["image_id"]], annotation["category_id"]] += 1
    return counts


class Pace:
    """Says once how long the run will take, measured over its first steps here.

    The first step is not counted: it includes the start of the workers.

    Args:
        left: steps of this start of the run.
    """

    def __init__(self, left: int) -> None:
        self.left, self.steps, self.start, self.said = left, 0, 0.0, False

    def step(self) -> None:
        """A step is done."""
        self.steps, self.left, now = self.steps + 1, self.left - 1, time.perf_counter()
        if self.steps == 1:
            self.start = now
        elif not self.said and (self.steps > TIMED_STEPS or now - self.start > TIMED_SECONDS):
            self.said = True
            rate = (now - self.start) / (self.steps - 1)
            log.info(
                "%.2g s per step: about %s for the %d steps left, validations not counted",
                rate,
                duration(rate * self.left),
                self.left,
            )


def duration(seconds: float) -> str:
    """A duration in words.

    >>> [duration(s) for s in (20, 100, 8000)]
    ['20 seconds', '2 minutes', '2 h 13 min']
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
