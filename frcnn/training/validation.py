"""Validation: detections, losses and metrics on the validation images, and their records."""

import logging
from typing import Any, NamedTuple

import torch
from torchvision.transforms.v2.functional import to_pil_image

from frcnn.data import DetectionDataset
from frcnn.evaluation.coco import PER_CLASS, coco_metrics, percent
from frcnn.evaluation.frequency import with_frequencies
from frcnn.evaluation.inference import Detections, detect, merge_detections, validation_loader
from frcnn.model import Detector
from frcnn.parallel.group import SingleProcess
from frcnn.tracking.tracker import AnyTracker

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What a validation finds.

    Args:
        detections: of all images; the first process has them, the others have none.
        losses: the terms of the validation loss, and their sum "loss".
        metrics: those of ``coco_metrics`` and ``with_frequencies``.
    """

    detections: Detections
    losses: dict[str, float]
    metrics: dict[str, Any]


class Validation:
    """Runs a detector on the validation images of a run.

    Args:
        class_images: training images of each class.
        config: the run's.
        processes: the group of processes that share the images.
    """

    def __init__(
        self,
        detector: Detector,
        images: DetectionDataset,
        class_images: list[int],
        config: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        processes: SingleProcess,
    ) -> None:
        self.detector, self.images, self.class_images = detector, images, class_images
        self.num_pictures = config["trainer"]["num_pictures"]
        self.evaluation = config["evaluation"]
        self.device, self.dtype, self.processes = device, dtype, processes
        batch_size, workers = config["trainer"]["batch_size"], config["trainer"]["workers"]
        self.loader = validation_loader(images, batch_size, workers, processes.rank, processes.size)

    def find(self) -> Found:
        """Detections, losses and metrics on the validation images."""
        own, losses = detect(self.detector, self.loader, self.device, self.dtype, self.processes)
        detections = merge_detections(self.processes.gather_objects(own))
        metrics = self._metrics(detections) if self.processes.first else None
        return Found(detections, losses, self.processes.broadcast(metrics))

    def _metrics(self, detections: Detections) -> dict[str, Any]:
        truth, names = self.images.ground_truth(), self.images.class_names
        metrics = coco_metrics(truth, detections, names, **self.evaluation)
        return with_frequencies(metrics, self.class_images)

    def warn_of_nothing(self, detections: Detections) -> None:
        """Warn if no image has any detection."""
        if self.processes.first and not any(len(one["scores"]) for one in detections):
            log.warning(
                "no detection at all on %d validation images: train longer, start from trained "
                "weights (model.weights, model.weights_backbone), or check the boxes with "
                "python -m frcnn.check_data",
                len(detections),
            )

    def pictures(self, detections: Detections) -> list[Any]:
        """(image, target, detections) of the first images, to be logged."""
        chosen = detections[: self.num_pictures]
        samples = [(self.images[found["image_id"]], found) for found in chosen]
        return [(to_pil_image(image), target, found) for (image, target), found in samples]

    def record(
        self, tracker: AnyTracker, found: Found, pictures: list[Any], step: int, epoch: int
    ) -> None:
        """Log a validation's metrics, losses, figures by class and pictures."""
        metrics, losses = found.metrics, found.losses
        overall = {f"val/{k}": v for k, v in metrics.items() if k != "per_class"}
        terms = {f"val/{name}": value for name, value in losses.items()}
        tracker.log({"step": step, "epoch": epoch, **overall, **terms})
        rows = [[name, *(v[key] for key in PER_CLASS)] for name, v in metrics["per_class"].items()]
        tracker.log_table("val/per_class", ["class", *PER_CLASS], rows, epoch=epoch)
        if pictures:
            tracker.log_images("val/pictures", pictures, self.images.class_names, epoch=epoch)
        log.info("epoch %d: %s  val loss %.3f", epoch, metrics_in_words(metrics), losses["loss"])


def metrics_in_words(metrics: dict[str, Any]) -> str:
    """A line of the three main metrics.

    >>> metrics_in_words({"AP": 0.5, "AP50": 0.75, "AP75": 0.625})
    'AP 50.0 AP50 75.0 AP75 62.5'
    """
    return " ".join(f"{k} {percent(metrics[k])}" for k in ("AP", "AP50", "AP75"))
