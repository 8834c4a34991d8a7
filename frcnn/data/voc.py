"""Folders in the layout of PASCAL VOC.

Coordinates there are 1-based and inclusive: pixels 1..w of a row. Here a box is a stretch of the
plane, so (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax), and 1..w becomes 0..w.
A box with xmax = xmin would then be one pixel wide; in practice it is a slip of the mouse, and it
counts as one without area.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np

from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import EXTENSIONS, ImageFiles, header_size, home, list_folder
from frcnn.data.problems import Problems
from frcnn.data.records import (
    LARGEST,
    Classes,
    Images,
    RawObjects,
    checked,
    refuse_without_objects,
)
from frcnn.errors import ConfigError, UserError, printable


def voc(
    split: str,
    root: str | Path,
    train_split: str = "train",
    val_split: str = "val",
    test_split: str | None = None,
    classes: list[str] | None = None,
) -> DetectionDataset:
    """Read JPEGImages, Annotations and ImageSets/Main/<split>.txt below `root`.

    Args:
        split: "train", "val" or "test"; reads the split named `train_split`, `val_split` or
            `test_split`.
        classes: names in label order; objects of other classes are dropped and counted. None =
            all classes in the annotations of `train_split`, sorted, for both splits.

    An image that is not in JPEGImages is dropped and counted, in both splits. Files are opened here
    only where no size is stated: `frcnn.check_data` opens them all.
    `difficult` objects are ignored: neither object nor background.

    Raises:
        UserError: a file is missing or malformed, an id is listed twice, no image is there, or a
            class of the validation split is unknown in training (where `classes` is None).
    """
    root = home(root)
    name = {"train": train_split, "val": val_split, "test": test_split or ""}[split]
    names = _class_names(root, train_split) if classes is None else _distinct(classes)
    found = _read(root, _image_ids(root, name), names)
    if classes is None and found.unknown:
        where, unknown = found.unknown[0]
        raise UserError(
            f"{root / 'Annotations' / where}: class {unknown!r} is not in split {train_split!r} "
            f"({', '.join(names)}); set data.classes to choose the classes yourself"
        )
    data = _dataset(root, name, found, names)
    if split == "train":
        refuse_without_objects(data.ignore, _split_file(root, name), found.problems)
    return data


@dataclass
class _Found:
    """What the annotation files say, as columns; the columns from `image` on are per object."""

    ids: list[int | str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


def _read(root: Path, ids: list[str], class_names: list[str]) -> _Found:
    found = _Found()
    folder = root / "JPEGImages"
    listing = list_folder(folder)
    by_stem = {Path(n).stem: n for n in sorted(listing) if n.lower().endswith(EXTENSIONS)}
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    for id in ids:
        tree = _annotation(root, id)
        stated = _text(tree, "filename")
        # The id first: an XML copied from another image still names that one.
        file = by_stem.get(id) or (stated if stated in listing else None)
        if file is None:
            found.problems.add("images missing in JPEGImages", id, dropped=True)
            continue
        size = _stated_size(tree) or header_size(folder / file)
        if size is None:
            found.problems.add("unreadable images", file, dropped=True)
            continue
        _add_objects(found, tree, f"{id}.xml", label_of)
        found.ids.append(id)
        found.files.append(file)
        found.sizes.append(size)
    return found


def _add_objects(
    found: _Found, tree: ElementTree.Element, file: str, label_of: dict[str, int]
) -> None:
    """Objects of the image whose row comes next."""
    for number, element in enumerate(tree.iter("object"), start=1):
        where, name = f"{file} object {number}", _class(element)
        if name and name not in label_of:
            found.unknown.append((where, name))
        found.image.append(len(found.ids))
        found.boxes.append(_box(element))
        found.labels.append(label_of.get(name, 0))
        found.ignore.append(_text(element, "difficult") == "1")
        found.names.append(where)


def _dataset(root: Path, split: str, found: _Found, class_names: list[str]) -> DetectionDataset:
    if not found.ids:
        raise UserError(f"{root / 'JPEGImages'}: holds no readable image of split {split!r}")
    sizes = np.array(found.sizes, dtype=np.int32)
    images = Images(found.ids, np.array(found.files, dtype=np.str_), sizes[:, 0], sizes[:, 1])
    raw = RawObjects(
        image=np.array(found.image, dtype=np.int64),
        boxes=np.array(found.boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(found.labels, dtype=np.int64),
        ignore=np.array(found.ignore, dtype=bool),
        areas=np.full(len(found.image), np.nan),
        name=found.names.__getitem__,
    )
    objects = checked(raw, images.widths, images.heights, found.problems)
    load = ImageFiles(root / "JPEGImages", *images[1:])
    classes = Classes(class_names, list(class_names))
    return DetectionDataset(load, images, objects, classes, found.problems)


def _split_file(root: Path, split: str) -> Path:
    return root / "ImageSets/Main" / f"{split}.txt"


def _image_ids(root: Path, split: str) -> list[str]:
    path = _split_file(root, split)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check data.root") from error
    except ValueError as error:
        raise UserError(f"{path}: is not a list of image ids ({error})") from error
    ids = [line.split()[0] for line in lines if line.strip()]  # "id" or "id 1", as in VOC's own
    if not ids:
        raise UserError(f"{path}: lists no image")
    for id in ids:
        if PurePath(id).name != id:
            raise UserError(f"{path}: image id {id!r} is not the name of a file")
    twice = [id for id, number in Counter(ids).items() if number > 1]
    if twice:
        raise UserError(f"{path}: lists image {twice[0]!r} more than once")
    return ids


def _distinct(classes: Sequence[str]) -> list[str]:
    twice = [name for name, number in Counter(classes).items() if number > 1]
    if twice:
        raise ConfigError(f"data.classes: {twice[0]!r} stands there more than once")
    return list(classes)


def _class_names(root: Path, split: str) -> list[str]:
    trees = (_annotation(root, id) for id in _image_ids(root, split))
    names = {_class(element) for tree in trees for element in tree.iter("object")} - {""}
    if not names:
        raise UserError(f"{root / 'Annotations'}: split {split!r} holds no object with a name")
    return sorted(names)


def _annotation(root: Path, id: str) -> ElementTree.Element:
    path = root / "Annotations" / f"{id}.xml"
    try:
        tree = ElementTree.parse(path, ElementTree.XMLParser(target=_Tree())).getroot()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # of its encoding: the last
        raise UserError(f"{path}: is not XML ({error})") from error
    if tree.tag != "annotation":
        raise UserError(f"{path}: is not a VOC annotation (its root is <{tree.tag}>)")
    return tree


class _Tree(ElementTree.TreeBuilder):
    """Elements alone. VOC's files declare no document type, which could define entities that grow
    without bound or name other files."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("it declares a document type, which VOC's files do not")


def _text(element: ElementTree.Element, path: str) -> str:
    return " ".join((element.findtext(path) or "").split())


def _class(element: ElementTree.Element) -> str:
    return printable(_text(element, "name"))


def _number(element: ElementTree.Element, path: str) -> float:
    try:
        return float(_text(element, path))
    except ValueError:
        return math.nan


def _box(element: ElementTree.Element) -> list[float]:
    """xyxy of the plane, NaN where a number is missing."""
    x1, y1, x2, y2 = (_number(element, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
    if x1 == x2 or y1 == y2:
        return [x1, y1, x2, y2]
    return [x1 - 1, y1 - 1, x2, y2]


def _stated_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    width, height = _number(tree, "size/width"), _number(tree, "size/height")
    stated = 1 <= width <= LARGEST and 1 <= height <= LARGEST
    return (int(width), int(height)) if stated else None
