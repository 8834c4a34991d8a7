"""An image size that suits the objects, found by trial."""

import numpy as np

from frcnn.data.objects import Objects

SMALL = 16  # pixels, square root of the area: four positions of the finest level along each side
MOST_SMALL = 0.05  # share of the objects that may be smaller
STEP = 32  # pixels; torchvision pads images to multiples of it
SMALLEST = 192  # pixels: three positions of the coarsest level, of stride 64
LARGEST = 2.0  # times the images' own size: enlarging adds no detail
LONG = 0.95  # share of the images that max_size does not shrink further


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
