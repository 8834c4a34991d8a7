"""Reader of folders in the layout of PASCAL VOC.

VOC's coordinates are 1-based pixel numbers, both ends included: a box over a whole row is 1..w.
Here a box has continuous coordinates, so that box is 0..w: (xmin, ymin, xmax, ymax) becomes
(xmin - 1, ymin - 1, xmax, ymax). A box with xmax = xmin would become one pixel wide. In practice it
is an annotator's mistake, so it counts as a box without area.
"""

import codecs
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np

from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import (
    EXTENSIONS,
    ImageFiles,
    decode_error,
    expand_home,
    header_size,
    list_folder,
    none_found,
)
from frcnn.data.layouts import VocFolder, voc_folder
from frcnn.data.problems import Problems
from frcnn.data.records import (
    MAX_SIDE,
    ROTATED,
    Classes,
    Images,
    RawObjects,
    clean_objects,
    count_repeated_files,
    refuse_tiny_boxes,
    refuse_without_objects,
)
from frcnn.errors import ConfigError, NoSplitError, UserError, printable

# Encodings that annotation tools of East Asia write and that Python's XML parser does not know.
MULTI_BYTE = ("gbk", "gb2312", "gb18030", "big5", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949")
# What text that claims to be UTF-8, and is not, may be: unlike GBK it accepts no word of Latin-1.
GUESSED = "gb2312"
NOT_UTF_8 = f"annotations that are not UTF-8, read as {GUESSED}"
DECLARED = re.compile(rb"""<\?xml[^>]*encoding=["']([\w.:-]+)["']""")


def voc(
    split: str,
    root: str | Path,
    train_split: str = "train",
    val_split: str = "val",
    test_split: str | None = None,
    classes: list[str] | None = None,
) -> DetectionDataset:
    """Read JPEGImages, Annotations and ImageSets/Main/<split>.txt below `root`.

    `root` may also hold the one folder with these (VOC2007, VOCdevkit/VOC2007). Without ImageSets
    all annotated images are "train", and images and annotations may lie side by side.

    Args:
        split: "train", "val" or "test"; reads the split named `train_split`, `val_split` or
            `test_split`.
        train_split, val_split, test_split: the names of the splits in ImageSets/Main.
        classes: class names in the order of their labels; objects of other classes are dropped and
            counted. None = all classes in the annotations of `train_split`, sorted.

    Images that are not in JPEGImages are dropped and counted. An image file is opened here only if
    its annotation does not state a size; `frcnn.check_data` opens all of them. `difficult` objects
    are ignored areas: neither object nor background.

    Raises:
        NoSplitError: there is no ImageSets or no list of the split, and it is not "train".
        UserError: a file is missing or malformed, an id is listed twice, no image exists, the
            training split has no object, or, if `classes` is None, the validation split has a
            class that the training split does not have. ConfigError: `classes` has a name twice.
    """
    folder = voc_folder(expand_home(root))
    if split != "train" and not folder.is_split:
        raise NoSplitError(folder.root, split)
    split_name = {"train": train_split, "val": val_split, "test": test_split or ""}[split]
    own = folder.list_file(split_name)
    if split != "train" and folder.list_file(train_split).exists() and not own.exists():
        lists = ", ".join(sorted(path.stem for path in own.parent.glob("*.txt")))
        raise NoSplitError(f"{own.parent} (which has {lists})", split_name)
    class_names = _class_names(folder, train_split) if classes is None else _distinct(classes)
    annotations = _read(folder, _image_ids(folder, split_name), class_names)
    if classes is None and annotations.unknown:
        where, unknown = annotations.unknown[0]
        raise UserError(
            f"{folder.annotations / where}: class {unknown!r} is not in split {train_split!r} "
            f"({', '.join(class_names)}); set data.classes to choose the classes yourself"
        )
    data = _dataset(folder, split_name, annotations, class_names)
    if split == "train":
        refuse_without_objects(data.ignore, folder.source(split_name), annotations.problems)
    return data


@dataclass
class _Annotations:
    """The contents of the annotation files as columns.

    `unknown` lists (place, class name) of the objects whose class has no label.
    """

    # per image
    ids: list[int | str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    # per object
    image: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    unknown: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # ids of images without a file
    problems: Problems = field(default_factory=Problems)


def _read(folder: VocFolder, ids: list[str], class_names: list[str]) -> _Annotations:
    annotations = _Annotations()
    files = _Files(folder.images)
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    for id in ids:
        tree = _annotation(folder, id, annotations.problems)
        file = files.of(id, _text(tree, "filename"), annotations.problems)
        if file is None:
            missing = f"images missing in {folder.images.name}"
            annotations.problems.add(missing, id, dropped=True)
            annotations.missing.append(id)
            continue
        size = _stated_size(tree) or header_size(folder.images / file)
        if size is None:
            reason = decode_error(folder.images / file)
            annotations.problems.add("unreadable images", f"{file}: {reason}", dropped=True)
            continue
        _add_objects(annotations, tree, f"{id}.xml", label_of)
        annotations.ids.append(id)
        annotations.files.append(file)
        annotations.sizes.append(size)
    return annotations


class _Files:
    """The image files."""

    def __init__(self, folder: Path) -> None:
        self.names = list_folder(folder)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        images = (name for name in self.names if name.lower().endswith(EXTENSIONS))
        for name in sorted(images, key=_preference):
            self.by_stem[Path(name).stem].append(name)

    def of(self, id: str, stated: str, problems: Problems) -> str | None:
        """The file of an image id; ``stated`` is the annotation's <filename>.

        A file of that id comes first: an XML file copied from another image still states that file
        name. Of several files of that id, as an image and its mask, the stated one is taken.
        """
        own = self.by_stem.get(id, [])
        if stated in own:
            return stated
        if len(own) > 1:
            problems.add("two images of one name", f"{own[0]}, not {own[1]}", dropped=False)
        if own or stated in self.names:
            return own[0] if own else stated
        return next(iter(self.by_stem.get(stated, [])), None)


def _preference(name: str) -> tuple[int, str]:
    return EXTENSIONS.index(Path(name).suffix.lower()), name


def _add_objects(
    annotations: _Annotations, tree: ElementTree.Element, file: str, label_of: dict[str, int]
) -> None:
    """Add the objects of the image that is about to be added to `annotations.ids`."""
    for number, element in enumerate(tree.iter("object"), start=1):
        where, name = f"{file} object {number}", _class(element)
        if name and name not in label_of:
            annotations.unknown.append((where, name))
        annotations.image.append(len(annotations.ids))
        annotations.boxes.append(_box(element))
        annotations.labels.append(label_of.get(name, 0))
        annotations.ignore.append(_text(element, "difficult") == "1")
        annotations.names.append(where)
        if _rotation(element) % 180:
            annotations.problems.add(ROTATED, where, dropped=False)


def _dataset(
    folder: VocFolder, split: str, annotations: _Annotations, class_names: list[str]
) -> DetectionDataset:
    if not annotations.ids:
        first = f"{annotations.missing[0]}{EXTENSIONS[0]}" if annotations.missing else None
        raise UserError(none_found(folder.images, f"split {split!r}", first, annotations.problems))
    sizes = np.array(annotations.sizes, dtype=np.int32)
    images = Images(
        annotations.ids, np.array(annotations.files, dtype=np.str_), sizes[:, 0], sizes[:, 1]
    )
    raw = RawObjects(
        image=np.array(annotations.image, dtype=np.int64),
        boxes=np.array(annotations.boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(annotations.labels, dtype=np.int64),
        ignore=np.array(annotations.ignore, dtype=bool),
        areas=np.full(len(annotations.image), np.nan),
        name=annotations.names.__getitem__,
    )
    count_repeated_files(images, annotations.problems)
    objects = clean_objects(raw, *images[2:], annotations.problems, images.files)
    refuse_tiny_boxes(objects.boxes, folder.source(split))
    load = ImageFiles(folder.images, *images[1:])
    classes = Classes(class_names, list(class_names))
    return DetectionDataset(load, images, objects, classes, annotations.problems)


def _image_ids(folder: VocFolder, split: str) -> list[str]:
    if not folder.is_split:
        return [PurePath(name).stem for name in folder.xml_files()]
    path = folder.list_file(split)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check data.root") from error
    except ValueError as error:
        raise UserError(f"{path}: is not a list of image ids ({error})") from error
    ids = [_id_of(line.strip(), folder.annotations) for line in lines if line.strip()]
    if not ids:
        raise UserError(f"{path}: lists no image")
    for id in ids:
        if PurePath(id).name != id:
            raise UserError(f"{path}: image id {id!r} is not the name of a file")
    repeated = [id for id, number in Counter(ids).items() if number > 1]
    if repeated:
        raise UserError(f"{path}: lists image {repeated[0]!r} more than once")
    return ids


def _id_of(line: str, folder: Path) -> str:
    """The id of a list's line "id", "id 1", "id 0" or "id -1"; ids may have spaces."""
    flagged = re.fullmatch(r"(.+?)\s+(-1|0|1)", line)
    return flagged[1] if flagged and not os.path.exists(folder / f"{line}.xml") else line


def _distinct(classes: Sequence[str]) -> list[str]:
    repeated = [name for name, number in Counter(classes).items() if number > 1]
    if repeated:
        raise ConfigError(f"data.classes: {repeated[0]!r} is listed more than once")
    return list(classes)


def _class_names(folder: VocFolder, split: str) -> list[str]:
    trees = (_annotation(folder, id) for id in _image_ids(folder, split))
    names = {_class(element) for tree in trees for element in tree.iter("object")} - {""}
    if not names:
        raise UserError(f"{folder.annotations}: split {split!r} has no object with a name")
    return sorted(names)


def _annotation(
    folder: VocFolder, id: str, problems: Problems | None = None
) -> ElementTree.Element:
    path = folder.annotations / f"{id}.xml"
    try:
        content, guessed = _decoded(path.read_bytes())
        tree = ElementTree.fromstring(content, ElementTree.XMLParser(target=_Tree()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # last two: its encoding
        raise UserError(f"{path}: is not XML ({error})") from error
    if guessed and problems is not None:
        problems.add(NOT_UTF_8, path.name, dropped=False)
    if tree.tag != "annotation":
        raise UserError(f"{path}: is not a VOC annotation (its root is <{tree.tag}>)")
    return tree


def _decoded(content: bytes) -> tuple[bytes | str, bool]:
    """An XML file as text where the parser does not know its encoding; whether that is a guess.

    Raises:
        LookupError: Python knows no such encoding.
        ValueError: the file is not in the encoding that it declares.
    """
    declared = DECLARED.match(content)
    encoding = codecs.lookup(declared[1].decode()).name if declared else "utf-8"
    if encoding in MULTI_BYTE:
        return content.decode(encoding), False
    if encoding == "utf-8" and not _is("utf-8", content) and _is(GUESSED, content):
        return content.decode(GUESSED), True
    return content, False


def _is(encoding: str, content: bytes) -> bool:
    try:
        content.decode(encoding)
    except ValueError:
        return False
    return True


class _Tree(ElementTree.TreeBuilder):
    """Refuses a document type declaration.

    VOC files have none. It could define entities that expand without bound or read other files.
    """

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("it declares a document type, which VOC files do not")


def _text(element: ElementTree.Element, path: str) -> str:
    return " ".join((element.findtext(path) or "").split())


def _class(element: ElementTree.Element) -> str:
    return printable(_text(element, "name"))


def _number(element: ElementTree.Element, path: str) -> float:
    try:
        return float(_text(element, path))
    except ValueError:
        return math.nan


def _rotation(element: ElementTree.Element) -> float:
    """Degrees, where CVAT's attributes state them; else 0."""
    for attribute in element.iterfind("attributes/attribute"):
        if _text(attribute, "name") == "rotation":
            degrees = _number(attribute, "value")
            return degrees if math.isfinite(degrees) else 0.0
    return 0.0


def _box(element: ElementTree.Element) -> list[float]:
    """xyxy in continuous coordinates; NaN if a number is missing."""
    x1, y1, x2, y2 = (_number(element, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
    if x1 == x2 or y1 == y2:
        return [x1, y1, x2, y2]
    return [x1 - 1, y1 - 1, x2, y2]


def _stated_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    width, height = _number(tree, "size/width"), _number(tree, "size/height")
    stated = 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE
    return (int(width), int(height)) if stated else None
