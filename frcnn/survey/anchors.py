"""The best anchor of every object, after the model's resizing.

A detector has one torchvision ``AnchorGenerator``, wherever it stands (``rpn.anchor_generator``,
``anchor_generator``), and torchvision's ``transform`` and ``backbone``.

Shape letters: M objects, K of them in images of one size, L pyramid levels, A anchors per
position, of all levels.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from frcnn.data import DetectionDataset
from frcnn.data.objects import Objects, side
from frcnn.errors import UserError

Cells = Sequence[np.ndarray]  # by level, [A of the level, 4]: the anchors of position 0


class View(NamedTuple):
    """How a detector sees all images of one size.

    Attributes:
        images: their number.
        rows: [K] the objects in them.
        size: width and height after resizing, in pixels.
        scale: [2] size after / before resizing, x and y.
        grids: [L, 2] number of positions along x and y.
        strides: [L, 2] pixels between two positions.
    """

    images: int
    rows: np.ndarray
    size: tuple[int, int]
    scale: np.ndarray
    grids: np.ndarray
    strides: np.ndarray


class Coverage(NamedTuple):
    """The best anchor of every object; boxes and sizes in pixels after resizing.

    Attributes:
        ious: [M] IoU with the best anchor; objects do not compete for it.
        anchors: [M, 4] xyxy.
        boxes: [M, 4] xyxy, the objects.
    """

    ious: np.ndarray
    anchors: np.ndarray
    boxes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[M] square root of the objects' area."""
        return side(self.boxes)

    def below(self, iou: float) -> float:
        """Share of the objects whose best anchor has a smaller IoU."""
        return float((self.ious < iou).mean())


def generator_of(detector: torch.nn.Module) -> AnchorGenerator:
    """The detector's one anchor generator.

    Raises:
        UserError: it has none, or several.
    """
    found = [m for m in detector.modules() if isinstance(m, AnchorGenerator)]
    if len(found) != 1:
        raise UserError(f"expected a model with one anchor generator, this one has {len(found)}")
    return found[0]


def cells_of(generator: AnchorGenerator) -> Cells:
    """The anchors of position 0, by level."""
    return [cell.double().numpy() for cell in generator.cell_anchors]


@torch.no_grad()
def views_of(detector: Any, data: DetectionDataset, objects: Objects) -> list[View]:
    """How a detector in eval mode sees the images of a data set, each image by itself.

    From several ``min_size`` an evaluation takes the last. The detector is moved to the device
    "meta", where tensors have shapes but no values: no convolution is computed.
    """
    detector.eval().to("meta")
    transform = detector.transform

    @cache
    def grids(height: int, width: int) -> np.ndarray:
        """[L, 2] size of the feature maps of an image."""
        maps = detector.backbone(torch.empty(1, 3, height, width, device="meta"))
        levels = [maps] if isinstance(maps, Tensor) else maps.values()
        return np.array([level.shape[:-3:-1] for level in levels])

    def view(width: int, height: int, number: int, rows: np.ndarray) -> View:
        # One channel on the CPU: resizing is slow on "meta", and its result depends on sizes alone.
        resized, _ = transform.resize(torch.zeros(1, height, width), None)
        new_height, new_width = resized.shape[-2:]
        padded = transform.batch_images([resized], transform.size_divisible).shape[-2:]
        grid = grids(*padded)
        scale = np.array([new_width / width, new_height / height])
        # torchvision's strides are rounded down: 61 pixels, not 64, where 800 become 13 positions.
        strides = np.array(padded[::-1]) // grid
        return View(number, rows, (new_width, new_height), scale, grid, strides)

    both = np.stack([data.widths, data.heights], axis=1)
    sizes, which, counts = np.unique(both, axis=0, return_inverse=True, return_counts=True)
    of_object = which.reshape(-1)[objects.image]
    return [
        view(width, height, count, np.flatnonzero(of_object == row))
        for row, ((width, height), count) in enumerate(
            zip(sizes.tolist(), counts.tolist(), strict=True)
        )
    ]


def coverage(views: Sequence[View], cells: Cells, objects: Objects) -> Coverage:
    """The best anchor of every object.

    Of all anchors of one shape the one whose centre is nearest to the object's has the largest
    IoU. So an object is compared with A anchors, not with those of all positions.
    """
    found = Coverage(
        np.zeros(len(objects.boxes)), np.zeros_like(objects.boxes), objects.boxes.copy()
    )
    for view in views:
        boxes = objects.boxes[view.rows] * np.tile(view.scale, 2)
        levels = zip(cells, view.grids, view.strides, strict=True)
        anchors = np.concatenate([nearest(boxes, *level) for level in levels], axis=1)
        ious = paired_iou(boxes[:, None], anchors)
        best = np.arange(len(boxes)), ious.argmax(axis=1)
        found.boxes[view.rows] = boxes
        found.ious[view.rows], found.anchors[view.rows] = ious[best], anchors[best]
    return found


def nearest(boxes: np.ndarray, cells: np.ndarray, grid: np.ndarray, stride: np.ndarray) -> Any:
    """[K, 4] boxes, [A, 4] anchors of position 0 -> [K, A, 4] each at the nearest position."""
    place = (centre(boxes)[:, None] - centre(cells)) / stride
    shift = np.rint(place).clip(0, grid - 1) * stride
    return cells + np.concatenate([shift, shift], axis=-1)


def centre(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] boxes -> [..., 2]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def paired_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of [..., 4] boxes, pair by pair."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clip(min=0).prod(-1)
    return shared / (side(first) ** 2 + side(second) ** 2 - shared)
