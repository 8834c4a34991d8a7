"""The arrays of a data set, and the checks of the objects that a reader finds.

Shape letters: I images, R objects as read, M objects kept, C classes. The arrays are flat, because
each worker would get its own copy of lists of dicts: reading them changes their reference counts.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frcnn.data.problems import Problems
from frcnn.errors import UserError

# In pixels. Boxes computed from polygons leave the image by rounding errors, which are not counted.
ROUNDING = 0.01
MAX_SIDE = 2**31 - 1  # pixels

ROTATED = "rotated boxes, whose rotation is ignored"  # a kind of problem


class Images(NamedTuple):
    """ids [I], the original ones; files [I], relative to a folder; widths, heights int32 [I]."""

    ids: list[int | str]
    files: np.ndarray
    widths: np.ndarray
    heights: np.ndarray


class Classes(NamedTuple):
    """names[k] and ids[k], the id in the original data, are those of label k + 1."""

    names: list[str]
    ids: list[int | str]


class Objects(NamedTuple):
    """The objects of all images, sorted by image; those of image i are offsets[i]:offsets[i + 1].

    offsets int64 [I+1]; boxes float32 [M, 4] xyxy in pixels; labels int64 [M] in 1..C;
    ignore bool [M]; areas float32 [M] in square pixels.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray


class RawObjects(NamedTuple):
    """Objects as read, in any order, not yet checked.

    image int64 [R], index of the image in 0..I-1; boxes float64 [R, 4] xyxy, NaN if a number is
    missing; labels int64 [R], 0 = unknown class; ignore bool [R]; areas float64 [R], replaced by
    the box's area if NaN, infinite or negative; name(row), the place of an object, for messages.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    name: Callable[[int], str]


def clean_objects(
    raw: RawObjects,
    widths: np.ndarray,
    heights: np.ndarray,
    problems: Problems,
    files: np.ndarray | None = None,
) -> Objects:
    """Drop objects that cannot be used, clip boxes to the image, and sort objects by image.

    Args:
        widths, heights: int [I] in pixels.
        problems: counts each dropped object, and each kept one that looks like a mistake.
        files: [I] names of the image files; with them `frcnn.check_data` draws such objects.
    """
    size = np.stack([widths, heights, widths, heights], axis=1)[raw.image]
    clipped = np.clip(raw.boxes, 0, size)
    keep = np.ones(len(raw.image), dtype=bool)

    def add(kind: str, row: int, where: str, dropped: bool) -> None:
        problems.add(kind, where, dropped)
        if files is not None and np.isfinite(raw.boxes[row]).all():
            problems.mark(kind, where, str(files[raw.image[row]]), raw.boxes[row].tolist())

    def drop(kind: str, wrong: np.ndarray) -> None:
        for row in np.flatnonzero(keep & wrong).tolist():
            add(kind, row, raw.name(row), dropped=True)
        keep[wrong] = False

    drop("boxes that are not four finite numbers", ~np.isfinite(raw.boxes).all(axis=1))
    drop("objects of an unknown class", raw.labels == 0)
    drop("boxes without area", _without_area(raw.boxes))
    drop("boxes outside the image", _without_area(clipped))

    def count(kind: str, odd: np.ndarray) -> None:
        for row in np.flatnonzero(keep & odd).tolist():
            add(kind, row, raw.name(row), dropped=False)

    count("boxes clipped to the image", (abs(clipped - raw.boxes) > ROUNDING).any(axis=1))
    count("boxes smaller than a pixel", _below_a_pixel(clipped))
    rows = np.flatnonzero(keep & _may_repeat(raw.image, clipped)).tolist()
    for kind, row, where in _repeated(raw, rows):
        add(kind, row, where, dropped=False)
    return _by_image(raw._replace(boxes=clipped), np.flatnonzero(keep), len(widths))


def refuse_without_objects(ignore: np.ndarray, path: Path, problems: Problems) -> None:
    """Check that a training set has an object; ignore bool [M].

    Raises:
        UserError: all objects are ignored, or there is none. The message names the file and the
            problems.
    """
    if ignore.all():
        reasons = [f"{ignored_note(ignore)}: iscrowd or difficult must be 0"] if len(ignore) else []
        if problems or not reasons:
            reasons.append(problems.summary())
        raise UserError(f"{path}: has no object to train on ({'; '.join(reasons)})")


def refuse_tiny_boxes(boxes: np.ndarray, path: Path) -> None:
    """Check that not every box is smaller than a pixel, as boxes in 0..1 are; boxes [M, 4].

    Raises:
        UserError: all are; the message names the file.
    """
    if len(boxes) and _below_a_pixel(boxes).all():
        raise UserError(
            f"{path}: all {len(boxes)} boxes are smaller than a pixel; boxes must be in pixels: "
            "multiply those in 0..1 by the width and height of their image"
        )


def ignored_note(ignore: np.ndarray) -> str:
    """How many objects are ignored, as a clause; bool [M]."""
    return f"{int(ignore.sum())} crowd/difficult objects are ignored"


def count_repeated_files(images: Images, problems: Problems) -> None:
    """Count the images whose file an earlier image has too."""
    first = set(np.unique(images.files, return_index=True)[1].tolist())
    for row in range(len(images.ids)):
        if row not in first:
            where = f"{images.files[row]} (image {images.ids[row]})"
            problems.add("images whose file has another id too", where, dropped=False)


def _without_area(boxes: np.ndarray) -> np.ndarray:
    """bool [R]; computed in float32, the precision in which boxes are stored."""
    with np.errstate(over="ignore"):
        boxes = boxes.astype(np.float32)
    return np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)


def _below_a_pixel(boxes: np.ndarray) -> np.ndarray:
    """bool [R]: a side is below a pixel, or the box lies in the image's first pixel."""
    with np.errstate(invalid="ignore"):  # infinite boxes, which are dropped
        below = (boxes[:, 2:] - boxes[:, :2] < 1).any(axis=1)
    return below | (boxes <= 1).all(axis=1)


def _may_repeat(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """bool [R]: an object's corner has the same hash as another one's; quick, for large sets."""
    key = image * 1e5 + boxes[:, 0] + boxes[:, 3] / 7
    _, which, counts = np.unique(key, return_inverse=True, return_counts=True)
    return counts[which.reshape(-1)] > 1


def _repeated(raw: RawObjects, rows: list[int]) -> Iterator[tuple[str, int, str]]:
    """(kind, row, place) of the objects, of these rows, with the box of an earlier one."""
    first: dict[tuple[float, ...], int] = {}
    places = zip(raw.image[rows].tolist(), *raw.boxes[rows].T.tolist(), strict=True)
    for row, place in zip(rows, places, strict=True):
        earlier = first.setdefault(place, row)
        if earlier != row:
            same = raw.labels[earlier] == raw.labels[row]
            kind = "boxes annotated twice" if same else "boxes annotated with two classes"
            yield kind, row, f"{raw.name(row)}, as {raw.name(earlier)}"


def _by_image(raw: RawObjects, rows: np.ndarray, num_images: int) -> Objects:
    rows = rows[np.argsort(raw.image[rows], kind="stable")]
    counts = np.bincount(raw.image[rows], minlength=num_images)
    boxes = raw.boxes[rows]
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    areas = raw.areas[rows]
    with np.errstate(over="ignore"):
        areas = areas.astype(np.float32)
    return Objects(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes.astype(np.float32),
        labels=raw.labels[rows].astype(np.int64),
        ignore=raw.ignore[rows].astype(bool),
        areas=np.where(np.isfinite(areas) & (areas >= 0), areas, box_areas).astype(np.float32),
    )
