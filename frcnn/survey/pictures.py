"""Images of the data set with boxes drawn on them."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from frcnn.data import DetectionDataset
from frcnn.data.objects import Objects
from frcnn.data.problems import Mark
from frcnn.errors import UserError
from frcnn.evaluation.drawing import class_colour
from frcnn.survey.anchors import Coverage

LONGEST = 720  # pixels of a picture's longer side
LINE = 3  # pixels
GREY = 128
BORDER = 0.15  # around an image where a box leaves it, times the longer side
WORST = 9  # pictures
WORST_NOTE = (
    "Objects with the smallest best IoU, at most one per image. Orange: the object. Blue: its best "
    "anchor."
)
MARGIN = 0.5  # around object and anchor, times the longer side of both together
Shown = Iterator[tuple[Image.Image, str]]


def crowded(data: DetectionDataset, objects: Objects, number: int) -> Shown:
    """The images with the most objects; ties go to the lowest index."""
    counts = np.bincount(objects.image, minlength=len(data))
    for index in np.argsort(-counts, kind="stable")[:number].tolist():
        mine = objects.image == index
        boxes, labels = (torch.from_numpy(v[mine]) for v in (objects.boxes, objects.labels))
        yield (
            outlined(data[index][0], boxes, labels),
            f"{counts[index]} objects, {data.files[index]}",
        )


def worst_covered(
    data: DetectionDataset, objects: Objects, coverage: Coverage, number: int
) -> Shown:
    """The objects with the smallest best IoU, cut out together with that anchor.

    At most one object of an image. Images that cannot be read are left out.
    """
    for row in worst_rows(objects, coverage, number):
        index = int(objects.image[row])
        scale = objects.boxes[row][2:] / coverage.boxes[row][2:]
        pair = np.stack([objects.boxes[row], coverage.anchors[row] * np.tile(scale, 2)])
        name = data.class_names[objects.labels[row] - 1]
        width, height = (coverage.boxes[row][2:] - coverage.boxes[row][:2]).tolist()
        size = f"{width:.0f}x{height:.0f} pixels after resizing"
        with suppress(UserError):
            image, boxes = cut(data[index][0], torch.from_numpy(pair))
            picture = outlined(image, boxes, torch.tensor([1, 2]))  # orange and blue
            yield picture, f"IoU {coverage.ious[row]:.2f}, {name}, {size}, {data.files[index]}"


def worst_rows(objects: Objects, coverage: Coverage, number: int) -> list[int]:
    """The rows of the objects with the smallest best IoU, one per image, the smallest first."""
    order = np.argsort(coverage.ious, kind="stable")
    _, first = np.unique(objects.image[order], return_index=True)
    return order[np.sort(first)[:number]].tolist()


def flawed(data: DetectionDataset, number: int) -> Shown:
    """The images with the most objects that have a problem; ties go to the first one.

    Images that a run drops, or that cannot be read, are left out.
    """
    index = {file: row for row, file in enumerate(data.files.tolist())}
    by_file: dict[str, list[Mark]] = defaultdict(list)
    for mark in data.problems.marks:
        by_file[mark.file].append(mark)
    shown = 0
    for file in sorted(by_file.keys() & index.keys(), key=lambda f: (-len(by_file[f]), index[f])):
        if shown == number:
            return
        with suppress(UserError):
            yield _flawed(data[index[file]][0], by_file[file]), _flaws(file, by_file[file])
            shown += 1


def _flawed(image: Tensor, marks: list[Mark]) -> Image.Image:
    """The image with the marked boxes, and a grey border where one of them leaves it."""
    height, width = image.shape[1:]
    boxes = torch.tensor([mark.box for mark in marks])
    outside = (boxes < 0).any() or (boxes > torch.tensor([width, height] * 2)).any()
    border = math.ceil(BORDER * max(height, width)) if outside else 0
    padded = torch.nn.functional.pad(image, [border] * 4, value=GREY)
    size = torch.tensor([width, height] * 2) + 2 * border
    boxes = (boxes + border).clamp(min=0).minimum(size)
    low, high = boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])
    return outlined(padded, torch.cat([low, high], 1), torch.ones(len(marks), dtype=torch.long))


def _flaws(file: str, marks: list[Mark]) -> str:
    """``a.jpg: 2 boxes clipped to the image (a.xml object 3, ...)``."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for mark in marks:
        kinds[mark.kind].append(mark.where)
    texts = [f"{len(p)} {kind} ({p[0]}{', ...' * (len(p) > 1)})" for kind, p in kinds.items()]
    return f"{file}: {'; '.join(texts)}"


def cut(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a [3, H, W] image around [2, 4] boxes, and the boxes in it."""
    low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
    margin = MARGIN * (high - low).max()
    left, top = (low - margin).floor().clamp(min=0).int().tolist()
    right, bottom = (high + margin).ceil().int().tolist()  # slices end at the image's border
    shift = torch.tensor([left, top, left, top])
    return image[:, top:bottom, left:right], boxes - shift


def outlined(image: Tensor, boxes: Tensor, labels: Tensor) -> Image.Image:
    """A [3, H, W] image with [N, 4] boxes in the colours of [N] labels.

    Texts would hide the objects of a crowded image.
    """
    picture = to_pil_image(image)
    scale = LONGEST / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for box, label in zip((boxes * scale).tolist(), labels.tolist(), strict=True):
        draw.rectangle(box, outline=class_colour(label), width=LINE)
    return picture
