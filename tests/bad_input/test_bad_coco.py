"""COCO files that are not as they should be: a data set without the bad parts, or one line."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcomes import refused, usable
from PIL import Image

from frcnn.data import DetectionDataset, coco

Document = dict[str, Any]
HUGE = 10**400  # no float holds it
GONE = object()
# Images, annotations and categories of the file; what a case changes is the second of each.
OBJECTS = {1: [0, 0, 10, 10], 2: [5, 5, 20, 20], 3: [20, 10, 10, 10]}


def document() -> Document:
    images = [{"id": k, "file_name": f"{k}.png", "width": 40, "height": 30} for k in (1, 2)]
    annotations = [
        {"id": k, "image_id": 1 + (k == 2), "category_id": 1 + (k == 2), "bbox": box,
         "area": 50, "iscrowd": 0}
        for k, box in OBJECTS.items()
    ]  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def with_field(rows: str, name: str, value: Any) -> Document:
    """The document with one field of the second image, annotation or category changed."""
    content = document()
    row = content[rows][1]
    row[name] = value
    if value is GONE:
        del row[name]
    return content


def case(name: str, rows: str, field: str, value: Any, *expected: Any) -> Any:
    return pytest.param(with_field(rows, field, value), *expected, id=f"{name}-{field}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in (1, 2):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / f"images/{k}.png")
    return tmp_path


def reader(folder: Path, content: Document | str | bytes) -> Callable[[str], DetectionDataset]:
    """Read both splits from one file of this content."""
    raw = json.dumps(content) if isinstance(content, dict) else content
    file = folder / "annotations.json"
    file.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return lambda split: coco(split, folder / "images", file, folder / "images", file)


NO_BOX = "boxes that are not four finite numbers"
DROPPED = [
    *(case(n, "annotations", "bbox", v, NO_BOX) for n, v in {
        "missing": GONE, "null": None, "text": "1234", "number": 7, "object": {"x": 1},
        "short": [1, 2, 3], "long": [1, 2, 3, 4, 5], "nested": [[1], [2], [3], [4]],
        "texts": ["a", "b", "c", "d"], "nan": [math.nan, 1, 2, 3], "infinite": [0, 0, math.inf, 3],
        "no-float": [0, 0, HUGE, 3], "overflow": [1e308, 0, 1.7e308, 5],
    }.items()),
    *(case(n, "annotations", "bbox", v, "boxes without area") for n, v in {
        "negative-width": [10, 10, -5, 5], "zero-height": [10, 10, 5, 0],
        "huge-corner": [1e300, 1e300, 1, 1], "underflow": [5, 5, 1e-300, 5],
    }.items()),
    *(case(n, "annotations", "bbox", v, "boxes outside the image") for n, v in {
        "right-of-image": [40, 0, 5, 5], "above-image": [0, -9, 5, 9], "far": [1e9, 0, 1e9, 5],
    }.items()),
    *(case(n, "annotations", "category_id", v, "objects of an unknown class") for n, v in {
        "missing": GONE, "null": None, "list": [1], "object": {}, "zero": 0, "huge": HUGE,
        "nan": math.nan, "text": "1",
    }.items()),
    *(case(n, "annotations", "image_id", v, "annotations of an unknown image") for n, v in {
        "missing": GONE, "null": None, "list": [2], "object": {"id": 2}, "negative": -2,
        "text": "2", "infinite": math.inf,
    }.items()),
]  # fmt: skip


@pytest.mark.parametrize(("content", "kind"), DROPPED)
def test_an_annotation_that_cannot_be_used_is_dropped_and_named(
    folder: Path, content: Document, kind: str
) -> None:
    data = usable(reader(folder, content))
    assert data.boxes[:, :2].tolist() == [[0, 0], [20, 10]]
    assert data.problems.counts == {kind: 1}
    assert "annotation 2 (" in data.problems.summary()


FILE_GONE = "images missing in the folder"
LEAVES = "file names that leave the folder"
IMAGE_DROPPED = [
    *(case(n, "images", "file_name", v, FILE_GONE) for n, v in {
        "null": None, "number": 2, "list": ["2.png"], "empty": "", "dot": ".", "nul": "2.png\0",
        "surrogate": "\ud800.png", "line-end": "2.png\n\x1b[31m", "long": "x" * 5000,
        "long-folder": "x" * 5000 + "/2.png",
    }.items()),
    *(case(n, "images", "file_name", v, LEAVES) for n, v in {
        "absolute": "/etc/passwd", "parent": "../outside.png", "hidden-parent": "a/../../x.png",
    }.items()),
    *(case(n, "images", "width", v, "images of another size than annotated") for n, v in {
        "other": 41, "swapped-with-height": 30, "huge": 2**31 - 1,
    }.items()),
]  # fmt: skip


@pytest.mark.parametrize(("content", "kind"), IMAGE_DROPPED)
def test_an_image_that_cannot_be_used_is_dropped_with_its_objects(
    folder: Path, content: Document, kind: str
) -> None:
    Image.new("RGB", (40, 30)).save(folder / "outside.png")
    data = usable(reader(folder, content))
    assert data.image_ids == [1] and len(data.boxes) == 2
    assert data.problems.counts == {kind: 1}


SAME = [
    *(case(n, "images", "width", v) for n, v in {
        "missing": GONE, "null": None, "zero": 0, "negative": -40, "text": "forty", "list": [],
        "nan": math.nan, "infinite": math.inf, "no-float": HUGE, "fraction": 0.5, "beyond": 1e300,
    }.items()),
    *(case(n, "annotations", "area", v) for n, v in {
        "missing": GONE, "null": None, "text": "large", "negative": -5, "nan": math.nan,
        "infinite": math.inf, "no-float": HUGE, "beyond-float32": 1e300, "list": [50],
    }.items()),
    *(case(n, "annotations", "iscrowd", v) for n, v in {
        "missing": GONE, "null": None, "text": "0", "false": False,
    }.items()),
    *(case(n, "annotations", "id", v) for n, v in {
        "missing": GONE, "null": None, "list": [1], "object": {}, "text": "two", "huge": HUGE,
    }.items()),
    *(case(n, "annotations", "segmentation", v) for n, v in {
        "number": 1, "text": "x", "deep": [[[[1, 2]]]], "nan": [math.nan],
    }.items()),
    case("of-floats", "annotations", "category_id", 2.0),
    case("of-floats", "categories", "id", 2.0),
    case("of-floats", "images", "id", 2.0),
]  # fmt: skip


@pytest.mark.parametrize("content", SAME)
def test_what_can_be_made_up_for_changes_nothing(folder: Path, content: Document) -> None:
    data = usable(reader(folder, content))
    assert data.image_ids == [1, 2] and data.category_ids == [1, 2]
    assert data.boxes.tolist() == [[0, 0, 10, 10], [20, 10, 30, 20], [5, 5, 25, 25]]
    assert data.areas.tolist() in ([50, 50, 50], [50, 50, 400])  # 400: the box's own
    assert not data.ignore.any() and not data.problems


@pytest.mark.parametrize("value", [1, True, "1", 2, "yes", [0], math.nan], ids=str)
def test_whatever_may_be_a_crowd_is_ignored(folder: Path, value: Any) -> None:
    data = usable(reader(folder, with_field("annotations", "iscrowd", value)))
    assert data.ignore.tolist() == [False, False, True]


@pytest.mark.parametrize("value", [0, 1])
def test_annotation_ids_that_are_zero_or_repeated_are_counted(folder: Path, value: int) -> None:
    data = usable(reader(folder, with_field("annotations", "id", value)))
    assert len(data.boxes) == 3
    assert data.problems.counts == {"annotation ids that are 0 or repeated": 1}


@pytest.mark.parametrize(
    ("name", "shown"),
    [(None, "None"), (["a"], "['a']"), ("a\nb\x1b[31m", "a\\nb\\x1b[31m"), ("", ""),
     ("\ud800", "\\ud800"), ("\u202ecat", "\\u202ecat"), ("猫", "猫")],
    ids=["null", "list", "control", "empty", "surrogate", "right-to-left", "unicode"],
)  # fmt: skip
def test_a_class_name_is_one_line(folder: Path, name: Any, shown: str) -> None:
    assert usable(reader(folder, with_field("categories", "name", name))).class_names[1] == shown


BAD_ID = "is neither an integer nor a string"
MISSING_FIELD = [
    case("missing", "images", "id", GONE, "image .* has no 'id'"),
    case("missing", "images", "file_name", GONE, "image .* has no 'file_name'"),
    case("missing", "categories", "id", GONE, "category .* has no 'id'"),
    case("missing", "categories", "name", GONE, "category .* has no 'name'"),
    case("repeated", "images", "id", 1, "image id 1 is used more than once"),
    case("repeated", "categories", "id", 1, "category id 1 is used more than once"),
    *(case(n, rows, "id", v, f"{BAD_ID}") for rows in ("images", "categories") for n, v in {
        "null": None, "list": [2], "object": {}, "true": True, "fraction": 1.5, "nan": math.nan,
        "infinite": math.inf,
    }.items()),
]  # fmt: skip
DEEP = 200_000
WHOLE = json.dumps(document())
BAD_FILE = {
    "empty": ("", "is not JSON"),
    "blank": (" \n", "is not JSON"),
    "truncated": (WHOLE[:-40], "is not JSON"),
    "zeros": (b"\0" * 100, "is not JSON"),
    "latin-1": (WHOLE.replace("cat", "\xe9").encode("latin-1"), "is not JSON"),
    "text": ("hello", "is not JSON"),
    "xml": ("<annotation/>", "is not JSON"),
    "two-documents": (WHOLE + WHOLE, "is not JSON"),
    "long-number": (WHOLE.replace("40", "4" * 5000), "is not JSON"),
    "deep": ("[" * DEEP, "is nested too deeply"),
    "deep-object": ('{"a":' * DEEP, "is nested too deeply"),
    "null": ("null", "is not a COCO file"),
    "number": ("7", "is not a COCO file"),
    "list": ("[]", "is not a COCO file"),
    "no-images": ('{"annotations": [], "categories": []}', "no list of 'images'"),
    "images-object": ('{"images": {}, "annotations": [], "categories": []}', "list of 'images'"),
    "null-rows": ('{"images": [null], "annotations": [], "categories": []}', "list of 'images'"),
    "no-categories": (WHOLE.replace("categories", "classes"), "list of 'categories'"),
    "no-annotations": (WHOLE.replace("annotations", "objects"), "list of 'annotations'"),
    "no-image": (json.dumps(document() | {"images": []}), "lists no image"),
    "no-category": (json.dumps(document() | {"categories": []}), "lists no category"),
    "no-object": (json.dumps(document() | {"annotations": []}), "no object to train on"),
    "key-twice": (WHOLE[:-1] + ', "images": []}', "lists no image"),  # the last counts
}


@pytest.mark.parametrize(
    ("content", "says"),
    [*MISSING_FIELD, *(pytest.param(*pair, id=name) for name, pair in BAD_FILE.items())],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    folder: Path, content: Document | str | bytes, says: str
) -> None:
    line = refused(usable, reader(folder, content))
    assert "annotations.json" in line and re.search(says, line), line


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(folder: Path, encoding: str) -> None:
    assert len(usable(reader(folder, WHOLE.encode(encoding))).boxes) == 3


def test_keys_that_stand_twice_count_once(folder: Path) -> None:
    text = WHOLE.replace('"bbox": [5, 5, 20, 20]', '"bbox": "x", "bbox": [5, 5, 20, 20]')
    assert len(usable(reader(folder, text)).boxes) == 3


def test_a_folder_is_no_annotation_file(folder: Path) -> None:
    (folder / "annotations.json").mkdir()
    paths = [folder / "images", folder / "annotations.json"] * 2
    assert "annotations.json: cannot be read" in refused(coco, "train", *paths)


def test_there_is_no_such_user_and_no_such_file(folder: Path) -> None:
    paths = ["~nobody-has-this-name/images", "~nobody-has-this-name/a.json"] * 2
    assert "a.json: cannot be read" in refused(coco, "train", *paths)


def test_nothing_outside_the_folder_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as a header for the size nor as pixels, wherever the file names lead."""
    opened: list[Path] = []
    true_open = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path)) or true_open(path))
    Image.new("RGB", (40, 30)).save(folder / "secret.png")
    content = document()
    for name in ("../secret.png", str(folder / "secret.png"), "./../secret.png", "//secret.png",
                 "x/../../secret.png", "../images/../secret.png"):  # fmt: skip
        content["images"].append({"id": name, "file_name": name})
    data = usable(reader(folder, content))
    assert data.problems.counts == {LEAVES: 6}
    assert opened and {path.parent for path in opened} == {folder / "images"}
