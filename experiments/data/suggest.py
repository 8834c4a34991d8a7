"""An image size and anchor sizes that suit the objects.

Both are found by trial, by rules that a reader can follow. They are a place to start from: no
detector has been trained with them.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torchvision.models.detection.anchor_utils import AnchorGenerator

from experiments.data.anchors import Cells, View, cells_of, coverage
from experiments.data.objects import Objects

# Of the image size.
SMALL = 16  # pixels, square root of the area: four positions of the finest level along each side
MOST_SMALL = 0.05  # share of the objects that may be smaller
STEP = 32  # pixels; torchvision pads images to multiples of it
SMALLEST = 192  # pixels: three positions of the coarsest level, of stride 64
LARGEST = 2.0  # times the images' own size: enlarging adds no detail
LONG = 0.95  # share of the images that max_size does not shrink further

# Of the anchor sizes. FPN (arXiv 1612.03144) has anchors of 8 strides, RetinaNet (1708.02002) of 4:
# trials go from half of that to twice that.
STRIDES = (2, 16)
PER_OCTAVE = 4  # trials
NOT_REACHED = 0.5  # IoU
GAIN = 0.01  # of the mean IoU, for which a change is worthwhile


def image_size(widths: np.ndarray, heights: np.ndarray, objects: Objects) -> tuple[int, int]:
    """The smallest ``min_size`` at which few objects are small, and the ``max_size`` for it.

    At most 5 % of the objects are then smaller than 16 pixels. Trials are multiples of 32, from
    192 (or the images' own size, if that is smaller) to twice the images' own size. ``max_size``
    lets 95 % of the images have the whole ``min_size``.

    Args:
        widths, heights: [I] of the images, in pixels.
    """
    short, long = np.minimum(widths, heights), np.maximum(widths, heights)
    own, longer = float(np.median(short)), float(np.quantile(long / short, LONG))
    first = min(SMALLEST, multiple(own))
    trials = range(first, max(first, multiple(LARGEST * own)) + 1, STEP)
    for min_size in trials:
        max_size = multiple(min_size * longer)
        scale = np.minimum(min_size / short, max_size / long)
        if (objects.sizes * scale[objects.image] < SMALL).mean() <= MOST_SMALL:
            break
    return min_size, max_size


def multiple(size: float) -> int:
    """Rounded up to a multiple of 32."""
    return int(np.ceil(size / STEP - 1e-9)) * STEP


def anchor_sizes(
    generator: AnchorGenerator, views: Sequence[View], objects: Objects
) -> list[int] | None:
    """Sizes, one per level, that cover the objects better than the present ones do.

    Trials double from level to level, as the strides do. The finest is 2 to 16 times its level's
    stride. Those that leave more objects without an anchor of IoU 0.5 than the present ones are
    out. Of the others the one with the largest mean of the objects' best IoU is taken.

    Returns:
        None if no trial raises that mean by 0.01.
    """
    present = coverage(views, cells_of(generator), objects)
    best, least = None, present.ious.mean() + GAIN
    for sizes in ladders(len(generator.sizes), views[0].strides[0].min()):
        found = coverage(views, cells_with(generator, sizes), objects)
        reached = found.below(NOT_REACHED) <= present.below(NOT_REACHED)
        if reached and found.ious.mean() >= least:
            best, least = sizes, found.ious.mean()
    return best


def ladders(levels: int, stride: float) -> Iterator[list[int]]:
    """Sizes that double from level to level; at stride 4 the finest is 8, 10, 11, 13, ... 64."""
    low, high = (math.log2(times * stride) for times in STRIDES)
    for exponent in np.linspace(low, high, round(high - low) * PER_OCTAVE + 1):
        yield [round(2**exponent) * 2**level for level in range(levels)]


def cells_with(generator: AnchorGenerator, sizes: Sequence[float]) -> Cells:
    """The anchors of position 0 if ``sizes`` were each level's smallest.

    Several sizes of a level keep their ratios, and aspect ratios stay.
    """
    scaled = tuple(
        tuple(size * one / min(level) for one in level)
        for size, level in zip(sizes, generator.sizes, strict=True)
    )
    return cells_of(AnchorGenerator(scaled, generator.aspect_ratios))
