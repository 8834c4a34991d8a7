"""Reader of YOLO data sets: a text file per image, with a line per object.

A line is the class index and a box ``cx cy w h``, or a polygon ``x1 y1 x2 y2 x3 y3 ...``, which
becomes the smallest box around it. Numbers are fractions of the image's width and height.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from frcnn.data.coco import unique_classes
from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import ImageFiles, expand_home, files_exist, header_size, list_folder
from frcnn.data.problems import Problems
from frcnn.data.records import Images, RawObjects, clean_objects, refuse_without_objects
from frcnn.data.yolo_files import Description, describe
from frcnn.errors import NoSplitError, UserError

NOTHING = [float("nan")] * 4


def yolo(
    split: str, root: str | Path, yaml: str | None = None, test_split: str | None = "test"
) -> DetectionDataset:
    """Read one split of a YOLO data set.

    The classes and splits are those of ``data.yaml`` (``names``, ``train``, ``val``, ``test``; a
    split is a folder, a list of folders, or a text file of images), of ``obj.data``, or of
    ``classes.txt`` beside ``images``, where all images are "train". Labels are where Ultralytics
    looks for them, ``images`` in the path replaced by ``labels``, or beside the image. An image
    without a label file is an image without objects. Lines and files that cannot be used are
    dropped and counted by kind.

    Args:
        split: "train", "val" or "test".
        root: the folder of the data set. Nothing outside of it is read.
        yaml: the YAML file, relative to root; None = the only one there.
        test_split: None = leave the test images out of folds.

    Raises:
        NoSplitError: the data set has no such split.
        UserError: a file is missing or malformed, no image or no label file exists, or the training
            split has no object.
    """
    if split == "test" and test_split is None:
        raise NoSplitError(root, split)
    data = describe(expand_home(root), yaml)
    found = _Labels(data)
    _read(found, data.images(split, found.problems), split)
    dataset = _dataset(found)
    if split == "train":
        refuse_without_objects(dataset.ignore, data.path, dataset.problems)
    return dataset


@dataclass
class _Labels:
    """The contents of the label files as columns."""

    data: Description
    # per image
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    # per object
    image: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    problems: Problems = field(default_factory=Problems)


def _read(found: _Labels, files: list[str], split: str) -> None:
    root = found.data.root
    label_files = _label_files(root, files)
    if not any(label_files):
        raise UserError(
            f"{found.data.path}: no image of split {split!r} has a label file "
            f"(looked for {' and '.join(_label_places(files[0]))})"
        )
    _count_unused(root, files, label_files, found.problems)
    for file, label_file in zip(files, label_files, strict=True):
        size = header_size(root / file)
        if size is None:
            found.problems.add("unreadable images", file, dropped=True)
            continue
        try:
            text = (root / label_file).read_text(encoding="utf-8-sig") if label_file else ""
        except (OSError, ValueError):  # not background: its objects are not known
            found.problems.add("images with an unreadable label file", file, dropped=True)
            continue
        _add_objects(found, text, label_file)
        found.files.append(file)
        found.sizes.append(size)


def _label_places(file: str) -> tuple[str, str]:
    """Where the labels of an image may be: in labels for images, or beside it."""
    beside = PurePath(file).with_suffix(".txt")
    *folders, name = beside.parts
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return str(PurePath(*folders, name)), str(beside)


def _label_files(root: Path, files: list[str]) -> list[str]:
    """The label file of each image; "" = none."""
    places = [_label_places(file) for file in files]
    found = [""] * len(files)
    for column in zip(*places, strict=True):
        for row in np.flatnonzero(files_exist(root, list(column))).tolist():
            found[row] = found[row] or column[row]
    return found


def _count_unused(root: Path, files: list[str], labels: list[str], problems: Problems) -> None:
    """Count images that share a label file, and files in labels that belong to no image."""
    images = defaultdict(list)
    for file, label in zip(files, labels, strict=True):
        images[label].append(file)
    for label, those in images.items():
        for file in those[1:] if label else ():
            problems.add("images that share a label file", f"{those[0]}, {file}", dropped=False)
    pairs = {
        (os.path.dirname(file), os.path.dirname(label))
        for file, label in zip(files, labels, strict=True)
    }
    for folder, beside in sorted(pairs):
        if "labels" not in PurePath(beside).parts:
            continue  # beside images other text files may be
        stems = {Path(name).stem for name in list_folder(root / folder)}
        for name in sorted(list_folder(root / beside)):
            if name.endswith(".txt") and name != "classes.txt" and Path(name).stem not in stems:
                problems.add("label files without an image", f"{beside}/{name}", dropped=True)


def _add_objects(found: _Labels, text: str, file: str) -> None:
    """Add the objects of the image that is about to be added to ``found.files``."""
    label_of = {float(index): label for label, index in enumerate(found.data.names, start=1)}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        numbers = _numbers(line)
        box = _box(numbers[1:], found.data.keypoints)
        if box is None:
            found.problems.add("lines that are no class and box or polygon", where, dropped=True)
            continue
        found.image.append(len(found.files))
        found.boxes.append(box)
        found.labels.append(label_of.get(numbers[0], 0))
        found.names.append(where)


def _numbers(line: str) -> list[float]:
    """The numbers of a line; none if a word is no number."""
    try:
        return [float(word) for word in line.split()]
    except ValueError:
        return []


def _box(numbers: list[float], keypoints: int) -> list[float] | None:
    """xyxy in fractions, from a box or a polygon; None if it is neither."""
    if len(numbers) == 4 + keypoints:
        cx, cy, w, h = numbers[:4]
        return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    if keypoints or len(numbers) < 6 or len(numbers) % 2:
        return None
    if not np.isfinite(numbers).all():
        return NOTHING
    xs, ys = numbers[::2], numbers[1::2]
    return [min(xs), min(ys), max(xs), max(ys)]


def _dataset(found: _Labels) -> DetectionDataset:
    root = found.data.root
    if not found.files:
        raise UserError(f"{root}: no image can be used ({found.problems.summary()})")
    sizes = np.array(found.sizes, dtype=np.int32)
    images = Images(
        list(found.files), np.array(found.files, dtype=np.str_), sizes[:, 0], sizes[:, 1]
    )
    image = np.array(found.image, dtype=np.int64)
    fractions = np.array(found.boxes, dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are dropped later
        boxes = fractions * np.tile(sizes[image], 2)
    raw = RawObjects(
        image=image,
        boxes=boxes,
        labels=np.array(found.labels, dtype=np.int64),
        ignore=np.zeros(len(image), dtype=bool),
        areas=np.full(len(image), np.nan),
        name=found.names.__getitem__,
    )
    objects = clean_objects(raw, *images[2:], found.problems, images.files)
    classes = unique_classes(found.data.names)
    return DetectionDataset(ImageFiles(root, *images[1:]), images, objects, classes, found.problems)
