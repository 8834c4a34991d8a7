"""Parse a COCO JSON file into columns."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frcnn.data.records import MAX_SIDE
from frcnn.errors import UserError, printable

Id = int | str

# Values of `iscrowd` that mean "no crowd". Any other value means a crowd: to ignore an object does
# less harm than to train on a crowd as one object.
NOT_CROWD = (0, None, "0", "")

# Polygons are three quarters of a COCO file and not used. They are removed before parsing, which
# saves time and memory. Quotes inside a JSON string are escaped, so the pattern matches keys only.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[\d\s.,eE+\-\[\]]*\]')

# Categories of files already read, by (path, modification time). The validation split needs the
# categories of the training file, which takes long to parse.
_categories_cache: dict[tuple[Path, int], dict[Id, str]] = {}


@dataclass
class CocoFile:
    """The columns of I images and R annotations, in the file's order.

    Images: ids [I], files [I], sizes int32 [I, 2] (width, height; 0 = not stated).

    Annotations: image int64 [R] (row of the image, -1 = unknown), boxes float64 [R, 4] xyxy (NaN if
    the file does not give four numbers), category [R] (id), crowd bool [R], areas float64 [R] (NaN
    = not stated), rotated bool [R], annotation_ids [R] (None = not stated).

    categories: name by category id. parents: names of the supercategories of other categories.
    """

    ids: list[Id]
    files: list[str]
    sizes: np.ndarray
    categories: dict[Id, str]
    image: np.ndarray
    boxes: np.ndarray
    category: list[Id | None]
    crowd: np.ndarray
    areas: np.ndarray
    rotated: np.ndarray
    annotation_ids: list[Id | None]
    parents: set[str]

    def name(self, row: int) -> str:
        """Id (or number) and image of annotation `row`, for messages."""
        image = self.files[self.image[row]] if self.image[row] >= 0 else "no image"
        id = self.annotation_ids[row]
        return f"annotation {f'number {row + 1}' if id is None else id} ({image})"


def read_json(path: Path) -> CocoFile:
    """Read a COCO JSON file.

    Raises:
        UserError: the file is missing, is not a COCO file, has no image or no category, or uses an
            image or category id twice.
    """
    return columns_of(path, load_json(path))


def columns_of(path: Path, content: dict[str, list[dict]]) -> CocoFile:
    """The columns of a file's content; errors as ``read_json``."""
    ids = [_id(path, image, "image") for image in content["images"]]
    if not ids:
        raise UserError(f"{path}: lists no image")
    _refuse_duplicates(path, "image id", ids)
    annotations = content["annotations"]
    row_of = {id: row for row, id in enumerate(ids)}
    columns = CocoFile(
        ids=ids,
        files=[str(_field(path, image, "file_name", "image")) for image in content["images"]],
        sizes=_numbers([[i.get("width"), i.get("height")] for i in content["images"]], 2),
        categories=_categories(path, content),
        image=np.array(
            [row_of.get(_id_in(a, "image_id"), -1) for a in annotations], dtype=np.int64
        ),
        boxes=_numbers([a.get("bbox") for a in annotations], 4),
        category=[_id_in(a, "category_id") for a in annotations],
        crowd=np.array([a.get("iscrowd") not in NOT_CROWD for a in annotations], dtype=bool),
        areas=_numbers([[a.get("area", math.nan)] for a in annotations], 1)[:, 0],
        rotated=np.array([_is_rotated(a) for a in annotations], dtype=bool),
        annotation_ids=[_id_in(a, "id") for a in annotations],
        parents=_parents(content["categories"]),
    )
    stated = (columns.sizes >= 1) & (columns.sizes <= MAX_SIDE)
    columns.sizes = np.where(stated, columns.sizes, 0).astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):  # boxes that are not finite: dropped later
        columns.boxes[:, 2:] += columns.boxes[:, :2]
    _categories_cache[path, path.stat().st_mtime_ns] = columns.categories
    return columns


def categories_of(path: Path, read: Callable[[Path], CocoFile] = read_json) -> dict[Id, str]:
    """Category names by id; a file that was read before is not parsed again.

    Raises:
        UserError: as `read`.
    """
    cached = _categories_cache.get((path, path.stat().st_mtime_ns)) if path.is_file() else None
    return read(path).categories if cached is None else cached


def load_json(path: Path) -> dict[str, list[dict]]:
    """The content of a COCO JSON file, without polygons: lists of images, annotations, categories.

    Raises:
        UserError: the file is missing or is not a COCO file.
    """
    try:
        content = json.loads(_POLYGONS.sub(b'"segmentation":0', path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply for COCO's JSON") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: is not a COCO file (it has no list of {key!r})")
    return content


def _field(path: Path, entry: dict, key: str, what: str) -> Any:
    if key not in entry:
        raise UserError(f"{path}: {what} {str(entry)[:80]} has no {key!r}")
    return entry[key]


def _id(path: Path, entry: dict, what: str) -> Id:
    """The id of an image or category. 7.0 becomes 7: some tools write integers as floats."""
    id = _field(path, entry, "id", what)
    if isinstance(id, float) and id.is_integer():
        id = int(id)
    if not isinstance(id, int | str) or isinstance(id, bool):
        raise UserError(f"{path}: {what} id {str(id)[:80]} is neither an integer nor a string")
    return id


def _id_in(annotation: dict, name: str) -> Any:
    """The id in a field of an annotation; None if it is missing or cannot be an id."""
    value = annotation.get(name)
    return value if isinstance(value, int | float | str) else None


def _is_rotated(annotation: dict) -> bool:
    """Whether CVAT's attributes state a rotation other than 0 or 180 degrees."""
    attributes = annotation.get("attributes")
    degrees = attributes.get("rotation") if isinstance(attributes, dict) else None
    return bool(np.nan_to_num(_numbers([[degrees]], 1)[0, 0]) % 180)


def _categories(path: Path, content: dict[str, list[dict]]) -> dict[Id, str]:
    ids = [_id(path, entry, "category") for entry in content["categories"]]
    if not ids:
        raise UserError(f"{path}: lists no category")
    _refuse_duplicates(path, "category id", ids)
    names = [_field(path, entry, "name", "category") for entry in content["categories"]]
    return {id: printable(str(name)) for id, name in zip(ids, names, strict=True)}


def _parents(categories: list[dict]) -> set[str]:
    above = [(entry.get("supercategory"), entry.get("name")) for entry in categories]
    return {printable(str(parent)) for parent, name in above if parent and parent != name}


def _refuse_duplicates(path: Path, what: str, ids: list[Id]) -> None:
    seen: set[Id] = set()
    for id in ids:
        if id in seen:
            raise UserError(f"{path}: {what} {id!r} is used more than once")
        seen.add(id)


def _numbers(rows: list, width: int) -> np.ndarray:
    """float64 [R, width]; a row that is not `width` numbers becomes NaN."""
    try:
        numbers = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # some row is malformed: convert one by one
        numbers = np.array([_row(row, width) for row in rows])
    well_formed = numbers.ndim == 2 and numbers.shape[1] == width
    return numbers if well_formed else np.full((len(rows), width), math.nan)


def _row(row: object, width: int) -> list[float]:
    try:
        numbers = [float(value) for value in row] if isinstance(row, list) else []
    except (TypeError, ValueError, OverflowError):
        numbers = []
    return numbers if len(numbers) == width else [math.nan] * width
