"""Inference on a data set: its detections, its validation loss, and the file of detections."""

from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frcnn.data import Batch, DetectionDataset, empty_batch, make_loader, prepare
from frcnn.model import Detector
from frcnn.parallel.device import autocast
from frcnn.parallel.group import SingleProcess
from frcnn.runfolder.files import atomic_write

Detections = list[dict[str, Any]]
ARRAYS = ("boxes", "scores", "labels")


def validation_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, rank: int = 0, size: int = 1
) -> DataLoader:
    """Loader of the images in order, each once, in batches of ``batch_size`` per process.

    The batches of all processes are those of a single process: the images of a batch are padded to
    a common size, and a detection depends on it in the last bits.

    Every process gets the same number of batches, because all of them take part in each loss. The
    last ones may be empty.
    """
    indices = range(len(dataset))
    starts = [first + rank * batch_size for first in indices[:: batch_size * size]]
    batches = [list(indices[start : start + batch_size]) for start in starts]
    return make_loader(dataset, batches, workers)


@torch.inference_mode()
def detect(
    detector: Detector,
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype,
    processes: SingleProcess | None = None,
) -> tuple[Detections, dict[str, float]]:
    """Run a detector on the batches of a ``validation_loader``.

    Args:
        dtype: precision of the forward pass (autocast).
        processes: the group of processes that share the data set; None = this process alone.

    Returns:
        The detections of this process's images, one dict per image: "image_id", "boxes" [D, 4]
        xyxy in pixels of the original image, "scores" [D], "labels" [D] in 1..C, on the CPU.

        The terms of the validation loss over the images of all processes, and their sum "loss".
        Each term is a mean over batches, weighted by their number of images. It therefore depends
        slightly on the batch size.
    """
    processes = processes or SingleProcess()
    _prepare_sites(detector.eval(), processes)
    means = _LossMeans(processes, device)
    detections: Detections = []
    for batch in loader:
        predictions, losses = _forward(detector, batch, device, dtype)
        detections += predictions
        means.add(losses, num_images=len(predictions))
    return detections, means.result()


def _prepare_sites(detector: Detector, processes: SingleProcess) -> None:
    for site in detector.sites.values():
        site.exchange, site.observer = processes, None


def _forward(
    detector: Detector, batch: Batch, device: torch.device, dtype: torch.dtype
) -> tuple[Detections, dict[str, Tensor]]:
    """Detections of a batch with their image ids, on the CPU, and the loss terms."""
    images, targets = batch if batch[0] else empty_batch()
    with autocast(device, dtype):
        predictions, losses = detector(prepare(images, device), targets)
    if not batch[0]:
        return [], losses
    pairs = zip(targets, predictions, strict=True)
    return [_on_cpu(target["image_id"], prediction) for target, prediction in pairs], losses


def _on_cpu(image_id: int, prediction: dict[str, Tensor]) -> dict[str, Any]:
    return {"image_id": image_id, **{key: value.cpu() for key, value in prediction.items()}}


class _LossMeans:
    """Means of the loss terms over batches, weighted by their number of images."""

    def __init__(self, processes: SingleProcess, device: torch.device) -> None:
        self.processes, self.device = processes, device
        self.sums: dict[str, float] = defaultdict(float)
        self.num_images = 0.0

    def add(self, losses: dict[str, Tensor], num_images: int) -> None:
        """Add a batch: the loss terms of this process, and its number of images."""
        size = torch.tensor(float(num_images), device=self.device)
        # Normalizers count the whole batch: the sum over processes is the term of the whole batch.
        whole_size, *terms = self.processes.total(torch.stack([size, *losses.values()])).tolist()
        self.num_images += whole_size
        for name, value in zip(losses, terms, strict=True):
            self.sums[name] += value * whole_size

    def result(self) -> dict[str, float]:
        """The mean of each term by name, and their sum as "loss"."""
        means = {name: total / max(1.0, self.num_images) for name, total in self.sums.items()}
        return {"loss": sum(means.values()), **means}


def merge_detections(parts: list[Detections]) -> Detections:
    """The detections of all processes in one list, by image id."""
    return sorted(chain(*parts), key=lambda detection: detection["image_id"])


def save_detections(path: Path, detections: Detections) -> None:
    """Write the dicts that ``detect`` returns as an npz file, for ``load_detections``.

    The arrays over the N images are ``image_id`` [N] and ``count`` [N], the number of detections
    per image. The arrays over the K detections of all images, in the same order, are ``boxes``
    [K, 4] float32 (xyxy in pixels of the original image), ``scores`` [K] float32, and ``labels``
    [K] int64 in 1..C.
    """
    ids = [detection["image_id"] for detection in detections]
    counts = [len(detection["scores"]) for detection in detections]
    boxes, scores, labels = (torch.cat([one[key] for one in detections]) for key in ARRAYS)
    with atomic_write(path) as file:
        arrays: dict[str, Any] = {"boxes": boxes.float(), "scores": scores.float()}
        arrays["labels"] = labels
        np.savez(file, image_id=ids, count=counts, **arrays)


def load_detections(path: Path) -> Detections:
    """Read the file of ``save_detections``, in the form that ``detect`` returns."""
    with path.open("rb") as file, np.load(file) as stored:
        ids, counts = stored["image_id"].tolist(), stored["count"].tolist()
        columns = [torch.from_numpy(stored[key]).split(counts) for key in ARRAYS]
    return [
        {"image_id": image_id, **dict(zip(ARRAYS, values, strict=True))}
        for image_id, *values in zip(ids, *columns, strict=True)
    ]
