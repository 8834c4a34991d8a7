"""Wrong annotations of a known kind: boxes moved, classes swapped, objects dropped.

Shape letters: T true objects, M annotated objects, I images, C classes.
"""

from typing import NamedTuple

import numpy as np

from frcnn.data.records import Objects

# Of the box's sides. A moved box has IoU 0.39 with its object: background at the head (below 0.5),
# neither positive nor background at the RPN (0.3 to 0.7).
SHIFT = 0.25


class Rates(NamedTuple):
    """The share of the true objects, in [0, 1], that each kind of noise hits."""

    moved: float
    swapped: float
    dropped: float


class LabelNoise(NamedTuple):
    """What is wrong with the annotations.

    source int64 [M], the true object that each annotation belongs to; moved bool [M], its box is
    wrong; swapped bool [M], its class is wrong; dropped int64 [T - M], the true objects without an
    annotation.
    """

    source: np.ndarray
    moved: np.ndarray
    swapped: np.ndarray
    dropped: np.ndarray


def add_noise(
    true: Objects, rates: Rates, seeds: tuple[int, int], size: tuple[int, int], num_classes: int
) -> tuple[Objects, LabelNoise]:
    """Annotations of true objects, some of them wrong, and which ones.

    Each object draws its own three numbers. An object that a rate hits is also hit by every higher
    rate, so the curves of a study are paired. A moved box is shifted by a quarter of its width and
    of its height, to a random side that has room in the image. Where neither side has room, it
    moves less: as far as the side with more room allows. A swapped class becomes any other class,
    all equally likely.

    Args:
        seeds: (seed, split number); the noise of an image is a function of these and its index.
        size: width and height of every image in pixels.
        num_classes: C, at least 2 if ``rates.swapped`` is above 0.
    """
    counts = np.diff(true.offsets)
    draws = [_draws(np.random.default_rng((*seeds, index, 2)), n) for index, n in enumerate(counts)]
    hit, sides, step = (np.concatenate(column) for column in zip(*draws, strict=True))
    moved, swapped, dropped = (hit < rates).T
    boxes = np.where(moved[:, None], _shifted(true.boxes, sides, size), true.boxes)
    labels = np.where(swapped, _other_class(true.labels, step, num_classes), true.labels)
    kept = ~dropped
    image = np.repeat(np.arange(len(counts)), counts)[kept]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(image, minlength=len(counts)))])
    columns = boxes.astype(np.float32), labels.astype(np.int64), true.ignore, true.areas
    annotated = Objects(offsets.astype(np.int64), *(column[kept] for column in columns))
    source, lost = np.flatnonzero(kept), np.flatnonzero(dropped)
    return annotated, LabelNoise(source, moved[kept], swapped[kept], lost)


def _draws(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[T, 3] numbers to compare with the rates, [T, 2] sides -1 or 1, [T] numbers in [0, 1)."""
    drawn = rng.random((count, 6))
    return drawn[:, :3], np.where(drawn[:, 3:5] < 0.5, -1, 1), drawn[:, 5]


def _shifted(boxes: np.ndarray, sides: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[T, 4] boxes moved by ``SHIFT`` of their sides, in whole pixels, within the image."""
    step = np.round(SHIFT * (boxes[:, 2:] - boxes[:, :2]))
    room = np.stack([boxes[:, :2], np.array(size) - boxes[:, 2:]])  # [2, T, 2] low, high side
    wanted = np.where(sides < 0, room[0], room[1])
    sides = np.where(wanted >= step, sides, np.where(room[0] > room[1], -1, 1))
    shift = sides * np.minimum(step, np.where(sides < 0, room[0], room[1]))
    return boxes + np.tile(shift, 2)


def _other_class(labels: np.ndarray, step: np.ndarray, num_classes: int) -> np.ndarray:
    """[T] labels 1..C -> another one each; ``step`` in [0, 1) chooses which."""
    ahead = 1 + np.floor(step * (num_classes - 1)).astype(np.int64)
    return (labels - 1 + ahead) % num_classes + 1
