"""Anchor sizes that suit the objects.

They are found by trial, by rules that a reader can follow, as the image size is
(`frcnn.data.image_size`). They are a place to start from: no detector has been trained with them.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torchvision.models.detection.anchor_utils import AnchorGenerator

from frcnn.data.objects import Objects
from frcnn.survey.anchors import Cells, View, cells_of, coverage

# Of the anchor sizes. FPN (arXiv 1612.03144) has anchors of 8 strides, RetinaNet (1708.02002) of 4:
# trials go from half of that to twice that.
STRIDES = (2, 16)
PER_OCTAVE = 4  # trials
NOT_REACHED = 0.5  # IoU
GAIN = 0.01  # of the mean IoU, for which a change is worthwhile


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
