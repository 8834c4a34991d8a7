"""Draws images of filled shapes (objects) and hollow shapes (clutter) on a textured background."""

import colorsys

import numpy as np
import torch
from torch import Tensor

from frcnn.data.label_noise import LabelNoise
from frcnn.data.records import Objects

FORMS = ["circle", "square", "triangle", "diamond", "funnel", "plus", "hourglass", "wedge", "cup"]
MARKS = ["", "dot", "bar", "post", "cross", "slash", "top", "left"]
CLUTTER_FORMS = 3  # circle, square, triangle
MARK_SHADE = 0.3  # brightness of a mark over that of its shape
STRIDE = 29  # shares no factor with the 69 classes that are reordered
GAP = 2  # least distance between two shapes in pixels
NUM_TRIES = 40  # places tried before a shape is left out


def _looks() -> list[tuple[int, int]]:
    """(form, mark) of every class that can be drawn, in the order of the labels.

    The first three are the plain circle, square and triangle, which clutter has too. The others are
    taken in steps, so that the first classes have as many forms and marks as the last. Among these,
    form and mark do not depend on the label. The hue does: it rises with the label
    (``ShapeImages``). With ``tail_exponent`` labels are in the order of frequency, so the three
    plain shapes are the most frequent classes, and classes of similar frequency have similar hues.
    """
    plain = [(form, 0) for form in range(CLUTTER_FORMS)]
    every = [(form, mark) for mark in range(len(MARKS)) for form in range(len(FORMS))]
    rest = every[CLUTTER_FORMS:]
    return plain + [rest[place * STRIDE % len(rest)] for place in range(len(rest))]


LOOKS = _looks()
CLASS_NAMES = [" ".join([FORMS[form], MARKS[mark]]).strip() for form, mark in LOOKS]


class ShapeImages:
    """index -> uint8 image [3, height, width] with its objects and clutter drawn on it.

    Args:
        objects: the true objects of all images, as drawn.
        noise: what is wrong with the data set's annotations of them.
        seeds: (seed, split number); the image is a function of these and the index.
        clutter_size: shortest and longest side of a clutter shape in pixels.
        clutter: number of clutter shapes per image; those without a free place are left out.
        num_classes: C; their hues are spread over the whole circle.
    """

    def __init__(
        self,
        objects: Objects,
        noise: LabelNoise,
        width: int,
        height: int,
        seeds: tuple[int, int],
        clutter_size: tuple[int, int],
        clutter: int,
        num_classes: int,
    ) -> None:
        self.objects, self.width, self.height = objects, width, height
        self.noise, self.num_classes = noise, num_classes
        self.seeds, self.clutter_size, self.clutter = seeds, clutter_size, clutter
        self.rows, self.columns = _interpolation(height, 7), _interpolation(width, 9)

    def __call__(self, index: int) -> Tensor:
        rng = np.random.default_rng((*self.seeds, index, 1))
        image = self._background(rng)
        rows = slice(*self.objects.offsets[index : index + 2].tolist())
        boxes = self.objects.boxes[rows].astype(int)
        for box, label in zip(boxes, self.objects.labels[rows], strict=True):
            mask = shape_mask(int(label), *(box[2:] - box[:2]))
            colour = _colour(rng, (label - 1) / self.num_classes)
            _paint(image, box, mask, colour)
            if LOOKS[label - 1][1]:
                mark = mark_mask(LOOKS[label - 1][1], *(box[2:] - box[:2]))
                _paint(image, box, mask & mark, MARK_SHADE * colour)
        self._add_clutter(rng, image, boxes)
        image += 14 * rng.standard_normal(image.shape, dtype=np.float32)
        return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8))

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """float32 [3, H, W]: smooth grey blobs with a slight tint."""
        grey = rng.uniform(60, 130) + 22 * rng.standard_normal((1, 7, 9))
        tint = 10 * rng.standard_normal((3, 7, 9))
        return (self.rows @ (grey + tint) @ self.columns.T).astype(np.float32)

    def _add_clutter(self, rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray) -> None:
        taken = list(boxes)
        for label in rng.integers(1, CLUTTER_FORMS + 1, self.clutter).tolist():
            box = free_box(rng, self.width, self.height, self.clutter_size, taken)
            if box is not None:
                taken.append(box)
                mask = _outline_mask(label, *(box[2:] - box[:2]))
                _paint(image, box, mask, _colour(rng, (label - 1) / self.num_classes))


def shape_mask(label: int, width: int, height: int) -> np.ndarray:
    """bool [height, width]: the filled shape of class `label`.

    It touches all four sides of the box, if no side is more than twice as long as the other.
    """
    y, x = _pixel_centres(height)[:, None], _pixel_centres(width)
    # A tip is at least as wide as the middle pixels, so that it is visible in the outer row.
    tip_x, tip_y = 1 / width + 1e-9, 1 / height + 1e-9
    match FORMS[LOOKS[label - 1][0]]:
        case "circle":
            return x**2 + y**2 <= 1
        case "square":
            return np.ones((height, width), dtype=bool)
        case "triangle":
            return abs(x) <= np.maximum((1 + y) / 2, 1 / width) + 1e-9
        case "diamond":
            return (abs(x) <= np.maximum(1 - abs(y), tip_x)) | (abs(y) <= tip_y)
        case "funnel":
            return abs(x) <= np.maximum((1 - y) / 2, tip_x)
        case "plus":
            return (abs(x) <= 0.35) | (abs(y) <= 0.35)
        case "hourglass":
            return abs(x) <= np.maximum(abs(y) + tip_x, 0.4)
        case "wedge":  # half a square, below its diagonal
            return x <= y + tip_x
        case _:  # cup: a square without its upper middle
            return (abs(x) >= 0.35) | (y >= 0)


def mark_mask(mark: int, width: int, height: int) -> np.ndarray:
    """bool [height, width]: the darker part of a class with this mark, 1..7."""
    y, x = _pixel_centres(height)[:, None], _pixel_centres(width)
    match MARKS[mark]:
        case "dot":
            return x**2 + y**2 <= 0.3
        case "bar":
            return (abs(y) <= 0.3) & (abs(x) <= 1)
        case "post":
            return (abs(x) <= 0.3) & (abs(y) <= 1)
        case "cross":
            return (abs(x) <= 0.2) | (abs(y) <= 0.2)
        case "slash":
            return abs(x + y) <= 0.4
        case "top":
            return (y <= -0.2) & (abs(x) <= 1)
        case _:  # left
            return (x <= -0.2) & (abs(y) <= 1)


def _pixel_centres(count: int) -> np.ndarray:
    """float64 [count]: centres of `count` pixels that cover -1..1."""
    return (2 * np.arange(count) + 1) / count - 1


def _outline_mask(label: int, width: int, height: int) -> np.ndarray:
    """bool [height, width]: the outline; its thickness is about a sixth of the side."""
    mask = shape_mask(label, width, height)
    edge_x, edge_y = max(2, width // 6), max(2, height // 6)
    mask[edge_y : height - edge_y, edge_x : width - edge_x] &= ~shape_mask(
        label, width - 2 * edge_x, height - 2 * edge_y
    )
    return mask


def free_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    size: tuple[int, int],
    taken: list[np.ndarray],
) -> np.ndarray | None:
    """A random int box [4] xyxy that overlaps none of `taken`; None if all tries fail.

    Args:
        width, height: of the image in pixels.
        size: shortest and longest side of the box in pixels.
        taken: boxes [4] xyxy that are already placed.
    """
    low, high = size
    box_width = int(rng.integers(low, high + 1))
    box_height = min(max(round(box_width * rng.uniform(0.75, 1.33)), low), high)
    x = rng.integers(0, width - box_width + 1, NUM_TRIES)
    y = rng.integers(0, height - box_height + 1, NUM_TRIES)
    places = np.stack([x, y, x + box_width, y + box_height], axis=1)
    others = np.array(taken).reshape(-1, 1, 4)
    apart = (places[:, :2] >= others[..., 2:] + GAP) | (places[:, 2:] + GAP <= others[..., :2])
    free = np.flatnonzero((apart[..., 0] | apart[..., 1]).all(axis=0))
    return places[free[0]] if len(free) else None


def _paint(image: np.ndarray, box: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    x1, y1, x2, y2 = box
    np.copyto(image[:, y1:y2, x1:x2], colour[:, None, None], where=mask)


def _colour(rng: np.random.Generator, hue: float) -> np.ndarray:
    """float32 [3] in 0..255 around a hue in [0, 1); the hues of neighbouring classes overlap."""
    hue = hue + rng.normal(0, 0.12)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), rng.uniform(0.65, 1))
    return np.array(rgb, dtype=np.float32) * 255


def _interpolation(length: int, nodes: int) -> np.ndarray:
    """float64 [length, nodes]: weights of a linear interpolation of `nodes` values."""
    position = np.linspace(0, nodes - 1, length)[:, None]
    return np.clip(1 - abs(position - np.arange(nodes)), 0, 1)
