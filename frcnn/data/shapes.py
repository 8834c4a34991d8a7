"""Shapes drawn on a textured background: a data set that needs no download.

Each image is a function of (seed, split, index). Objects never overlap, so each box is exactly the
extent of the visible shape. The class is the form, and from the fourth class on the form and a dark
mark on it; colour is only a weak hint.
"""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le, MinLen

from frcnn.data.dataset import DetectionDataset
from frcnn.data.label_noise import Rates, add_noise
from frcnn.data.problems import Problems
from frcnn.data.records import Classes, Images, Objects
from frcnn.data.shape_images import CLASS_NAMES, ShapeImages, free_box
from frcnn.errors import UserError

# Images are drawn in memory. The limits prevent a configuration that needs too much of it.
Side = Annotated[int, Ge(1), Le(4096)]
Length = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0), Le(1000)]
Rate = Annotated[float, Ge(0), Le(1)]

MAX_IMAGES = 1_000_000  # the boxes of all images are kept in memory


def shapes(
    split: str,
    train_images: int = 200,
    val_images: int = 64,
    width: Side = 128,
    height: Side = 96,
    seed: Annotated[int, Ge(0)] = 0,
    num_objects: tuple[Count, Count] = (1, 6),
    object_size: tuple[Length, Length] = (14, 40),
    class_probabilities: Annotated[list[Annotated[float, Ge(0)]], MinLen(1)] | None = None,
    imbalance: Annotated[float, Ge(1)] = 1.0,
    clutter: Count = 0,
    clutter_size: tuple[Length, Length] | None = None,
    num_classes: Length = 3,
    tail_exponent: Annotated[float, Ge(0)] = 0.0,
    moved_boxes: Rate = 0.0,
    swapped_classes: Rate = 0.0,
    dropped_boxes: Rate = 0.0,
) -> DetectionDataset:
    """Images of circles, squares, triangles and, with more classes, other marked shapes.

    Args:
        split: "train" or "val"; the two have no image in common.
        train_images, val_images: number of images of the split, 1 or more.
        width, height: of every image in pixels.
        seed: 0 or above.
        num_objects: minimum and maximum number of objects per image. Objects without a free place
            are left out, so an image may have fewer.
        object_size: shortest and longest side of a box in pixels, both included.
        class_probabilities: share of each class among the training objects; None = see imbalance.
        imbalance: frequency of the first class divided by that of the last class in the training
            split; the frequencies form a geometric series. The validation split stays balanced, so
            the AP of a rare class is measured on as many objects as that of a frequent one.
        clutter: number of hollow shapes per image, which belong to no class. They are placed after
            the objects, so the objects are the same for every value.
        clutter_size: shortest and longest side of a hollow shape; None = ``object_size``.
        num_classes: C, 1 to 72.
        tail_exponent: a; class k has a frequency proportional to ``k^-a`` in the training split
            (a power law). The validation split stays balanced.
        moved_boxes, swapped_classes, dropped_boxes: shares of the training objects whose
            annotation is wrong, see ``frcnn.data.label_noise``. The images, the objects drawn on
            them and the validation split are the same for every rate. ``load.objects`` of the data
            set has the true objects, ``load.noise`` says which annotations are wrong.

    Raises:
        UserError: an option is out of range.
    """
    total = {"train": train_images, "val": val_images}[split]
    side = min(width, height)
    _check(f"{split}_images", total, num_objects)
    _check_size("object_size", object_size, side)
    _check_size("clutter_size", clutter_size or object_size, side)
    rates = Rates(moved_boxes, swapped_classes, dropped_boxes)
    _check_classes(num_classes, rates)
    probabilities = _probabilities(
        split, num_classes, class_probabilities, imbalance, tail_exponent
    )
    stream = {"train": 0, "val": 1}[split]
    layouts = [
        _layout(np.random.default_rng((seed, stream, index, 0)), width, height, num_objects,
                object_size, probabilities)
        for index in range(total)
    ]  # fmt: skip
    true = _objects(layouts)
    rates = rates if split == "train" else Rates(0, 0, 0)
    objects, noise = add_noise(true, rates, (seed, stream), (width, height), num_classes)
    images = Images(
        ids=list(range(total)),
        files=np.array([f"{split}-{index:06d}" for index in range(total)], dtype=np.str_),
        widths=np.full(total, width, dtype=np.int32),
        heights=np.full(total, height, dtype=np.int32),
    )
    size = clutter_size or object_size
    load = ShapeImages(true, noise, width, height, (seed, stream), size, clutter, num_classes)
    names = CLASS_NAMES[:num_classes]
    return DetectionDataset(load, images, objects, Classes(names, list(names)), Problems(), seed)


def _layout(
    rng: np.random.Generator,
    width: int,
    height: int,
    num_objects: tuple[int, int],
    object_size: tuple[int, int],
    probabilities: np.ndarray,
) -> tuple[list[np.ndarray], list[int]]:
    """Boxes (x1, y1, x2, y2 in whole pixels) and labels of one image."""
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    count = rng.integers(num_objects[0], num_objects[1] + 1)
    for label in rng.choice(len(probabilities), count, p=probabilities).tolist():
        box = free_box(rng, width, height, object_size, boxes)
        if box is not None:
            boxes.append(box)
            labels.append(label + 1)
    return boxes, labels


def _objects(layouts: list[tuple[list[np.ndarray], list[int]]]) -> Objects:
    counts = [len(labels) for _, labels in layouts]
    boxes = np.array([box for image_boxes, _ in layouts for box in image_boxes], dtype=np.float32)
    boxes = boxes.reshape(-1, 4)
    return Objects(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        labels=np.array([label for _, labels in layouts for label in labels], dtype=np.int64),
        ignore=np.zeros(len(boxes), dtype=bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def _probabilities(
    split: str, count: int, given: list[float] | None, imbalance: float, tail_exponent: float
) -> np.ndarray:
    """float64 [C]: the probability of each class; they sum to 1."""
    if imbalance < 1 or (given is not None and imbalance != 1):
        raise UserError(f"imbalance={imbalance}: needs 1 or above, and 1 with class_probabilities")
    if tail_exponent and (given is not None or imbalance != 1):
        raise UserError(
            f"tail_exponent={tail_exponent}: needs imbalance=1 and class_probabilities=null"
        )
    power_law = np.arange(1, count + 1) ** -float(tail_exponent)
    tail = power_law if tail_exponent else imbalance ** -np.linspace(0, 1, count)
    weights = np.array(given or tail, dtype=np.float64)
    if len(weights) != count or weights.min() < 0 or weights.sum() == 0:
        names = ", ".join(CLASS_NAMES[:count])
        raise UserError(f"class_probabilities={given}: needs {count} shares >= 0 for {names}")
    return np.full(count, 1 / count) if split == "val" else weights / weights.sum()


def _check(name: str, total: int, num_objects: tuple[int, int]) -> None:
    """Check the number of images and of objects per image."""
    if not 1 <= total <= MAX_IMAGES:
        raise UserError(f"{name}={total}: needs 1 to {MAX_IMAGES}")
    if not 0 <= num_objects[0] <= num_objects[1]:
        raise UserError(f"num_objects={tuple(num_objects)}: needs 0 <= min <= max")


def _check_classes(num_classes: int, rates: Rates) -> None:
    """Check the number of classes."""
    if num_classes > len(CLASS_NAMES):
        raise UserError(f"num_classes={num_classes}: needs 1 to {len(CLASS_NAMES)}")
    if num_classes == 1 and rates.swapped:
        raise UserError("swapped_classes: needs num_classes of 2 or more")


def _check_size(name: str, size: tuple[int, int], side: int) -> None:
    """Check that shapes of these sizes fit into an image whose short side is `side`."""
    if not 8 <= size[0] <= size[1] <= side:
        raise UserError(f"{name}={tuple(size)}: needs 8 <= min <= max <= {side} (image)")
