"""Pictures of filled shapes (objects) and hollow ones (clutter) on a textured background."""

import colorsys

import numpy as np
import torch
from torch import Tensor

from frcnn.data.records import Objects

CLASS_NAMES = ["circle", "square", "triangle"]
GAP = 2  # pixels between two things drawn
TRIES = 40  # places tried before a thing is left out


class ShapeImages:
    """index -> uint8 image [3, height, width] with the objects of that image drawn on it."""

    def __init__(
        self,
        objects: Objects,
        width: int,
        height: int,
        seeds: tuple[int, int],
        clutter_size: tuple[int, int],
        clutter: int,
    ) -> None:
        self.objects, self.width, self.height = objects, width, height
        self.seeds, self.clutter_size, self.clutter = seeds, clutter_size, clutter
        self.rows, self.columns = _interpolation(height, 7), _interpolation(width, 9)

    def __call__(self, index: int) -> Tensor:
        rng = np.random.default_rng((*self.seeds, index, 1))
        image = self._background(rng)
        rows = slice(*self.objects.offsets[index : index + 2].tolist())
        boxes = self.objects.boxes[rows].astype(int)
        for box, label in zip(boxes, self.objects.labels[rows], strict=True):
            mask = shape_mask(int(label), *(box[2:] - box[:2]))
            _paint(image, box, mask, _colour(rng, int(label)))
        self._add_clutter(rng, image, boxes)
        image += 14 * rng.standard_normal(image.shape, dtype=np.float32)
        return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8))

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """float32 [3, H, W]: smooth blobs of little colour."""
        grey = rng.uniform(60, 130) + 22 * rng.standard_normal((1, 7, 9))
        tint = 10 * rng.standard_normal((3, 7, 9))
        return (self.rows @ (grey + tint) @ self.columns.T).astype(np.float32)

    def _add_clutter(self, rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray) -> None:
        taken = list(boxes)
        for label in rng.integers(1, len(CLASS_NAMES) + 1, self.clutter).tolist():
            box = place(rng, self.width, self.height, self.clutter_size, taken)
            if box is not None:
                taken.append(box)
                _paint(image, box, _hollow(label, *(box[2:] - box[:2])), _colour(rng, label))


def shape_mask(label: int, width: int, height: int) -> np.ndarray:
    """bool [height, width]: the filled shape of class `label`.

    It touches all four sides as long as neither is more than twice the other.
    """
    y, x = _centres(height)[:, None], _centres(width)
    if label == 1:
        return x**2 + y**2 <= 1
    if label == 2:
        return np.ones((height, width), dtype=bool)
    # Never narrower than the middle pixels, so that the top row holds the apex.
    return abs(x) <= np.maximum((1 + y) / 2, 1 / width) + 1e-9


def _centres(count: int) -> np.ndarray:
    """float64 [count]: centres of `count` pixels that fill -1..1."""
    return (2 * np.arange(count) + 1) / count - 1


def _hollow(label: int, width: int, height: int) -> np.ndarray:
    """bool [height, width]: the outline, about a sixth of the side thick."""
    mask = shape_mask(label, width, height)
    edge_x, edge_y = max(2, width // 6), max(2, height // 6)
    mask[edge_y : height - edge_y, edge_x : width - edge_x] &= ~shape_mask(
        label, width - 2 * edge_x, height - 2 * edge_y
    )
    return mask


def place(
    rng: np.random.Generator,
    width: int,
    height: int,
    size: tuple[int, int],
    taken: list[np.ndarray],
) -> np.ndarray | None:
    """A box of random size clear of all those taken, or None where no try finds room."""
    low, high = size
    first = int(rng.integers(low, high + 1))
    second = min(max(round(first * rng.uniform(0.75, 1.33)), low), high)
    x = rng.integers(0, width - first + 1, TRIES)
    y = rng.integers(0, height - second + 1, TRIES)
    places = np.stack([x, y, x + first, y + second], axis=1)
    others = np.array(taken).reshape(-1, 1, 4)
    apart = (places[:, :2] >= others[..., 2:] + GAP) | (places[:, 2:] + GAP <= others[..., :2])
    free = np.flatnonzero((apart[..., 0] | apart[..., 1]).all(axis=0))
    return places[free[0]] if len(free) else None


def _paint(image: np.ndarray, box: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    x1, y1, x2, y2 = box
    np.copyto(image[:, y1:y2, x1:x2], colour[:, None, None], where=mask)


def _colour(rng: np.random.Generator, label: int) -> np.ndarray:
    """float32 [3], 0..255. Hues of neighbouring classes overlap."""
    hue = (label - 1) / len(CLASS_NAMES) + rng.normal(0, 0.12)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), rng.uniform(0.65, 1))
    return np.array(rgb, dtype=np.float32) * 255


def _interpolation(length: int, nodes: int) -> np.ndarray:
    """float64 [length, nodes]: linear weights that stretch `nodes` values over `length` pixels."""
    position = np.linspace(0, nodes - 1, length)[:, None]
    return np.clip(1 - abs(position - np.arange(nodes)), 0, 1)
