"""What a YOLO data set's own files say: class names, and the images of each split.

Three tools, three forms: ``data.yaml`` (Ultralytics, Roboflow, CVAT), ``obj.data`` (Darknet, CVAT)
and ``classes.txt`` (Label Studio). Their paths are often those of another machine or folder. A path
counts only if it leads to something below the data set's root.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from frcnn.data.coco_json import Id
from frcnn.data.image_files import EXTENSIONS, files_exist
from frcnn.data.problems import Problems
from frcnn.errors import NoSplitError, UserError, printable

# The keys of a split in data.yaml and obj.data.
KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


@dataclass
class Description:
    """The contents of a data set's description.

    Args:
        root: the folder that holds the data set, absolute.
        path: the description, for messages.
        names: class name by index.
        sources: by key: folders, and lists of images, as written.
        base: the folder that sources are relative to, as written.
        keypoints: numbers per line for keypoints, after class and box.
    """

    root: Path
    path: Path
    names: dict[Id, str]
    sources: dict[str, list[str]]
    base: str = ""
    keypoints: int = 0

    def images(self, split: str, problems: Problems) -> list[str]:
        """The image files of a split, relative to root, each once.

        Raises:
            NoSplitError: the description has no such split.
            UserError: a folder or list is missing, or has no image.
        """
        given = [source for key in KEYS[split] for source in self.sources.get(key, [])]
        if not given:
            raise NoSplitError(self.path, split)
        found = [file for source in given for file in self._files(source, problems)]
        distinct = list(dict.fromkeys(found))
        for _ in range(len(found) - len(distinct)):
            problems.add("images listed more than once", str(self.path), dropped=True)
        return distinct

    def _files(self, source: str, problems: Problems) -> list[str]:
        place = self.below(source)
        if place is None:
            raise UserError(f"{self.path}: {source!r} is no folder or file below {self.root}")
        found = _listed(place, self, problems) if place.is_file() else self._in_folder(place)
        if not found:
            raise UserError(f"{place}: has no image ({', '.join(EXTENSIONS)})")
        return found

    def _in_folder(self, folder: Path) -> list[str]:
        paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
        images = [path for path in paths if path.lower().endswith(EXTENSIONS)]
        return sorted(os.path.relpath(path, self.root) for path in images)

    def below(self, source: str) -> Path | None:
        """The file or folder that a path leads to; None = none below root."""
        for text in self.readings(source):
            place = Path(os.path.normpath(self.root / text))
            if place.is_relative_to(self.root) and os.path.exists(place):
                return place
        return None

    def readings(self, source: str) -> list[str]:
        """What a path may mean, the likeliest first.

        Ultralytics: relative to ``path``. Roboflow: ``../train/images`` is ``train/images``. CVAT:
        ``data/`` is the root itself. Absolute paths may begin with ``path``.
        """
        text, base = _slashed(source), _slashed(self.base)
        if base and text.startswith(f"{base}/"):
            text = text[len(base) + 1 :]
        inside = re.sub(r"^(\.{1,2}/)+", "", text)
        return [f"{base}/{text}" if base else text, text, inside, inside.removeprefix("data/")]


def _slashed(text: str) -> str:
    return text.strip().replace("\\", "/").rstrip("/")


def _listed(path: Path, of: Description, problems: Problems) -> list[str]:
    """The images that a text file lists; those that are missing are counted."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    inside = os.path.relpath(path.parent, of.root)
    readings = [[f"{inside}/{_slashed(line)}", *of.readings(line)] for line in lines]
    found: list[str | None] = [None] * len(lines)
    for column in zip(*readings, strict=True):
        names = [_below_root(name, of.root) for name in column]
        for row in np.flatnonzero(files_exist(of.root, names)).tolist():
            found[row] = found[row] or names[row]
    present = [file for file in found if file is not None]
    if lines and not present:
        raise UserError(
            f"{path}: none of its {len(lines)} images is below {of.root} (first: {lines[0]})"
        )
    for line, file in zip(lines, found, strict=True):
        if file is None:
            problems.add("images missing in the folder", line, dropped=True)
    return present


def _below_root(name: str, root: Path) -> str:
    path = os.path.normpath(name)
    return os.path.relpath(path, root) if os.path.isabs(path) else path


def describe(root: Path, file: str | None = None) -> Description:
    """Read the description of a data set.

    Args:
        file: the data set's YAML file, relative to root; None = the one that is there.

    Raises:
        UserError: there is none, or several YAML files, or it cannot be used.
    """
    root = Path(os.path.abspath(root))
    path = root / file if file else _yaml_file(root)
    if path is not None:
        return _of_yaml(root, path)
    if (root / "obj.data").is_file():
        return _of_darknet(root, root / "obj.data")
    if (root / "classes.txt").is_file():
        names = _lines(root / "classes.txt")
        return Description(root, root / "classes.txt", names, {"train": ["images"]})
    raise UserError(
        f"{root}: is no YOLO data set; looked for data.yaml, another *.yaml, obj.data, classes.txt"
    )


def _yaml_file(root: Path) -> Path | None:
    found = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    usual = [path for path in found if path.stem == "data"]
    if len(usual or found) > 1:
        names = ", ".join(path.name for path in usual or found)
        raise UserError(f"{root}: has {names}; choose one with data.yaml=FILE")
    return next(iter(usual or found), None)


def _of_yaml(root: Path, path: Path) -> Description:
    try:
        content = yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not YAML ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a YOLO data set's (it has no names)")
    keys = [key for keys in KEYS.values() for key in keys]
    sources = {key: _sources(path, key, content[key]) for key in keys if content.get(key)}
    return Description(
        root,
        path,
        _names(path, content.get("names")),
        sources,
        str(content.get("path") or ""),
        _keypoints(path, content.get("kpt_shape")),
    )


def _names(path: Path, given: Any) -> dict[Id, str]:
    """Names by index, from a list or a mapping."""
    entries = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: names must be a list of class names, or a mapping from numbers")
    try:
        numbers = {int(str(key)): name for key, name in entries.items()}
    except ValueError as error:
        raise UserError(f"{path}: names: a key is not a number ({error})") from error
    for name in numbers.values():
        if isinstance(name, bool) or not isinstance(name, str | int):
            # YAML reads `no` as false and 2024-01-01 as a date.
            raise UserError(f"{path}: names: {name!r:.80} is not text; put it in quotes")
    return {number: printable(str(numbers[number])) for number in sorted(numbers)}


def _sources(path: Path, key: str, given: Any) -> list[str]:
    entries = given if isinstance(given, list) else [given]
    if not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{path}: {key} must be a folder, a list of folders, or a .txt file")
    return entries


def _keypoints(path: Path, shape: Any) -> int:
    """Numbers per object: ``kpt_shape`` is the number of keypoints and of numbers for each."""
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int for n in shape):
        raise UserError(f"{path}: kpt_shape must be two numbers")
    return shape[0] * shape[1]


def _of_darknet(root: Path, path: Path) -> Description:
    """``key = value`` per line, as ``train = data/train.txt``."""
    pairs = [line.partition("=") for line in _text(path).splitlines()]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    found = Description(root, path, {}, {key: [value] for key, value in values.items() if value})
    names = found.below(values.get("names") or "obj.names")
    if names is None:
        raise UserError(f"{path}: its file of class names is not below {root}")
    found.names = _lines(names)
    return found


def _lines(path: Path) -> dict[Id, str]:
    """Class names by line, from 0."""
    names = [printable(line.strip()) for line in _text(path).rstrip().splitlines()]
    if not names:
        raise UserError(f"{path}: lists no class")
    return {**dict(enumerate(names))}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: is not text in UTF-8 ({error})") from error
