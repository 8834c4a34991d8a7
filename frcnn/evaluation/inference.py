"""Validation of a detector on a data set: detections, metrics and losses."""

from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from frcnn.build import prepare
from frcnn.data import DetectionDataset, empty_batch, make_loader
from frcnn.model import Detector
from frcnn.parallel.device import autocast
from frcnn.parallel.group import SingleProcess
from frcnn.runfolder.files import atomic_write

Detections = list[dict[str, Any]]
ARRAYS = ("boxes", "scores", "labels")


def validation_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, rank: int = 0, size: int = 1
) -> DataLoader:
    """The images in order, each once; processes share out batches of ``size`` times as many.

    All of them have as many batches; one of fewer images than processes is empty for some.
    """
    order, whole = range(len(dataset)), batch_size * size
    batches = [list(order[first : first + whole]) for first in order[::whole]]
    return make_loader(dataset, [batch[rank::size] for batch in batches], workers)


@torch.inference_mode()
def detect(
    detector: Detector,
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype,
    processes: SingleProcess | None = None,
) -> tuple[Detections, dict[str, float]]:
    """Run a detector over a data set; each of several processes over its share.

    Returns:
        A detection dict per image of this process ("image_id", "boxes" in pixels of the original
        image, "scores", "labels"), on the CPU; and the terms of the validation loss over all
        processes, with their sum as "loss". They are means over batches, weighted by the number of
        images, so that another batch size gives slightly other numbers.
    """
    processes = processes or SingleProcess()
    detector.eval()
    for site in detector.sites.values():
        site.processes, site.observer = processes, None
    detections: Detections = []
    sums: dict[str, float] = defaultdict(float)
    count = 0.0
    for images, targets in loader:
        own_images, own_targets = (images, targets) if images else empty_batch()
        with autocast(device, dtype):
            found, losses = detector(prepare(own_images, device), own_targets)
        for target, boxes in zip(targets, found[: len(images)], strict=True):
            moved = {key: value.cpu() for key, value in boxes.items()}
            detections.append({"image_id": target["image_id"], **moved})
        size = torch.tensor(float(len(images)), device=device)
        number, *terms = processes.total(torch.stack([size, *losses.values()])).tolist()
        count += number
        for term, value in zip(losses, terms, strict=True):
            sums[term] += value * number
    means = {term: total / max(1.0, count) for term, total in sums.items()}
    return detections, {"loss": sum(means.values()), **means}


def in_order(parts: list[Detections]) -> Detections:
    """The detections of all processes as those of one."""
    return sorted(chain(*parts), key=lambda found: found["image_id"])


def save_detections(path: Path, detections: Detections) -> None:
    """Write a detection dict an image as arrays, for ``load_detections``.

    ``image_id`` [N], ``count`` [N] detections an image, and those of all images in their order:
    ``boxes`` [K, 4] float32 xyxy in pixels of the original image, ``scores`` [K] float32 and
    ``labels`` [K] int64, 1..C.
    """
    ids = [found["image_id"] for found in detections]
    counts = [len(found["scores"]) for found in detections]
    boxes, scores, labels = (torch.cat([found[key] for found in detections]) for key in ARRAYS)
    with atomic_write(path) as file:
        arrays: dict[str, Any] = {"boxes": boxes.float(), "scores": scores.float()}
        arrays["labels"] = labels
        np.savez(file, image_id=ids, count=counts, **arrays)


def load_detections(path: Path) -> Detections:
    """The detections of ``save_detections``, as ``detect`` returns them."""
    with path.open("rb") as file, np.load(file) as stored:
        ids, counts = stored["image_id"].tolist(), stored["count"].tolist()
        parts = [torch.from_numpy(stored[key]).split(counts) for key in ARRAYS]
    return [
        {"image_id": image, **dict(zip(ARRAYS, part, strict=True))}
        for image, *part in zip(ids, *parts, strict=True)
    ]
