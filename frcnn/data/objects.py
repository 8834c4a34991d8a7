"""The objects of a split.

Shape letters: M objects, I images, C classes.
"""

from dataclasses import dataclass

import numpy as np

from frcnn.data.dataset import DetectionDataset


@dataclass(frozen=True)
class Objects:
    """All objects that are not ignored.

    Attributes:
        boxes: [M, 4] float64 xyxy, in pixels of the image.
        labels: [M] int64 in 1..C.
        image: [M] int64, index of the image.
    """

    boxes: np.ndarray
    labels: np.ndarray
    image: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[M] square root of the area, in pixels of the image."""
        return side(self.boxes)

    @property
    def ratios(self) -> np.ndarray:
        """[M] width / height."""
        width, height = (self.boxes[:, 2:] - self.boxes[:, :2]).T
        return width / height


def objects_of(data: DetectionDataset) -> Objects:
    """The objects of a data set without ignored (difficult, crowd) ones."""
    image = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    counted = ~data.ignore
    return Objects(data.boxes[counted].astype(np.float64), data.labels[counted], image[counted])


def side(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] boxes -> [...] square root of the area."""
    return np.sqrt((boxes[..., 2:] - boxes[..., :2]).prod(-1))
