"""Draw boxes, class names and scores on images."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from frcnn.evaluation.text import drawable_names, fitted

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom: first and last pixels inside
Colour = tuple[int, int, int]

# Wong's palette without black (Nature Methods 8:441, 2011). People with any common colour blindness
# can tell these colours apart. The order makes the first few differ most on photographs.
PALETTE = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)
TILE = 320  # pixels, the longest side of a picture on a contact sheet
CAPTION = 14  # pixels, the size of the text below it
MIN_SIDE = 640  # pixels; on a smaller picture a line of text hides small objects


def class_colour(label: int) -> Colour:
    """RGB colour in 0..255 of a class (label 1..C); repeats after ``len(PALETTE)`` classes."""
    return PALETTE[(label - 1) % len(PALETTE)]


def draw_boxes(
    image: Tensor | Image.Image,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    class_names: Sequence[str],
    min_score: float = 0.0,
) -> Image.Image:
    """A copy of the image with boxes, class names and scores drawn on it, best scores on top.

    An image whose longer side is below 640 pixels is enlarged to 640. Boxes that are not finite
    are left out, so that a picture does not end a run that has just diverged. A name that no font
    of this machine has is drawn as the class's number; a name wider than the picture is cut.

    Args:
        image: uint8 [3, H, W] or PIL.
        boxes: [D, 4] xyxy, pixels of ``image``.
        labels: [D] in 1..C; the text of a box is ``class_names[label - 1]``.
        scores: [D] in [0, 1], or None for ground-truth boxes.
        min_score: boxes with a lower score are left out.
    """
    picture, scale = _enlarge(image)
    boxes = _as_boxes(boxes)
    order = _drawing_order(boxes, scores, min_score)
    pixels = [_pixel_rectangle(boxes[row] * scale, picture.size) for row in order]
    classes = [int(labels[row]) for row in order]
    names = drawable_names(tuple(class_names))
    shown = [f" {float(scores[row]):.2f}" if scores is not None else "" for row in order]
    texts = [(names[label - 1], score) for label, score in zip(classes, shown, strict=True)]
    _draw(picture, pixels, texts, [class_colour(label) for label in classes])
    return picture


def thumbnail(picture: Image.Image, caption: str) -> Image.Image:
    """A square of TILE pixels with the picture and, below it, the end of its caption."""
    small = picture.copy()
    small.thumbnail((TILE, TILE))
    square = Image.new("RGB", (TILE, TILE + 2 * CAPTION), "white")
    square.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    text, font = fitted(caption[::-1], "", CAPTION, TILE)
    draw = ImageDraw.Draw(square)
    draw.text((TILE / 2, TILE + CAPTION), text[::-1], fill="black", font=font, anchor="mm")
    return square


def contact_sheet(thumbnails: Sequence[Image.Image]) -> Image.Image:
    """Thumbnails of one size, row by row, in about as many columns as rows."""
    columns = math.ceil(math.sqrt(len(thumbnails)))
    width, height = thumbnails[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(thumbnails) // columns) * height), "white")
    for number, one in enumerate(thumbnails):
        sheet.paste(one, (number % columns * width, number // columns * height))
    return sheet


def _enlarge(image: Tensor | Image.Image) -> tuple[Image.Image, float]:
    """An RGB copy whose longer side is at least 640 pixels, and its scale relative to the image."""
    picture = image if isinstance(image, Image.Image) else to_pil_image(image.cpu())
    scale = max(1.0, MIN_SIDE / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), scale


def _as_boxes(boxes: Any) -> Tensor:
    """float32 [D, 4] on the CPU, from a tensor or array; an empty one may have any shape."""
    return torch.as_tensor(boxes).detach().cpu().float().reshape(-1, 4)


def _drawing_order(boxes: Tensor, scores: Tensor | None, min_score: float) -> list[int]:
    """Rows of the boxes to draw, by increasing score, so that the best one is on top."""
    rows = boxes.isfinite().all(dim=1).nonzero().flatten()
    if scores is None:
        return rows.tolist()
    values = torch.as_tensor(scores).detach().cpu().float()[rows]
    rows, values = rows[values >= min_score], values[values >= min_score]
    return rows[values.argsort(stable=True)].tolist()


def _pixel_rectangle(box: Tensor, size: tuple[int, int]) -> Rectangle:
    """The pixels of a box, clipped to the picture; at least one pixel wide and high."""
    limits = [size[0], size[1], size[0], size[1]]
    left, top, right, bottom = (
        min(max(round(x), 0), limit) for x, limit in zip(box.tolist(), limits, strict=True)
    )
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _draw(
    picture: Image.Image,
    boxes: list[Rectangle],
    texts: list[tuple[str, str]],
    colours: list[Colour],
) -> None:
    """Draw all boxes, then all texts (name, score), so that no line crosses a text."""
    draw = ImageDraw.Draw(picture)
    side = max(picture.size)
    for box, colour in zip(boxes, colours, strict=True):
        draw.rectangle(box, outline=colour, width=max(2, side // 300))
    text_size = max(12, side // 50)
    placed: list[Rectangle] = []
    # the box with the best score is last; its text is placed first
    for box, (name, score), colour in reversed(list(zip(boxes, texts, colours, strict=True))):
        text, font = fitted(name, score, text_size, picture.width - 6)
        plate_size = round(draw.textlength(text, font=font)) + 6, round(1.4 * text_size)
        plate = _place_text(box, plate_size, picture.size, placed)
        placed.append(plate)
        draw.rectangle(plate, fill=colour)
        middle = (plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2
        draw.text(middle, text, fill=_text_colour(colour), font=font, anchor="mm")


def _place_text(
    box: Rectangle,
    plate: tuple[int, int],
    size: tuple[int, int],
    placed: list[Rectangle],
) -> Rectangle:
    """The rectangle of a text: above the box, below it, or inside, whichever is free first."""
    left, top, right, bottom = box
    width, height = plate
    choices = [
        (left, top - height),
        (left, bottom + 1),
        (left, top),
        (right + 1 - width, bottom + 1 - height),
    ]
    spots = [
        (x, y, x + width - 1, y + height - 1)
        for x, y in (
            (max(min(x, size[0] - width), 0), max(min(y, size[1] - height), 0)) for x, y in choices
        )
    ]
    return next((spot for spot in spots if not any(_overlap(spot, p) for p in placed)), spots[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _text_colour(background: Colour) -> Colour:
    """Black or white, whichever has more contrast with the background (Rec. 601 luma)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)
